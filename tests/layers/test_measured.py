"""Layers that measure the ranges of their inputs: every row, or image, as a layer that was calibrated on it alone."""

import pytest
import torch
from torch import nn

from halftone.errors import CalibrationError
from halftone.kernels import registry
from halftone.layers import LayerForm, QuantizedLinear, quantize_layer
from halftone.numerics import measured_qparams, range_to_qparams

torch.manual_seed(0)
LINEAR, CONV = nn.Linear(20, 6), nn.Conv2d(4, 6, 3, padding=1, bias=False)
FORMS = {False: LayerForm(measured=True), True: LayerForm(measured=True, symmetric=True)}
#: Rows and images of very different sizes; one all zero, one without negative values.
ROWS = torch.randn(3, 5, 20) * torch.logspace(-3, 3, 15).view(3, 5, 1)
ROWS[0, 1], ROWS[2, 3] = 0.0, ROWS[2, 3].abs()
IMAGES = torch.randn(3, 4, 9, 8) * torch.tensor([1.0, 100.0, 0.0]).view(3, 1, 1, 1)


def _measuring(module, symmetric=False, num_bits=8):
    layer = quantize_layer(module, 4, 1, "mid.layer", form=FORMS[symmetric])
    layer.set_measured_bits(num_bits)
    return layer


def _calibrated_on(module, x, symmetric, num_bits):
    layer = quantize_layer(module, 4, 1)
    layer.set_row(0, range_to_qparams(float(x.min()), float(x.max()), num_bits, symmetric))
    return layer


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("num_bits", [6, 8, 10])
def test_every_row_is_quantized_by_its_own_range(symmetric, num_bits, monkeypatch):
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, "reference")
    found = _measuring(LINEAR, symmetric, num_bits)(ROWS)
    for i in range(3):
        for j in range(5):
            alone = _calibrated_on(LINEAR, ROWS[i, j], symmetric, num_bits)(ROWS[i, j])
            assert found[i, j].equal(alone), (i, j)


@pytest.mark.parametrize("symmetric", [False, True])
def test_kernels_agree_on_rows(symmetric, monkeypatch):
    layer = _measuring(LINEAR, symmetric)
    found = layer(ROWS)
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, "reference")
    torch.testing.assert_close(found, layer(ROWS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("num_bits", [6, 10])
def test_every_image_is_quantized_by_its_own_range(symmetric, num_bits):
    """By whatever kernel runs here: an image alone takes the same one."""
    layer = _measuring(CONV, symmetric, num_bits)
    for images in (IMAGES, IMAGES.to(memory_format=torch.channels_last)):
        found = layer(images)
        for i in range(3):
            assert found[i].equal(_calibrated_on(CONV, IMAGES[i], symmetric, num_bits)(images[i : i + 1])[0])
    assert layer(IMAGES[1]).equal(layer(IMAGES)[1])


def test_measured_parameters_are_those_of_the_ranges_bit_for_bit():
    lo, hi = ROWS.amin(-1).reshape(-1), ROWS.amax(-1).reshape(-1)
    for symmetric in (False, True):
        found, expected = (f(lo, hi, 7, symmetric) for f in (measured_qparams, range_to_qparams))
        assert found.scale.equal(expected.scale) and found.zero_point.equal(expected.zero_point)


def test_a_row_that_is_not_finite_shows_and_stays_alone():
    layer, broken = _measuring(LINEAR), ROWS.clone()
    broken[1, 2, 3], broken[2, 2, 3] = float("nan"), float("inf")
    found, whole = layer(broken), layer(ROWS)
    assert not found[1, 2].isfinite().any() and not found[2, 2].isfinite().any()
    found[1, 2], found[2, 2] = whole[1, 2], whole[2, 2]
    assert found.equal(whole)


def test_empty_inputs_and_state():
    layer = _measuring(LINEAR)
    assert layer(torch.empty(0, 20)).shape == (0, 6) and layer(torch.empty(2, 0, 20)).shape == (2, 0, 6)
    assert _measuring(CONV)(torch.empty(0, 4, 5, 5)).shape == (0, 6, 5, 5)
    other = QuantizedLinear.empty_like(LINEAR, 4, 1, form=FORMS[False])
    with pytest.raises(CalibrationError, match="never calibrated"):
        other(ROWS)
    other.load_state_dict(layer.state_dict())
    assert other(ROWS).equal(layer(ROWS)) and "measured=True" in repr(other)
    assert layer.features == {"row scales"} and quantize_layer(LINEAR, 8, 1).features == set()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    for module, x in ((LINEAR, ROWS / 100), (CONV, IMAGES)):
        layer = _measuring(module).to(dtype)
        y, expected = layer(x.to(dtype)), layer(x.to(dtype).float())
        assert y.dtype == dtype and layer.input_scale.dtype == torch.float32
        torch.testing.assert_close(y.float(), expected, rtol=2e-2, atol=1e-2 * float(expected.abs().max()))
