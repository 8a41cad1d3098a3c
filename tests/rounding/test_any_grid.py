"""GPTQ, nearest and the search for scales on grids with groups and zero points, against independent code."""

import itertools

import pytest
import torch
from torch import nn

from halftone.rounding import GPTQ, AdaRound, Nearest, Unit, weight_grid
from halftone.rounding.gptq import gptq
from halftone.weight_grid import range_grid

GRIDS = list(itertools.product((None, 5), (True, False)))[1:]  # group size, symmetric; not the plain one


def _problem(outputs=6, length=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, length, generator=generator) + 0.5
    inputs = torch.randn(300, 4, generator=generator) @ torch.randn(4, length, generator=generator)
    inputs += 0.2 * torch.randn(300, length, generator=generator)
    return weight, inputs.double().T @ inputs.double() / 300


def _columns(grid, shape):
    """Scale and zero point at each weight, in plain Python."""
    out, length = shape
    size = grid.group_size or length
    zero = grid.zero_point if grid.zero_point is not None else torch.zeros_like(grid.scale)
    scale, zero = (tensor.view(out, -1).double() for tensor in (grid.scale, zero))
    of = [[column // size for column in range(length)] for _ in range(out)]
    pick = lambda table: torch.tensor([[table[i, j] for j in of[i]] for i in range(out)], dtype=torch.float64)  # noqa: E731
    return pick(scale), pick(zero)


def _surgeon(weight, scale, zero, moments, low, high):
    """One weight of one row at a time, the inverse made anew for the weights still free (Frantar et al., eq. 2)."""
    codes = torch.zeros_like(weight)
    for row in range(len(weight)):
        values = weight[row].clone()
        for column in range(weight.shape[1]):
            inverse = torch.linalg.inv(moments[column:, column:])
            code = ((values[column] / scale[row, column]).round() + zero[row, column]).clamp(low, high)
            error = (values[column] - (code - zero[row, column]) * scale[row, column]) / inverse[0, 0]
            values[column:] -= error * inverse[0]
            codes[row, column] = code
    return codes.to(torch.int8)


@pytest.mark.parametrize("group_size, symmetric", GRIDS)
@pytest.mark.parametrize("num_bits", [3, 4, 8])
def test_gptq_equals_an_independent_surgeon(group_size, symmetric, num_bits):
    for seed in range(4):
        weight, moments = _problem(seed=seed)
        grid = range_grid(weight, num_bits, group_size, symmetric)
        scale, zero = _columns(grid, weight.shape)
        damped = moments + torch.eye(len(moments), dtype=torch.float64) * 0.01 * moments.diagonal().mean()
        expected = _surgeon(weight.double(), scale, zero, damped, grid.lowest, grid.highest)
        zero_point = None if symmetric else zero
        found = gptq(weight.double(), scale, moments, num_bits, ordered=False, block_size=3, zero_point=zero_point)
        assert torch.equal(found, expected)
        order = moments.diagonal().argsort(descending=True)
        moved = _surgeon(
            *(part[:, order] for part in (weight.double(), scale, zero)),
            damped[order][:, order],
            grid.lowest,
            grid.highest,
        )
        found = gptq(weight.double(), scale, moments, num_bits, zero_point=zero_point)
        assert torch.equal(found[:, order], moved)


@pytest.mark.parametrize("layer", [nn.Linear(24, 6), nn.Conv2d(6, 8, 3, padding=1, groups=2)], ids=str)
@pytest.mark.parametrize("group_size, symmetric", GRIDS)
def test_gptq_loses_less_than_nearest_on_the_same_grid(layer, group_size, symmetric):
    torch.manual_seed(0)
    layer.reset_parameters()  # made when the module was imported, with whatever numbers came then
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(8, 4, 24, generator=generator).cumsum(2)
    if isinstance(layer, nn.Conv2d):
        inputs = torch.randn(8, 6, 9, 9, generator=generator).cumsum(2)
    unit = Unit("mid.layer", layer, {"mid.layer": layer})
    grid = range_grid(layer.weight, 4, group_size, symmetric)
    rule, errors = GPTQ(), []
    with torch.no_grad():
        seen = rule.collector(unit, len(inputs), len(inputs))
        seen.see((inputs,), {}, None)
        found = rule.round(unit, {"mid.layer": grid}, 4, seen, torch.Generator())["mid.layer"]
        nearest = Nearest().round(unit, {"mid.layer": grid}, 4, None, torch.Generator())["mid.layer"]
        assert torch.equal(nearest, grid.codes(layer.weight)) and found.dtype == torch.int8
        assert (
            found.shape == layer.weight.shape and int(found.min()) >= grid.lowest and int(found.max()) <= grid.highest
        )
        for codes in (found, nearest):
            changed = torch.func.functional_call(layer, {"weight": grid.values(codes)}, (inputs,))
            errors.append(float((changed - layer(inputs)).square().mean()))
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("group_size, symmetric", [(None, True), *GRIDS])
def test_search_finds_a_scale_with_less_error(group_size, symmetric):
    """Against every fraction of the range's scale on a fine grid, with the zero point of the range."""
    weight = torch.randn(5, 23, generator=torch.Generator().manual_seed(0)) ** 3
    full = range_grid(weight, 3, group_size, symmetric)
    found = weight_grid(weight, 3, "mse", group_size, symmetric)
    assert found.scale.shape == full.scale.shape and bool((found.scale <= full.scale).all())
    if not symmetric:
        assert torch.equal(found.zero_point, full.zero_point)
    scale, zero = _columns(full, weight.shape)
    chosen, _ = _columns(found, weight.shape)
    size = group_size or 23
    for row, start in itertools.product(range(5), range(0, 23, size)):
        part = slice(start, start + size)
        values, steps, zeros = weight[row, part].double(), scale[row, part], zero[row, part]

        def error(factor, values=values, steps=steps, zeros=zeros):
            codes = ((values / (steps * factor)).round() + zeros).clamp(full.lowest, full.highest)
            return float(((codes - zeros) * steps * factor - values).abs().pow(2.4).sum())

        best = min(error(step / 100) for step in range(16, 101))
        assert error(float(chosen[row, start] / scale[row, start])) <= 1.1 * best + 1e-9
    assert weight_grid(weight, 3, "range", group_size, symmetric).scale.equal(full.scale)


def test_rules_tell_which_grids_they_take():
    assert (GPTQ.any_grid, Nearest.any_grid, AdaRound.any_grid) == (True, True, False)
