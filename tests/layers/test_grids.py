"""Layers whose weights have groups or zero points: against their float twins with the weights that codes stand for."""

import copy

import pytest
import torch
from oracles import fake_quantize
from torch import nn

from halftone.kernels import registry
from halftone.layers import ExecutionMode, LayerForm, quantize_layer
from halftone.numerics import range_to_qparams

torch.manual_seed(0)
FLOATS = [
    (nn.Linear(100, 6), torch.randn(2, 5, 100)),
    (nn.Conv2d(8, 6, 3, padding=1), torch.randn(2, 8, 7, 6)),
    (nn.Conv2d(8, 6, 3, groups=2, bias=False), torch.randn(2, 8, 7, 6)),
]
FORMS = [
    LayerForm(group_size=32),
    LayerForm(has_weight_zero_points=True),
    LayerForm(group_size=32, has_weight_zero_points=True),
]


def _layer(module, x, form, weight_bits=4, num_bits=8):
    layer = quantize_layer(module, weight_bits, 1, "layer", form=form)
    layer.set_row(0, range_to_qparams(x.min(), x.max(), num_bits))
    return layer


def _float_with(module, layer):
    twin = copy.deepcopy(module)
    with torch.no_grad():
        twin.weight.copy_(layer.dequantized_weight())
    return twin


@pytest.mark.parametrize("module, x", FLOATS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weight_bits", [4, 7, 8])
@pytest.mark.parametrize("num_bits", [6, 8, 10])
def test_integer_mode_equals_simulated_quantization(module, x, form, weight_bits, num_bits):
    layer = _layer(module, x, form, weight_bits, num_bits)
    simulated = _float_with(module, layer)(fake_quantize(x, range_to_qparams(x.min(), x.max(), num_bits)))
    torch.testing.assert_close(layer(x), simulated, rtol=1e-4, atol=1e-5)
    layer.mode = ExecutionMode.WEIGHT_ONLY
    torch.testing.assert_close(layer(x), _float_with(module, layer)(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("module, x", FLOATS)
@pytest.mark.parametrize("form", FORMS)
def test_kernels_agree(module, x, form, monkeypatch):
    layer = _layer(module, x, form)
    y = layer(x)
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, "reference")
    torch.testing.assert_close(layer(x), y, rtol=1e-5, atol=1e-6)


def test_zero_points_up_to_seven_bits_need_no_kernel_of_their_own():
    form = FORMS[1]
    assert form.features(7) == frozenset() and form.features(8) == {"9-bit weights"}
    assert FORMS[0].features(4) == {"weight groups"} and FORMS[2].features(8) == {"weight groups", "9-bit weights"}


@pytest.mark.parametrize("form", FORMS)
def test_state_copies_and_casts(form):
    module, x = FLOATS[0]
    layer = _layer(module, x, form)
    expected, names = layer(x), set(layer.state_dict())
    assert ("weight_zero_point" in names) == form.has_weight_zero_points
    assert layer.weight_scale.shape == ((6,) if form.group_size is None else (6, 4))
    assert copy.deepcopy(layer)(x).equal(expected)
    other = type(layer).empty_like(module, 4, 1, form=form)
    other.load_state_dict(layer.state_dict())
    assert other(x).equal(expected)
    cast = copy.deepcopy(layer).to(torch.bfloat16)
    assert cast.weight_scale.equal(layer.weight_scale) and cast(x.to(torch.bfloat16)).dtype == torch.bfloat16
    if form.has_weight_zero_points:
        assert cast.weight_zero_point.dtype == torch.int8
        with torch.no_grad():
            other.weight_zero_point += 1  # a change is noticed
        assert not other(x).equal(expected)


def test_finer_grids_lose_less():
    """Weights of very different sizes within a channel, and weights that are all positive."""
    weight = torch.randn(6, 100) * torch.logspace(-2, 0, 100)
    errors = {}
    for name, values in (("sizes", weight), ("positive", weight.abs())):
        module = nn.Linear(100, 6)
        with torch.no_grad():
            module.weight.copy_(values)
        for form in (LayerForm(), *FORMS):
            layer = quantize_layer(module, 4, 1, form=form)
            errors[name, form] = float((layer.dequantized_weight() - values).square().mean())
    assert errors["sizes", FORMS[0]] < 0.7 * errors["sizes", LayerForm()]
    assert errors["positive", FORMS[1]] < 0.4 * errors["positive", LayerForm()]
