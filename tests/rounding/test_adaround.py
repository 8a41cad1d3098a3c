"""AdaRound against trying every rounding, on layers and on a block."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from halftone.errors import NonFiniteError, RecipeError
from halftone.numerics import quantize_weight
from halftone.rounding import AdaRound, Unit, build_rounding
from halftone.rounding.calls import CallCache


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _unit(module, **layers):
    return Unit("mid.unit", module, layers or {"mid.unit": module})


def _round(unit, calls, num_bits=4, rows=None, seed=0, **options):
    rule = AdaRound(**options)
    rows = rows or sum(len(args[0]) for args, _ in calls)
    seen = rule.collector(unit, rows, rows)
    with torch.no_grad():
        for args, kwargs in calls:
            seen.see(args, kwargs, unit.module(*args, **kwargs))
        scales = {name: quantize_weight(layer.weight, num_bits)[1] for name, layer in unit.layers.items()}
        return rule.round(unit, scales, num_bits, seen, torch.Generator().manual_seed(seed)), scales


def _output_error(layer, x, integers, scale):
    weight = integers * scale.view(-1, *[1] * (layer.weight.dim() - 1))
    with torch.no_grad():
        return float((torch.func.functional_call(layer, {"weight": weight}, (x,)) - layer(x)).double().square().sum())


def test_as_good_as_trying_all_roundings():
    """Six weights, 64 ways up or down for each output; inputs correlated enough that nearest is far from the best."""
    layer = nn.Linear(6, 3)
    with torch.no_grad():
        layer.weight.copy_(_random(3, 6, seed=1))
    x = _random(200, 1) + 0.3 * _random(200, 6, seed=2)
    found, scales = _round(_unit(layer), [((x,), {})])
    scale = scales["mid.unit"]
    floor = torch.floor(layer.weight / scale[:, None]).detach()
    choices = [floor + torch.tensor(up) for up in itertools.product((0, 1), repeat=6)]
    best = torch.empty(3, 6)
    for row in range(3):
        errors = [_row_error(layer, x, row, choice, scale) for choice in choices]
        best[row] = choices[min(range(64), key=errors.__getitem__)][row]
    nearest = quantize_weight(layer.weight, 4)[0]
    errors = [_output_error(layer, x, value, scale) for value in (found["mid.unit"], best, nearest)]
    assert errors[0] <= 1.2 * errors[1] and errors[0] < 0.5 * errors[2]


def _row_error(layer, x, row, choice, scale):
    off = choice[row].clamp(-7, 7) * scale[row] - layer.weight[row].detach()
    return float((x @ off).square().sum())


@pytest.mark.parametrize("layer", [nn.Linear(24, 6), nn.Conv2d(6, 8, 3, padding=1, groups=2)], ids=str)
def test_layers_lose_less_of_their_output(layer):
    x = _random(8, 4, 24).cumsum(2) if isinstance(layer, nn.Linear) else _random(8, 6, 9, 9).cumsum(2)
    found, scales = _round(_unit(layer), [((x[:5],), {}), ((x[5:],), {})], iterations=400)
    integers, scale = found["mid.unit"], scales["mid.unit"]
    assert integers.dtype == torch.int8 and integers.shape == layer.weight.shape
    nearest = quantize_weight(layer.weight, 4)[0]
    assert _output_error(layer, x, integers, scale) < 0.6 * _output_error(layer, x, nearest, scale)
    assert int((integers - nearest).abs().max()) <= 1


class _Block(nn.Module):
    """Two layers with a nonlinearity between them, called with a keyword and a shared tensor, as blocks are."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x, shift=None, scale=1.0):
        return x + self.second(functional.silu(self.first(x)) * scale + shift[:, None]), None


def _block_calls(rows=24):
    x, shift = _random(rows, 5, 8).cumsum(2), _random(rows, 16, seed=3)
    return [((x[start : start + 6],), {"shift": shift[start : start + 6]}) for start in range(0, rows, 6)]


def _block_error(block, calls, found, scales):
    weights = {f"{name.rpartition('.')[2]}.weight": value * scales[name][:, None] for name, value in found.items()}
    total = 0.0
    with torch.no_grad():
        for args, kwargs in calls:
            changed = torch.func.functional_call(block, weights, args, kwargs)[0]
            total += float((changed - block(*args, **kwargs)[0]).double().square().sum())
    return total


def test_block_is_reconstructed_as_a_whole():
    torch.manual_seed(0)
    block, calls = _Block(), _block_calls()
    unit = _unit(block, **{"mid.unit.first": block.first, "mid.unit.second": block.second})
    found, scales = _round(unit, calls, num_bits=3, iterations=500, batch_size=8)
    nearest = {name: quantize_weight(layer.weight, 3)[0] for name, layer in unit.layers.items()}
    assert _block_error(block, calls, found, scales) < 0.7 * _block_error(block, calls, nearest, scales)
    again, _ = _round(unit, calls, num_bits=3, iterations=500, batch_size=8)
    other, _ = _round(unit, calls, num_bits=3, iterations=500, batch_size=8, seed=1)
    assert all(torch.equal(again[name], found[name]) for name in found)
    assert any(not torch.equal(other[name], found[name]) for name in found)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in block.parameters())


def test_never_worse_than_nearest_even_with_a_schedule_that_is_too_short():
    torch.manual_seed(0)
    block, calls = _Block(), _block_calls()
    unit = _unit(block, **{"mid.unit.first": block.first, "mid.unit.second": block.second})
    nearest = {name: quantize_weight(layer.weight, 4)[0] for name, layer in unit.layers.items()}
    found, scales = _round(unit, calls, iterations=3, learning_rate=1.0, batch_size=2)
    assert _block_error(block, calls, found, scales) <= _block_error(block, calls, nearest, scales)


def test_weights_on_the_grid_stay_there():
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[7.0, 3.0, -2.0], [0.0, 0.0, 0.0]]))
    found, _ = _round(_unit(layer), [((_random(9, 3),), {})])
    assert found["mid.unit"].tolist() == [[7, 3, -2], [0, 0, 0]]


@pytest.mark.parametrize("broken", ["first", "second"])
def test_a_block_that_is_not_finite_is_named(broken):
    block = _Block()
    getattr(block, broken).bias.data[0] = math.inf
    unit = _unit(block, **{"mid.unit.first": block.first, "mid.unit.second": block.second})
    with pytest.raises(NonFiniteError, match=r"mid\.unit"):
        _round(unit, _block_calls(), iterations=3)


def test_cache_keeps_rows_evenly_and_gives_them_back():
    cache = CallCache(rows=10, kept_rows=4)
    x, common = torch.arange(10.0)[:, None], torch.tensor(7.0, dtype=torch.float64)
    for start in range(0, 10, 5):
        part = x[start : start + 5]
        cache.see((part, "text"), {"nested": {"double": part.half() * 2}, "common": common}, (part + 1, None))
    assert cache.kept == 4  # rows 0, 2, 5, 7
    args, kwargs, output = cache.rows(torch.tensor([1, 2]), torch.device("cpu"))
    assert args[0].tolist() == [[2.0], [5.0]] and args[1] == "text"
    assert kwargs["nested"]["double"].tolist() == [[4.0], [10.0]] and kwargs["common"] == 7.0
    assert kwargs["nested"]["double"].dtype == kwargs["common"].dtype == torch.float32
    assert output[0].tolist() == [[3.0], [6.0]] and output[1] is None


def test_memory_of_what_is_kept():
    block = _Block()
    unit = _unit(block, **{"mid.unit.first": block.first})
    assert AdaRound().memory_bytes(unit, 100, 24) == 2400
    layer = nn.Linear(10, 3)
    assert AdaRound().memory_bytes(_unit(layer), 100, 24) == 4 * 100


@pytest.mark.parametrize(
    "options, message",
    [
        ({"iteration": 5}, "did you mean 'iterations'"),
        ({"iterations": 0}, "adaround's iterations is 0"),
        ({"num_samples": 10**10}, "num_samples is 10000000000; allowed is an integer from 1 to 1000000"),
        ({"batch_size": 2.5}, "adaround's batch_size is 2.5"),
        ({"learning_rate": 0.0}, "adaround's learning_rate is 0.0"),
        ({"regularization": -1}, "adaround's regularization is -1"),
        ({"blocks": 3}, "adaround's blocks is 3"),
    ],
)
def test_options_that_cannot_be_used(options, message):
    with pytest.raises(RecipeError, match=message):
        build_rounding("adaround", **options)
