"""GPTQ against an independent Optimal Brain Surgeon, closed forms, and moments that are hard to factorize."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from halftone.errors import NonFiniteError, RecipeError
from halftone.numerics import quantize_weight
from halftone.rounding import GPTQ, Unit, build_rounding
from halftone.rounding.gptq import gptq


def _problem(outputs=5, length=8, seed=0, rank=None):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, length, generator=generator, dtype=torch.float64)
    inputs = torch.randn(200, rank or length, generator=generator, dtype=torch.float64)
    mixed = inputs @ torch.randn(rank or length, length, generator=generator, dtype=torch.float64)
    scale = quantize_weight(weight, 4)[1].double()
    return weight, scale, mixed.T @ mixed / 200


def _error(weight, scale, integers, moments):
    off = integers.double() * scale[:, None] - weight
    return float((off @ moments * off).sum())


def _surgeon(weight, scale, moments, limit):
    """One weight of one row at a time, the inverse made anew for the weights still free (Frantar et al., eq. 2)."""
    result = torch.zeros_like(weight)
    for row in range(len(weight)):
        values = weight[row].clone()
        for column in range(weight.shape[1]):
            inverse = torch.linalg.inv(moments[column:, column:])
            code = (values[column] / scale[row]).round().clamp(-limit, limit)
            error = (values[column] - code * scale[row]) / inverse[0, 0]
            values[column:] -= error * inverse[0]
            result[row, column] = code
    return result.to(torch.int8)


@given(st.integers(0, 10_000), st.sampled_from([1, 3, 128]))
@settings(max_examples=25, deadline=None)
def test_equals_an_independent_surgeon(seed, block_size):
    weight, scale, moments = _problem(seed=seed)
    damped = moments + torch.eye(8, dtype=torch.float64) * 0.01 * moments.diagonal().mean()
    found = gptq(weight, scale, moments, 4, 0.01, ordered=False, block_size=block_size)
    assert torch.equal(found, _surgeon(weight, scale, damped, 7))


def test_order_goes_by_the_diagonal_and_is_undone():
    weight, scale, moments = _problem()
    order = moments.diagonal().argsort(descending=True)
    damped = moments + torch.eye(8, dtype=torch.float64) * 0.01 * moments.diagonal().mean()
    expected = torch.empty(5, 8, dtype=torch.int8)
    expected[:, order] = _surgeon(weight[:, order], scale, damped[order][:, order], 7)
    assert torch.equal(gptq(weight, scale, moments, 4), expected)


@pytest.mark.parametrize("num_bits", [2, 4, 8])
def test_inputs_without_correlation_give_rounding_to_nearest(num_bits):
    weight, _, _ = _problem()
    scale = quantize_weight(weight, num_bits)[1].double()
    moments = torch.diag(torch.arange(1.0, 9.0, dtype=torch.float64))
    assert torch.equal(gptq(weight, scale, moments, num_bits), quantize_weight(weight, num_bits, scale.float())[0])


def test_correlated_inputs_leave_a_smaller_error_than_nearest():
    for seed in range(5):
        weight, scale, moments = _problem(20, 64, seed, rank=16)
        nearest = quantize_weight(weight, 4)[0]
        assert _error(weight, scale, gptq(weight, scale, moments, 4), moments) < 0.5 * _error(
            weight, scale, nearest, moments
        )


def test_dead_columns_are_rounded_to_nearest():
    weight, scale, moments = _problem()
    moments[2], moments[:, 2] = 0, 0
    found = gptq(weight, scale, moments, 4)
    assert torch.equal(found[:, 2], quantize_weight(weight, 4)[0][:, 2])
    live = [0, 1, 3, 4, 5, 6, 7]
    damping = 0.01 * float(moments.diagonal().mean()) / float(moments.diagonal()[live].mean())
    expected = gptq(weight[:, live], scale, moments[live][:, live], 4, damping)
    assert torch.equal(found[:, live], expected)


@pytest.mark.parametrize("factor", [0.0, 1e-30, 1e30])
def test_moments_of_any_size_or_none(factor):
    weight, scale, moments = _problem(rank=2)
    found = gptq(weight, scale, moments * factor, 4)
    expected = quantize_weight(weight, 4)[0] if factor == 0 else gptq(weight, scale, moments, 4)
    assert torch.equal(found, expected) and int(found.abs().max()) <= 7


def test_moments_that_are_not_positive_are_damped_until_they_are():
    weight, scale, moments = _problem(length=3)
    moments[0, 1] = moments[1, 0] = 3 * moments.diagonal().max()
    assert gptq(weight, scale, moments, 4).shape == weight.shape


def _round(layer, inputs, num_bits=4, **options):
    rule = GPTQ(**options)
    unit = Unit("mid.layer", layer, {"mid.layer": layer})
    seen = rule.collector(unit, len(inputs), len(inputs))
    seen.see((inputs,), {}, None)
    scale = quantize_weight(layer.weight, num_bits)[1]
    return rule.round(unit, {"mid.layer": scale}, num_bits, seen, torch.Generator())["mid.layer"], scale


@pytest.mark.parametrize("layer", [nn.Linear(24, 6), nn.Conv2d(6, 8, 3, padding=1, groups=2)], ids=str)
def test_layers_lose_less_of_their_output(layer):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(8, 4, 24, generator=generator).cumsum(2)
    if isinstance(layer, nn.Conv2d):
        inputs = torch.randn(8, 6, 9, 9, generator=generator).cumsum(2)
    integers, scale = _round(layer, inputs)
    assert integers.dtype == torch.int8 and integers.shape == layer.weight.shape
    outputs = []
    with torch.no_grad():
        exact = layer(inputs)
        for found in (integers, quantize_weight(layer.weight, 4)[0]):
            weight = found * scale.view(-1, *[1] * (layer.weight.dim() - 1))
            changed = torch.func.functional_call(layer, {"weight": weight}, (inputs,))
            outputs.append(float((changed - exact).square().mean()))
    assert outputs[0] < 0.6 * outputs[1]


def test_single_precision_is_enough():
    """Of inputs so correlated that their moments have no inverse without damping; other integers, as good ones."""
    errors = [0.0, 0.0]
    for seed in range(10):
        weight, _, moments = _problem(16, 256, seed, rank=24)
        scale = quantize_weight(weight, 4)[1].double()
        for index, dtype in enumerate((torch.float64, torch.float32)):
            found = gptq(weight.to(dtype), scale.to(dtype), moments.to(dtype), 4)
            errors[index] += _error(weight, scale, found, moments)
    assert errors[1] == pytest.approx(errors[0], rel=0.03)


def test_inputs_that_are_not_finite_name_the_layer():
    with pytest.raises(NonFiniteError, match=r"mid\.layer"):
        _round(nn.Linear(4, 4), torch.full((1, 4), math.nan))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dampin": 0.1}, "did you mean 'damping'"),
        ({"damping": 0.0}, "gptq's damping is 0.0; allowed is a number over 0"),
        ({"ordered": 2}, "gptq's ordered is 2"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"num_samples": 10**10}, "num_samples is 10000000000; allowed is an integer from 1 to 1000000"),
        ({"block_size": 1.5}, "block_size is 1.5"),
        ({"positions_per_row": -1}, "positions_per_row is -1"),
    ],
)
def test_options_that_cannot_be_used(options, message):
    with pytest.raises(RecipeError, match=message):
        build_rounding("gptq", **options)
