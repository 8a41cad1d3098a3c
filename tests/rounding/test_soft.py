"""Soft rounding: where it starts, the schedule by hand, where it ends."""

import math

import pytest
import torch

from halftone.errors import NonFiniteError
from halftone.rounding.soft import Schedule, SoftWeight, optimize


def test_starts_at_the_weight_itself_and_rounds_to_nearest():
    weight = torch.tensor([[0.25, -1.6, 2.9], [0.5, -0.74, 0.1]])
    scale = torch.tensor([1.0, 0.25])
    soft = SoftWeight(weight, scale, 3)
    assert torch.allclose(soft.fraction(), torch.tensor([[0.25, 0.4, 0.9], [0.0, 0.04, 0.4]]), atol=1e-5)
    value = soft.value(soft.fraction())
    assert torch.allclose(value, torch.tensor([[0.25, -1.6, 2.9], [0.5, -0.74, 0.1]]), atol=1e-5)
    assert soft.integers().tolist() == [[0, -2, 3], [2, -3, 0]] and soft.integers().dtype == torch.int8


def test_beyond_the_grid_weights_are_clamped():
    soft = SoftWeight(torch.tensor([[5.2, -7.9]]), torch.tensor([1.0]), 3)
    assert soft.value(soft.fraction()).tolist() == [[3.0, -3.0]] and soft.integers().tolist() == [[3, -3]]


def test_beta_falls_linearly_after_the_warmup():
    schedule = Schedule(iterations=11, learning_rate=0.1, regularization=1.0, warmup=0.2)
    assert [schedule.beta(step) for step in range(11)] == [None, None, 20, 17.75, 15.5, 13.25, 11, 8.75, 6.5, 4.25, 2]
    assert Schedule(1, 0.1, 1.0).beta(0) == 20.0


def test_regularizer_decides_and_a_loss_without_it_need_not():
    soft = SoftWeight(torch.tensor([[0.3, 0.7, 0.45]]), torch.tensor([1.0]), 4)
    optimize([soft], lambda h: 0.0 * h[0].sum(), Schedule(300, 0.05, 1.0), "layer")
    assert torch.allclose(soft.fraction(), torch.tensor([[0.0, 1.0, 0.0]]), atol=1e-3)


def test_loss_pulls_a_weight_to_the_farther_integer():
    soft = SoftWeight(torch.tensor([[0.3, 0.7]]), torch.tensor([1.0]), 4)
    wanted = torch.tensor([[1.0, 1.0]])
    optimize([soft], lambda h: 100 * (soft.value(h[0]) - wanted).square().sum(), Schedule(300, 0.05, 0.1), "layer")
    assert soft.integers().tolist() == [[1, 1]]


def test_a_loss_that_is_not_finite_names_the_place():
    soft = SoftWeight(torch.tensor([[0.3]]), torch.tensor([1.0]), 4)
    losses = iter([1.0, 1.0, math.nan])
    with pytest.raises(NonFiniteError, match=r"rounding of mid\.block became NaN or infinite in iteration 3"):
        optimize([soft], lambda h: h[0].sum() * next(losses), Schedule(9, 0.1, 0.0), "mid.block")
