"""Groups of weights with scales of their own, and weights of nine bits: against int64 sums and float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from halftone.kernels import WEIGHT_GROUPS, WIDE_WEIGHTS, reference, registry, select
from halftone.kernels.onednn_product import unavailable
from halftone.kernels.registry import ConvGeometry, LayerWeights, kernel_report
from halftone.numerics import quantize

U = 2.0**-24


def _weight(shape, seed, wide):
    limit = 255 if wide else 127
    weight = torch.randint(-limit, limit + 1, shape, generator=torch.Generator().manual_seed(seed))
    return weight.to(torch.int16 if wide else torch.int8)


def _scales(outputs, length, group_size, seed):
    groups = -(-length // group_size)
    return 10.0 ** (2 * torch.rand(outputs, groups, generator=torch.Generator().manual_seed(seed)) - 1)


def _real(weight, scale, group_size):
    """Weights of a flat ``[out, k]`` in float64."""
    return weight.double() * scale.double().repeat_interleave(group_size, 1)[:, : weight.shape[1]]


def _within_rounding(y, exact, bias):
    """A float32 rounding of the sum, of the product, and of the sum with the bias."""
    magnitude = exact.abs() + (0 if bias is None else bias.double().abs())
    error = (y.double() - exact - (0 if bias is None else bias.double())).abs()
    return bool((error <= 4 * U * magnitude + 1e-30).all())


@given(
    rows=st.integers(1, 9),
    inputs=st.integers(1, 300),
    group_size=st.sampled_from([1, 7, 32, 64, 400]),
    num_bits=st.integers(2, 16),
    wide=st.booleans(),
    by_row=st.booleans(),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=120, deadline=None)
def test_linear_sums_each_group_exactly(rows, inputs, group_size, num_bits, wide, by_row, seed):
    generator = torch.Generator().manual_seed(seed)
    x, bias = torch.randn(rows, inputs, generator=generator), torch.randn(5, generator=generator)
    weight, scale = _weight((5, inputs), seed, wide), _scales(5, inputs, group_size, seed)
    step = 6.0 / 2**num_bits * (1 + torch.rand(rows if by_row else 1, generator=generator))
    zero_point = torch.randint(0, 2**num_bits, (len(step),), generator=generator, dtype=torch.int32)
    codes = quantize(x, step[:, None], zero_point[:, None], num_bits).long() - zero_point.long()[:, None]
    exact = (codes.double() @ _real(weight, scale, group_size).T) * step.double()[:, None]
    kernel = reference.prepare_linear(LayerWeights(weight, scale, bias, None, group_size))
    parameters = (step, zero_point) if by_row else (step.item(), int(zero_point))
    assert _within_rounding(kernel(x, *parameters, num_bits), exact, bias)


@given(
    groups=st.sampled_from([1, 1, 2]),
    per_group=st.integers(1, 12),
    kernel=st.sampled_from([(1, 1), (3, 3), (2, 3)]),
    group_size=st.sampled_from([4, 32, 64]),
    num_bits=st.sampled_from([4, 8, 10]),
    wide=st.booleans(),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_conv_sums_each_group_exactly(groups, per_group, kernel, group_size, num_bits, wide, seed):
    generator = torch.Generator().manual_seed(seed)
    x, bias = torch.randn(2, groups * per_group, 6, 7, generator=generator), torch.randn(6, generator=generator)
    weight, geometry = _weight((6, per_group, *kernel), seed, wide), ConvGeometry((1, 2), (1, 0, 1, 1), (1, 1), groups)
    length = weight[0].numel()
    scale, zero_point = _scales(6, length, group_size, seed), 2**num_bits // 3
    step = torch.tensor(6.0 / 2**num_bits).item()
    codes = functional.pad(quantize(x, step, zero_point, num_bits).double() - zero_point, geometry.padding)
    real = _real(weight.flatten(1), scale, group_size).view(weight.shape)
    exact = functional.conv2d(codes, real, None, geometry.stride, 0, 1, groups) * step
    prepared = reference.prepare_conv2d(LayerWeights(weight, scale, bias, geometry, group_size))
    y = prepared(x, step, zero_point, num_bits)
    assert _within_rounding(y, exact, bias.view(-1, 1, 1))


@pytest.mark.parametrize("num_bits", [8, 16])
def test_wide_weights_are_exact_in_the_worst_case_of_many_chunks(num_bits):
    weight = torch.full((2, 5001), 255, dtype=torch.int16)
    weight[1, ::3] = -255
    chunks = reference.plan_chunks(weight)
    assert all(255 * 128 * (stop - start) <= 2**24 for start, stop in chunks) and chunks[-1][1] == 5001
    codes = torch.full((3, 5001), 2**num_bits - 1, dtype=torch.int32)
    codes[1] = 0
    assert reference.int_accumulate_linear(codes, weight, num_bits).equal(codes.long() @ weight.long().T)
    short = torch.full((1, 600), 255, dtype=torch.int16)
    assert len(reference.plan_chunks(short)) == 2  # 600 weights of 8 bits would be one


@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
def test_kernel_that_cannot_says_why(monkeypatch):
    monkeypatch.delenv(registry.ENVIRONMENT_VARIABLE, raising=False)
    for feature, why in ((WEIGHT_GROUPS, "one scale for all weights"), (WIDE_WEIGHTS, "weights are 8-bit")):
        for operation in ("linear", "conv2d"):
            assert select(operation, "cpu", 8, frozenset({feature})).name == "reference"
            assert why in kernel_report()[f"{operation} on cpu, 8 bits, {feature}"]["passed_over"]["onednn"]
