"""The reference against int64 arithmetic: accumulators bit for bit, outputs by the written definition."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from halftone.kernels import reference
from halftone.kernels.registry import ConvGeometry
from halftone.numerics import quantize

num_bits_st = st.integers(2, 16)


def _codes(shape: tuple[int, ...], num_bits: int, seed: int, extreme: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    top = 2**num_bits - 1
    codes = torch.randint(0, top + 1, shape, generator=generator, dtype=torch.int32)
    return torch.where(codes > top // 2, top, 0).to(torch.int32) if extreme else codes


def _weight(shape: tuple[int, ...], seed: int, extreme: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    weight = torch.randint(-127, 128, shape, generator=generator)
    return (torch.sign(weight) * 127 if extreme else weight).to(torch.int8)


def _conv_int64(codes: torch.Tensor, weight: torch.Tensor, zero_point: int, geometry: ConvGeometry) -> torch.Tensor:
    """Straight int64 convolution, tap by tap."""
    padded = functional.pad(codes.long(), geometry.padding, value=zero_point)
    (n, _, height, width), (out, per_group, kh, kw) = padded.shape, weight.shape
    (down, across), (dy, dx), groups = geometry.stride, geometry.dilation, geometry.groups
    rows, columns = (height - dy * (kh - 1) - 1) // down + 1, (width - dx * (kw - 1) - 1) // across + 1
    result = torch.zeros(n, groups, out // groups, rows, columns, dtype=torch.int64)
    for y in range(kh):
        for x in range(kw):
            tap = padded[:, :, y * dy :: down, x * dx :: across][:, :, :rows, :columns]
            tap = tap.reshape(n, groups, per_group, rows, columns)
            kernel = weight[:, :, y, x].long().view(groups, out // groups, per_group)
            result += torch.einsum("ngcyx,gkc->ngkyx", tap, kernel)
    return result.flatten(1, 2)


@given(
    rows=st.integers(0, 5),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 9),
    num_bits=num_bits_st,
    seed=st.integers(0, 10**6),
    extreme=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_linear_accumulators_are_exact(rows, inputs, outputs, num_bits, seed, extreme):
    codes, weight = _codes((rows, inputs), num_bits, seed, extreme), _weight((outputs, inputs), seed, extreme)
    expected = torch.einsum("mk,nk->mn", codes.long(), weight.long())
    assert reference.int_accumulate_linear(codes, weight, num_bits).equal(expected)


@pytest.mark.parametrize("num_bits", [8, 10, 16])
@pytest.mark.parametrize("sign", [1, -1])
def test_linear_is_exact_in_the_worst_case_of_many_chunks(num_bits, sign):
    codes = torch.full((3, 5001), 2**num_bits - 1, dtype=torch.int32)
    codes[1] = 0
    codes[2, ::2] = 0
    weight = torch.full((2, 5001), 127 * sign, dtype=torch.int8)
    weight[1, ::3] = -127
    assert len(reference.plan_chunks(weight)) == 5
    expected = torch.einsum("mk,nk->mn", codes.long(), weight.long())
    assert reference.int_accumulate_linear(codes, weight, num_bits).equal(expected)


@given(length=st.integers(1, 4000), seed=st.integers(0, 100), extreme=st.booleans())
@settings(max_examples=50, deadline=None)
def test_chunks_cover_the_reduction_and_stay_exact(length, seed, extreme):
    weight = _weight((3, length), seed, extreme)
    chunks = reference.plan_chunks(weight)
    assert chunks[0][0] == 0 and chunks[-1][1] == length
    assert all(before[1] == after[0] for before, after in itertools.pairwise(chunks))
    for start, stop in chunks:
        assert start < stop
        assert weight[:, start:stop].int().abs().sum(1).max() * 128 <= 2**24


@given(
    n=st.integers(0, 2),
    groups=st.integers(1, 3),
    per_group=st.integers(1, 3),
    out_per_group=st.integers(1, 3),
    size=st.tuples(st.integers(5, 8), st.integers(5, 8)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(*[st.integers(0, 2)] * 4),
    num_bits=num_bits_st,
    seed=st.integers(0, 10**6),
    extreme=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_conv_accumulators_are_exact(
    n, groups, per_group, out_per_group, size, kernel, stride, dilation, padding, num_bits, seed, extreme
):
    geometry = ConvGeometry(stride, padding, dilation, groups)
    codes = _codes((n, groups * per_group, *size), num_bits, seed, extreme)
    weight = _weight((groups * out_per_group, per_group, *kernel), seed, extreme)
    zero_point = seed % 2**num_bits
    result = reference.int_accumulate_conv2d(codes, weight, num_bits, zero_point, geometry)
    assert result.equal(_conv_int64(codes, weight, zero_point, geometry))


@pytest.mark.parametrize("shape, kernel", [((3, 4, 40, 40), 3), ((1, 4, 40, 40), 1), ((7, 16, 4, 4), 3)])
def test_conv_is_exact_across_tiles(shape, kernel, monkeypatch):
    monkeypatch.setattr("halftone.kernels.reference_conv2d._TILE_ELEMENTS", 1)
    monkeypatch.setattr("halftone.kernels.reference_conv2d._TILE_PIXELS", 100)
    geometry = ConvGeometry(padding=(kernel // 2,) * 4)
    codes, weight = _codes(shape, 8, 0, False), _weight((5, shape[1], kernel, kernel), 0, False)
    result = reference.int_accumulate_conv2d(codes, weight, 8, 77, geometry)
    assert result.equal(_conv_int64(codes, weight, 77, geometry))


def _expected(acc: torch.Tensor, row_sum: torch.Tensor, scale, zero_point, weight_scale, bias) -> torch.Tensor:
    """The written definition, channels last: three float32 roundings."""
    y = (acc - zero_point * row_sum).to(torch.float32) * (weight_scale * scale)
    return y if bias is None else y + bias


@pytest.mark.parametrize("num_bits", [4, 8, 10, 16])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("inputs", [33, 3000])
def test_linear_output_follows_the_definition_bit_for_bit(num_bits, with_bias, inputs):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, inputs, generator=generator)
    weight, weight_scale = _weight((7, inputs), 0, False), torch.rand(7, generator=generator)
    bias = torch.randn(7, generator=generator) if with_bias else None
    scale, zero_point = torch.tensor(0.037).item(), 2**num_bits // 3
    codes = quantize(x, scale, zero_point, num_bits).long()
    acc = torch.einsum("abk,nk->abn", codes, weight.long())
    expected = _expected(acc, weight.long().sum(1), scale, zero_point, weight_scale, bias)
    assert reference.linear(x, weight, weight_scale, bias, scale, zero_point, num_bits).equal(expected)


@pytest.mark.parametrize("num_bits", [8, 12])
@pytest.mark.parametrize("channels_last", [True, False])
def test_conv_output_follows_the_definition_bit_for_bit(num_bits, channels_last):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 9, 7, generator=generator)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    weight, weight_scale = _weight((4, 3, 3, 3), 0, False), torch.rand(4, generator=generator)
    bias, geometry = torch.randn(4, generator=generator), ConvGeometry((2, 1), (1, 1, 1, 1), (1, 1), 2)
    scale, zero_point = torch.tensor(0.02).item(), 100
    codes = quantize(x, scale, zero_point, num_bits)
    acc = _conv_int64(codes, weight, zero_point, geometry).movedim(1, -1)
    expected = _expected(acc, weight.long().flatten(1).sum(1), scale, zero_point, weight_scale, bias).movedim(-1, 1)
    result = reference.conv2d(x, weight, weight_scale, bias, scale, zero_point, num_bits, geometry)
    assert result.equal(expected)
    assert reference.conv2d(x[0], weight, weight_scale, bias, scale, zero_point, num_bits, geometry).equal(expected[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype_of_the_input_is_kept_and_input_is_untouched(dtype):
    x = torch.randn(4, 8).to(dtype)
    before = x.clone()
    y = reference.linear(x, _weight((3, 8), 0, False), torch.ones(3), torch.ones(3, dtype=dtype), 0.1, 9, 8)
    assert y.dtype == dtype and x.equal(before)


def test_linear_leaves_a_float32_input_untouched():
    x = torch.randn(4, 8)
    before = x.clone()
    reference.linear(x, _weight((3, 8), 0, False), torch.ones(3), None, 1.0, 0, 16)
    assert x.equal(before)


def test_autocast_changes_nothing():
    x, weight = torch.randn(4, 2000), _weight((3, 2000), 0, False)
    plain = reference.linear(x, weight, torch.ones(3), None, 0.01, 128, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert reference.linear(x, weight, torch.ones(3), None, 0.01, 128, 8).equal(plain)


def test_nan_stays_visible():
    x = torch.tensor([[1.0, float("nan")]])
    assert reference.linear(x, torch.ones(1, 2, dtype=torch.int8), torch.ones(1), None, 1.0, 0, 8).isnan().all()
