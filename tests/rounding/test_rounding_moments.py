"""Second moments: against covariances, explicit patches, and the error of a layer's real output."""

import math

import pytest
import torch
from torch import nn

from halftone.errors import CalibrationError, NonFiniteError
from halftone.rounding.moments import SecondMoments, grouped_weight, moments_bytes

CONVS = [
    nn.Conv2d(3, 5, 3, padding=1),
    nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1), groups=2),
    nn.Conv2d(3, 4, 3, padding="same", dilation=2),
    nn.Conv2d(4, 4, 1, groups=4),
]


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_linear_by_hand():
    layer = nn.Linear(2, 3)
    seen = SecondMoments(layer, "layer", 100)
    seen.see((torch.tensor([[1.0, 2.0], [3.0, 4.0]]),), {}, None)
    seen.see((torch.tensor([[[0.0, 2.0]]]),), {}, None)
    assert torch.allclose(seen.mean(), torch.tensor([[[10.0, 14.0], [14.0, 24.0]]]) / 3)
    assert seen.mean() is seen.mean() is seen.total  # no second matrix


@pytest.mark.parametrize("layer", CONVS, ids=str)
def test_quadratic_form_is_the_error_of_the_output(layer):
    """With other weights the output changes by d H d^T, averaged over rows and positions and summed over channels."""
    x, other = _random(3, layer.in_channels, 7, 6), _random(*layer.weight.shape, seed=1)
    with torch.no_grad():
        seen = SecondMoments(layer, "layer", 10**9)
        seen.see((x[:2],), {}, None)
        seen.see((x[2:],), {}, None)
        change = layer._conv_forward(x, other, None).double() - layer._conv_forward(x, layer.weight, None).double()
        expected = change.square().sum(dim=1).mean()
        off = grouped_weight(layer, other - layer.weight).double()
        assert float((torch.bmm(off, seen.mean().double()) * off).sum()) == pytest.approx(float(expected), rel=1e-5)


def test_some_positions_stand_for_all():
    layer = nn.Linear(4, 4)
    x = _random(64, 1000, 4)
    thinned, whole = SecondMoments(layer, "layer", 100), SecondMoments(layer, "layer", 1000)
    for seen in (thinned, whole):
        seen.see((x,), {}, None)
    assert thinned.count == 6400 and whole.count == 64000
    assert torch.allclose(thinned.mean(), whole.mean(), atol=0.1)
    one = SecondMoments(layer, "layer", 1)
    one.see((x[:2],), {}, None)
    picked = torch.stack([x[0, 0], x[1, 1]]).double()
    assert one.count == 2 and torch.allclose(one.mean()[0].double(), picked.T @ picked / 2, rtol=1e-5)


def test_memory_of_the_sums():
    for layer in (nn.Linear(10, 3), CONVS[1]):
        seen = SecondMoments(layer, "layer", 10)
        seen.see((_random(1, 10) if isinstance(layer, nn.Linear) else _random(1, 4, 7, 6),), {}, None)
        assert seen.total.nbytes == moments_bytes(layer)


def test_what_cannot_be_used_names_the_layer():
    seen = SecondMoments(nn.Linear(2, 2), "mid.proj", 10)
    with pytest.raises(CalibrationError, match=r"mid\.proj was never called"):
        seen.mean()
    seen.see((torch.tensor([[1.0, math.inf]]),), {}, None)
    with pytest.raises(NonFiniteError, match=r"layer mid\.proj are not finite"):
        seen.mean()
