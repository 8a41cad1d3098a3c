"""The affine correction of an output: hand-made rows, any layout of channels, float32 tables."""

import pytest
import torch

from halftone.errors import InputError
from halftone.layers import OutputCorrection, by_channel


def _correction(dtype=torch.float32):
    correction = OutputCorrection(3, 2).to(dtype)
    correction.set_row(1, torch.tensor([2.0, 0.5], dtype=torch.float64), torch.tensor([1.0, -1.0]))
    return correction


@pytest.mark.parametrize("shape", [(2, 2, 3, 5), (2, 2, 4, 3, 5)])
def test_images_and_videos_have_their_channels_second(shape):
    x = torch.randn(shape)
    y = _correction()(x, 1)
    assert torch.equal(y[:, 0], 2 * x[:, 0] + 1) and torch.equal(y[:, 1], 0.5 * x[:, 1] - 1)
    assert y.is_contiguous() and y.shape == x.shape


@pytest.mark.parametrize("shape", [(4, 7, 2), (4, 2)])
def test_sequences_and_vectors_have_them_last(shape):
    x = torch.randn(shape)
    y = _correction()(x, 1)
    assert torch.equal(y[..., 0], 2 * x[..., 0] + 1) and torch.equal(y[..., 1], 0.5 * x[..., 1] - 1)


def test_other_slots_change_nothing():
    x = torch.randn(2, 2, 3, 3)
    assert torch.equal(_correction()(x, 0), x) and torch.equal(_correction()(x, 2), x)


def test_computes_in_float32_whatever_the_module_is_cast_to():
    correction = _correction(torch.bfloat16)
    assert correction.output_gain.dtype == correction.output_bias.dtype == torch.float32
    correction.set_row(0, torch.tensor([1.001, 1.0]), torch.zeros(2))
    x = torch.randn(2, 2, 3, 3).bfloat16()
    assert torch.equal(correction(x, 0)[:, 0], (1.001 * x[:, 0].float()).bfloat16())
    assert set(correction.state_dict()) == {"output_gain", "output_bias"}


def test_first_channels_alone_may_be_set():
    correction = OutputCorrection(1, 4)
    correction.set_row(0, torch.tensor([2.0, 2.0]), torch.tensor([1.0, 1.0]))
    x = torch.randn(1, 4, 2, 2)
    y = correction(x, 0)
    assert torch.equal(y[:, :2], 2 * x[:, :2] + 1) and torch.equal(y[:, 2:], x[:, 2:])
    assert correction.extremes() == {"gain": [1.0, 2.0], "bias": [0.0, 1.0]}


def test_other_number_of_channels_is_refused():
    with pytest.raises(InputError, match="is for 2 channels, and the denoiser's output has 3"):
        _correction()(torch.zeros(1, 3, 2, 2), 0)


def test_by_channel_is_a_view():
    x = torch.zeros(2, 3, 4, 5)
    by_channel(x)[..., 1] = 1
    assert x.sum() == x[:, 1].sum() == 40
