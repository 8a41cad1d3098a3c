"""What stands in for the denoiser's forward: noise and quantized denoisers, in the steps asked for and no others."""

import numpy as np
import pytest
import torch
from pipelines import tiny_sd, tiny_sdxl
from torch import nn

from halftone.microbatch import replaced_forward
from halftone.sensitivity.forwards import mixed_forward, noise_seed, perturbed, perturbed_forward
from halftone.sensitivity.steps import step_finder

STEPS = 5


def _prediction(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).mul(2).add(1).to(dtype)


def _timesteps(pipeline):
    pipeline.scheduler.set_timesteps(STEPS)
    return list(dict.fromkeys(pipeline.scheduler.timesteps.tolist()))


def _latents(pipeline, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        return pipeline("a red cube", num_inference_steps=STEPS, output_type="latent", generator=generator).images


def test_noise_has_the_wanted_size_by_independent_code():
    prediction = _prediction(2, 4, 8, 8)
    before = prediction.clone()
    found = perturbed(prediction, 0.05, 123, channels=4)
    drawn = torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(123)).numpy()
    values = prediction.numpy().astype(np.float64)
    expected = values + 0.05 * np.sqrt(((values - values.mean()) ** 2).mean()) * drawn
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(prediction, before), "what the denoiser gave is not touched"


@pytest.mark.parametrize("guidance", [1.0, 7.5, 30.0])
def test_guidance_does_not_amplify_the_noise(guidance):
    """Both halves get the same noise, so guided predictions differ by it, whatever the guidance."""

    def guided(rows):
        return rows[0] + guidance * (rows[1] - rows[0])

    prediction = _prediction(2, 4, 8, 8).double()
    noise = guided(perturbed(prediction, 0.1, 5, 4)) - guided(prediction)
    assert float(noise.std() / prediction.std()) == pytest.approx(0.1, rel=0.15)
    unguided = perturbed(prediction, 0.1, 5, 4)[0] - prediction[0]
    torch.testing.assert_close(noise, unguided, rtol=1e-3, atol=1e-4)


def test_a_predicted_variance_stays_as_it_is():
    prediction = _prediction(2, 8, 4, 4)
    found = perturbed(prediction, 0.5, 1, channels=4)
    assert torch.equal(found[:, 4:], prediction[:, 4:])
    assert (found[:, :4] != prediction[:, :4]).float().mean() > 0.99
    # and is not part of the size of the noise
    scaled = torch.cat([prediction[:, :4], 100 * prediction[:, 4:]], dim=1)
    assert torch.equal(perturbed(scaled, 0.5, 1, channels=4)[:, :4], found[:, :4])


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (1, 4, 3, 8, 8), (2, 16, 4), (2, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_videos_sequences_and_vectors_in_their_dtype(shape, dtype):
    prediction = _prediction(*shape, dtype=dtype)
    found = perturbed(prediction, 0.5, 1, channels=4)
    assert found.dtype == dtype and found.shape == prediction.shape and not torch.equal(found, prediction)


def test_seeds_of_noise_are_apart():
    seeds = {noise_seed(image, step) for image in range(-3, 50) for step in range(50)}
    assert len(seeds) == 53 * 50 and not seeds & set(range(10_000))
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    "scheduler, build, expected",
    [
        ("ddim", tiny_sd, [False, True, True, False, False]),
        ("ddim", tiny_sdxl, [False, True, True, False, False]),
        ("pndm", tiny_sd, [False, True, True, True, False, False]),  # visits its second timestep twice
    ],
)
def test_only_the_calls_of_the_interval_are_changed(scheduler, build, expected):
    pipeline = build(scheduler=scheduler)
    plain, given, returned = pipeline.unet.forward, [], []

    def noted(*args, **kwargs):
        output = plain(*args, **kwargs)
        given.append(output[0].clone())
        return output

    step_of = step_finder(pipeline.unet, _timesteps(pipeline))
    noisy = perturbed_forward(noted, step_of, range(1, 3), 0.1, lambda: 7)

    def watched(*args, **kwargs):
        output = noisy(*args, **kwargs)
        returned.append(output[0].clone())
        return output

    with replaced_forward(pipeline.unet, watched):
        changed = _latents(pipeline)
    assert [not torch.equal(a, b) for a, b in zip(given, returned, strict=True)] == expected
    assert not torch.equal(changed, _latents(pipeline))


def test_noise_follows_from_image_and_step_alone():
    pipeline = tiny_sd()
    step_of = step_finder(pipeline.unet, _timesteps(pipeline))

    def run(seed, steps=range(1, 3), noise=0.1):
        forward = perturbed_forward(pipeline.unet.forward, step_of, steps, noise, lambda: seed)
        with replaced_forward(pipeline.unet, forward):
            return _latents(pipeline)

    first = run(7)
    assert torch.equal(run(7), first)
    for other in (run(8), run(7, range(1, 2)), run(7, noise=0.2)):
        assert not torch.equal(other, first)
    assert torch.equal(run(7, range(0)), _latents(pipeline))


class _Counting(nn.Module):
    """A denoiser that halves another one's prediction, and notes at which timesteps it was called."""

    def __init__(self, real):
        super().__init__()
        self.real, self.called = [real], []

    def forward(self, sample, timestep, *args, **kwargs):
        self.called.append(float(timestep))
        return (self.real[0](sample, timestep, *args, **kwargs)[0] / 2,)


@pytest.mark.parametrize("steps", [range(0), range(0, 2), range(3, 5), range(0, 5)])
def test_the_quantized_denoiser_runs_all_other_steps(steps):
    pipeline = tiny_sd()
    timesteps, plain = _timesteps(pipeline), pipeline.unet.forward
    quantized = _Counting(plain)
    mixed = mixed_forward(plain, quantized, step_finder(pipeline.unet, timesteps), steps)
    with replaced_forward(pipeline.unet, mixed):
        found = _latents(pipeline)
    assert quantized.called == [value for step, value in enumerate(timesteps) if step not in steps]
    assert torch.equal(found, _latents(pipeline)) == (len(steps) == STEPS)
