"""Affine quantization against hand-computed values and its own definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import fake_quantize

from halftone.errors import InputError, NonFiniteError
from halftone.numerics import (
    MIN_SCALE,
    QParams,
    dequantize,
    quantize,
    quantize_weight,
    range_to_qparams,
)

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
bits = st.integers(2, 16)


def test_asymmetric_range_by_hand():
    qparams = range_to_qparams(-1.0, 3.0, 2)
    assert qparams.scale.item() == pytest.approx(4 / 3)
    assert qparams.zero_point.item() == 1  # round(0.75)
    assert (qparams.scale.dtype, qparams.zero_point.dtype) == (torch.float32, torch.int32)


@pytest.mark.parametrize("lo, hi, zero_point", [(2.0, 4.0, 0), (-4.0, -2.0, 255)])
def test_range_is_widened_to_contain_zero(lo, hi, zero_point):
    qparams = range_to_qparams(lo, hi, 8)
    assert qparams.scale.item() == pytest.approx(4 / 255)
    assert qparams.zero_point.item() == zero_point


def test_symmetric_range_has_the_middle_code_as_zero():
    qparams = range_to_qparams(-1.0, 2.54, 8, symmetric=True)
    assert qparams.scale.item() == pytest.approx(0.02)
    assert qparams.zero_point.item() == 128
    assert quantize(torch.tensor([-2.54, 0.0, 2.54]), qparams.scale, 128, 8).tolist() == [1, 128, 255]


def test_all_zero_range_gives_scale_one():
    qparams = range_to_qparams(0.0, 0.0, 8)
    assert (qparams.scale.item(), qparams.zero_point.item()) == (1.0, 0)


@given(lo=finite, hi=finite, num_bits=bits, symmetric=st.booleans())
@settings(max_examples=200, deadline=None)
def test_scale_is_usable_for_every_finite_range(lo, hi, num_bits, symmetric):
    qparams = range_to_qparams(min(lo, hi), max(lo, hi), num_bits, symmetric)
    scale = qparams.scale.item()
    assert scale >= MIN_SCALE and math.isfinite(scale) and math.isfinite(1 / scale)
    assert 0 <= qparams.zero_point.item() <= 2**num_bits - 1
    assert fake_quantize(torch.zeros(1), qparams).item() == 0.0


@pytest.mark.parametrize("lo, hi", [(math.nan, 1.0), (-math.inf, 1.0), (0.0, math.inf)])
def test_non_finite_range_is_refused(lo, hi):
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        range_to_qparams(lo, hi, 8)


def test_reversed_range_and_bad_bits_are_refused():
    with pytest.raises(InputError, match="below its start"):
        range_to_qparams(1.0, -1.0, 8)
    for num_bits in (1, 17):
        with pytest.raises(InputError, match="2 to 16"):
            QParams(torch.tensor(1.0), torch.tensor(0), num_bits)


def test_quantize_rounds_half_to_even_and_clamps():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, 1e30, -1e30])
    assert quantize(x, 1.0, 10, 8).tolist() == [10, 12, 12, 10, 255, 0]


def test_quantize_multiplies_by_the_reciprocal():
    scale, x = torch.tensor(49.0), torch.tensor([24.5])
    product = (x * (1.0 / scale)).round().int()
    assert quantize(x, scale, 0, 8).equal(product)


@given(x=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20), num_bits=bits)
@settings(max_examples=100, deadline=None)
def test_round_trip_is_within_half_a_step(x, num_bits):
    values = torch.tensor(x)
    qparams = range_to_qparams(values.min(), values.max(), num_bits)
    error = (fake_quantize(values, qparams) - values).abs().max().item()
    assert error <= qparams.scale.item() * (0.5 + 0.5 + 1e-3)  # the zero point is rounded too


def test_dequantize_by_hand():
    codes = torch.tensor([0, 3, 255], dtype=torch.int32)
    assert dequantize(codes, 0.5, 3).tolist() == [-1.5, 0.0, 126.0]


def test_quantize_weight_by_hand():
    integers, scale = quantize_weight(torch.tensor([[1.27, -0.634], [0.0, 0.0]]), 8)
    assert integers.tolist() == [[127, -63], [0, 0]]
    assert scale.tolist() == pytest.approx([0.01, 1.0])
    assert (integers.dtype, scale.dtype) == (torch.int8, torch.float32)


@pytest.mark.parametrize("num_bits", range(2, 9))
def test_quantize_weight_uses_the_symmetric_range(num_bits):
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    integers, scale = quantize_weight(weight, num_bits)
    limit = 2 ** (num_bits - 1) - 1
    assert integers.abs().flatten(1).amax(1).tolist() == [limit] * 5
    error = (integers * scale.view(-1, 1, 1, 1) - weight).abs()
    assert (error <= scale.view(-1, 1, 1, 1) * 0.5001).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_quantize_weight_refuses_non_finite(bad):
    with pytest.raises(NonFiniteError, match="1 NaN or infinite"):
        quantize_weight(torch.tensor([[1.0, bad]]), 8)


def test_quantize_weight_refuses_more_than_eight_bits():
    with pytest.raises(InputError, match="2 to 8"):
        quantize_weight(torch.ones(1, 1), 9)
