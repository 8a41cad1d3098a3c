"""Grids by hand, and what holds for all of them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halftone.errors import InputError, NonFiniteError
from halftone.numerics import quantize_weight
from halftone.weight_grid import WeightGrid, by_group, group_count, range_grid


def test_symmetric_groups_by_hand():
    """Four bits, groups of 2 in a channel of 5: the last group has one weight."""
    weight = torch.tensor([[7.0, -3.4, 0.7, 0.36, -14.0], [0.0, 0.0, 1.1, -2.0, 0.5]])
    grid = range_grid(weight, 4, 2)
    expected = torch.tensor([[1.0, 0.1, 2.0], [1.0, 2 / 7, 0.5 / 7]])
    assert torch.allclose(grid.scale, expected) and grid.zero_point is None and (grid.lowest, grid.highest) == (-7, 7)
    codes = grid.codes(weight)
    assert codes.tolist() == [[7, -3, 7, 4, -7], [0, 0, 4, -7, 7]]
    assert torch.allclose(grid.values(codes)[0], torch.tensor([7.0, -3.0, 0.7, 0.4, -14.0]))


def test_asymmetric_channels_by_hand():
    """Three bits are eight steps' ends: 0 to 7 in steps of 1, and -2 to 5; codes are moved by four to be signed."""
    weight = torch.tensor([[0.0, 1.2, 7.0], [-2.0, 5.0, 0.4], [0.0, 0.0, 0.0], [-7.0, -1.0, -3.0]])
    grid = range_grid(weight, 3, symmetric=False)
    assert grid.scale.tolist() == [1.0, 1.0, 1.0, 1.0] and grid.zero_point.tolist() == [-4, -2, -4, 3]
    assert grid.zero_point.dtype == torch.int8 and (grid.lowest, grid.highest) == (-4, 3)
    codes = grid.codes(weight)
    assert codes.tolist() == [[-4, -3, 3], [-4, 3, -2], [-4, -4, -4], [-4, 2, 0]]
    assert grid.centred(codes).tolist() == [[0, 1, 7], [-2, 5, 0], [0, 0, 0], [-7, -1, -3]]
    assert grid.values(codes).tolist() == [[0, 1, 7], [-2, 5, 0], [0, 0, 0], [-7, -1, -3]]


def test_groups_go_through_the_kernel_of_a_convolution():
    """Order of memory: input channel, row, column."""
    weight = torch.arange(1.0, 19.0).view(1, 2, 3, 3)
    grid = range_grid(weight, 8, 4)
    assert torch.allclose(grid.scale * 127, torch.tensor([[4.0, 8.0, 12.0, 16.0, 18.0]]))
    assert torch.allclose(
        grid.spread(grid.scale, weight.shape).view(-1)[[0, 3, 4, 17]] * 127, torch.tensor([4.0, 4, 8, 18])
    )
    assert by_group(weight, 4).tolist()[-1] == [17.0, 18.0, 0.0, 0.0] and group_count(weight.shape, 4) == 5


@given(
    shape=st.sampled_from([(3, 7), (5, 64), (4, 3, 3, 2), (2, 40, 1, 1)]),
    num_bits=st.integers(2, 8),
    group_size=st.sampled_from([None, 1, 3, 32]),
    symmetric=st.booleans(),
    shift=st.sampled_from([0.0, 3.0, -3.0]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=100, deadline=None)
def test_every_weight_is_within_half_a_step_and_zero_is_exact(shape, num_bits, group_size, symmetric, shift, seed):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + shift
    weight[0] = 0.0
    grid = range_grid(weight, num_bits, group_size, symmetric)
    codes = grid.codes(weight)
    assert codes.dtype == torch.int8 and int(codes.min()) >= grid.lowest and int(codes.max()) <= grid.highest
    centred = grid.centred(codes)
    assert centred.dtype == (torch.int16 if num_bits == 8 and not symmetric else torch.int8)
    assert centred.long().equal(codes.long() - (0 if symmetric else grid.spread(grid.zero_point, weight.shape).long()))
    step = grid.spread(grid.scale, weight.shape)
    # With a zero point that was rounded, an end of the range may be another half step away.
    assert bool(((grid.values(codes) - weight).abs() <= step * (0.5 if symmetric else 1.0) * 1.0001).all())
    assert not grid.values(codes)[0].any()


@pytest.mark.parametrize("num_bits", [2, 4, 8])
def test_plain_grid_is_rounding_to_nearest(num_bits):
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    grid, (integers, scale) = range_grid(weight, num_bits), quantize_weight(weight, num_bits)
    assert grid.scale.equal(scale) and grid.codes(weight).equal(integers) and grid.tensors == (grid.scale,)
    whole = range_grid(weight, num_bits, 45)
    assert whole.scale.view(-1).equal(scale) and whole.codes(weight).equal(integers)


@pytest.mark.parametrize("symmetric", [True, False])
def test_what_has_no_grid(symmetric):
    with pytest.raises(NonFiniteError, match="1 NaN"):
        range_grid(torch.tensor([[1.0, math.nan]]), 4, 1, symmetric)
    with pytest.raises(InputError, match="2 to 8"):
        range_grid(torch.ones(1, 2), 9, 1, symmetric)


def test_tensors_of_an_asymmetric_grid():
    grid = WeightGrid(4, torch.ones(2), torch.zeros(2, dtype=torch.int8))
    assert [tensor.dtype for tensor in grid.tensors] == [torch.float32, torch.int8]
