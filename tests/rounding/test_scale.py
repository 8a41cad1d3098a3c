"""Scales: the range by hand, and the search against trying every scale of a fine grid."""

import math

import pytest
import torch

from halftone.errors import InputError, NonFiniteError
from halftone.numerics import quantize_weight
from halftone.rounding import weight_scale


def _weight(rows, length, seed=0):
    return torch.randn(rows, length, generator=torch.Generator().manual_seed(seed))


def _error(row, scale, limit):
    """Straight from the definition, in plain Python."""
    total = 0.0
    for value in row.tolist():
        code = max(-limit, min(limit, round(value / scale)))
        total += abs(value - scale * code) ** 2.4
    return total


def test_range_by_hand():
    assert weight_scale(torch.tensor([[7.0, -3.5], [0.0, 0.0]]), 4).tolist() == [1.0, 1.0]
    weight = _weight(5, 30)
    assert torch.equal(weight_scale(weight, 4), quantize_weight(weight, 4)[1])


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
def test_search_is_as_good_as_trying_everything(num_bits):
    limit = 2 ** (num_bits - 1) - 1
    weight = _weight(4, 200)
    found, largest = weight_scale(weight, num_bits, "mse"), weight_scale(weight, num_bits)
    for row, scale, most in zip(weight, found.tolist(), largest.tolist(), strict=True):
        best = min(_error(row, most * step / 400, limit) for step in range(64, 401))
        assert _error(row, scale, limit) <= best * 1.03
        assert _error(row, scale, limit) <= _error(row, most, limit) and scale <= most


def test_ternary_by_hand():
    """2 bits: -s, 0, s. Of weights 1 (seven times) and 1.5 all become s, so that the error is 7 |1 - s|**2.4 + (1.5 -
    s)**2.4, least where 7 (s - 1)**1.4 = (1.5 - s)**1.4: (s - 1) / (1.5 - s) = 7**(-1 / 1.4) = 0.249, s = 1.0997."""
    weight = torch.tensor([[1.0] * 7 + [1.5]])
    assert float(weight_scale(weight, 2, "mse")) == pytest.approx(1.0997, abs=0.01)


def test_an_outlier_is_clipped_and_zero_channels_are_left_alone():
    weight = torch.cat([_weight(1, 5000), torch.zeros(1, 5000)])
    weight[0, 0] = 12.0
    found, largest = weight_scale(weight, 4, "mse"), weight_scale(weight, 4)
    assert found[0] < 0.8 * largest[0] and found[1] == 1.0


def test_scales_follow_the_weights_and_not_their_size_or_chunk(monkeypatch):
    weight = _weight(6, 64)
    found = weight_scale(weight, 4, "mse")
    assert torch.allclose(weight_scale(weight * 2.0**-40, 4, "mse"), found * 2.0**-40, rtol=1e-6)
    monkeypatch.setattr("halftone.rounding.scale._CHUNK", 100)
    assert torch.equal(weight_scale(weight, 4, "mse"), found)
    shaped = weight_scale(weight.view(6, 4, 4, 4), 4, "mse")
    assert torch.equal(shaped, found) and shaped.dtype == torch.float32


def test_wrong_input():
    with pytest.raises(InputError, match="did you mean 'mse'"):
        weight_scale(torch.ones(1, 1), 4, "msee")
    with pytest.raises(NonFiniteError):
        weight_scale(torch.tensor([[math.nan]]), 4, "mse")
