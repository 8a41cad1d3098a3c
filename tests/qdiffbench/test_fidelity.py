import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from halftone.errors import InputError
from halftone.qdiffbench.fidelity import PSNR_CAP_DB, latent_error, ms_ssim, ms_ssim_fits, psnr, ssim


def flat(value, side=16):
    return np.full((side, side, 3), value, dtype=np.uint8)


def noisy_pair(seed, side=48, strength=12):
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 256, (side, side + 5, 3)).astype(np.uint8)
    noise = generator.normal(0, strength, image.shape)
    return image, np.clip(image + noise, 0, 255).astype(np.uint8)


def test_psnr_of_a_constant_difference_by_hand():
    # every value differs by 10: MSE 100, 10·log10(65025 / 100)
    assert psnr(flat(100), flat(110)) == pytest.approx(28.1308, abs=1e-4)
    assert psnr(flat(0), flat(255)) == pytest.approx(0.0, abs=1e-12)


def test_psnr_does_not_wrap_around_in_uint8():
    assert psnr(flat(250), flat(0)) == psnr(flat(0), flat(250)) == pytest.approx(20 * math.log10(255 / 250))


def test_psnr_of_one_changed_value_by_hand():
    a = flat(7, side=64)
    b = a.copy()
    b[3, 4, 1] += 1
    assert psnr(a, b) == pytest.approx(10 * math.log10(255**2 * 64 * 64 * 3), abs=1e-9)


def test_identical_images_have_the_cap_and_full_similarity():
    assert psnr(flat(9), flat(9)) == PSNR_CAP_DB
    assert ssim(flat(9), flat(9)) == pytest.approx(1.0)


def test_ssim_of_flat_images_is_its_luminance_term():
    # no variance: the structure term is 1; c1 = (0.01·255)² = 6.5025
    expected = (2 * 100 * 120 + 6.5025) / (100**2 + 120**2 + 6.5025)
    assert ssim(flat(100), flat(120)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("strength", [2, 12, 60])
def test_agreement_with_scikit_image(seed, strength):
    a, b = noisy_pair(seed, strength=strength)
    theirs = structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=-1, data_range=255
    )
    assert ssim(a, b) == pytest.approx(theirs, abs=1e-4)
    assert ssim(b, a) == pytest.approx(ssim(a, b), abs=1e-12)
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255), abs=1e-9)


@pytest.mark.parametrize("metric", [psnr, ssim, ms_ssim])
@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((16, 16), np.uint8),
        np.zeros((16, 16, 4), np.uint8),
        np.zeros((16, 16, 3)),
        flat(0, 17),
        flat(0, 0),
    ],
)
def test_other_shapes_and_types_are_refused(metric, bad):
    with pytest.raises(InputError):
        metric(flat(0), bad)
    with pytest.raises(InputError):
        metric(bad, flat(0))


def test_ssim_refuses_images_smaller_than_its_window():
    assert ssim(flat(1, 11), flat(1, 11)) == pytest.approx(1.0)
    with pytest.raises(InputError, match="11x11"):
        ssim(flat(1, 10), flat(1, 10))


def scikit_ms_ssim(a, b):
    """Five scales from scikit-image's SSIM maps: C·S is SSIM over its luminance term, which two filters give."""
    from scipy.ndimage import gaussian_filter

    weights, channels = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333], []
    for channel in range(3):
        x, y, value = a[..., channel].astype(float), b[..., channel].astype(float), 1.0
        for scale, weight in enumerate(weights):
            _, full = structural_similarity(
                x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, full=True
            )
            if scale < 4:
                mean_x, mean_y = (gaussian_filter(image, 1.5, truncate=3.5) for image in (x, y))
                full = full / ((2 * mean_x * mean_y + 6.5025) / (mean_x**2 + mean_y**2 + 6.5025))
            value *= np.mean(full[5:-5, 5:-5]) ** weight
            height, width = x.shape[0] // 2 * 2, x.shape[1] // 2 * 2
            x, y = (i[:height, :width].reshape(height // 2, 2, width // 2, 2).mean((1, 3)) for i in (x, y))
        channels.append(value)
    return np.mean(channels)


@pytest.mark.parametrize("strength", [5, 40])
def test_ms_ssim_agrees_with_scikit_images_maps(strength):
    generator = np.random.default_rng(strength)
    coarse = generator.integers(0, 256, (12, 12, 3))
    a = np.kron(coarse, np.ones((16, 16, 1)))[:187, :190].astype(np.uint8)
    b = np.clip(a + generator.normal(0, strength, a.shape), 0, 255).astype(np.uint8)
    assert ms_ssim(a, b) == pytest.approx(scikit_ms_ssim(a, b), abs=1e-4)
    assert ms_ssim(b, a) == pytest.approx(ms_ssim(a, b), abs=1e-12)
    assert ms_ssim(a, a) == pytest.approx(1.0)


def test_ms_ssim_of_flat_images_is_the_coarsest_luminance():
    expected = (2 * 100 * 120 + 6.5025) / (100**2 + 120**2 + 6.5025)
    assert ms_ssim(flat(100, 176), flat(120, 176)) == pytest.approx(expected**0.1333, abs=1e-9)


def test_ms_ssim_of_a_negative_is_zero_not_complex():
    a, _ = noisy_pair(0, side=180)
    assert ms_ssim(a, 255 - a) == 0.0


def test_ms_ssim_refuses_images_smaller_than_its_scales():
    assert ms_ssim_fits((176, 176, 3)) and not ms_ssim_fits((175, 400, 3))
    with pytest.raises(InputError, match="176x176"):
        ms_ssim(flat(1, 175), flat(1, 175))


def test_latent_error_by_hand():
    reference = torch.tensor([[3.0, 4.0]])
    assert latent_error(torch.tensor([[3.0, 4.5]]), reference) == pytest.approx(0.1)
    assert latent_error(reference, reference) == 0.0
    assert latent_error(np.array([0.0, 0.0]), np.array([3.0, 4.0])) == pytest.approx(1.0)


def test_latent_error_is_computed_in_double_from_any_float_type():
    reference = torch.full((4, 8), 2.0, dtype=torch.bfloat16, requires_grad=True)
    assert latent_error(reference.detach() * 1.5, reference) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("candidate", "reference"),
    [
        (torch.zeros(2), torch.ones(3)),
        (torch.ones(2), torch.zeros(2)),
        (torch.tensor([math.nan]), torch.ones(1)),
        (torch.ones(1), torch.tensor([math.inf])),
    ],
)
def test_latent_error_refuses_what_has_no_error(candidate, reference):
    with pytest.raises(InputError):
        latent_error(candidate, reference)
