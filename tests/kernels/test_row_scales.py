"""Inputs whose rows, or images, have scales and zero points of their own: against int64 and float64 arithmetic."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halftone.errors import InputError
from halftone.kernels import onednn, reference
from halftone.kernels.onednn_codes import encode_each_row
from halftone.kernels.onednn_product import unavailable
from halftone.kernels.registry import ConvGeometry, LayerWeights

needs_onednn = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
KERNELS = [reference, pytest.param(onednn, marks=needs_onednn)]
U = 2.0**-24


@pytest.fixture(params=["native", "torch"])
def _codes_by(request, monkeypatch):
    """Both ways in which oneDNN's codes are made."""
    if request.param == "torch":
        monkeypatch.setattr("halftone.kernels.onednn_codes.native.is_supported", lambda x: False)


both_ways = pytest.mark.usefixtures("_codes_by")


def _problem(rows, inputs, outputs, num_bits, seed, dtype=torch.float32):
    """Rows of very different sizes, their parameters (some clip), and weights."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 10.0 ** (4 * torch.rand(rows, 1, generator=generator) - 2)
    x = (torch.randn(rows, inputs, generator=generator) * sizes).to(dtype)
    scale = (sizes[:, 0] * (1 + torch.rand(rows, generator=generator)) * 3 / 2**num_bits).float()
    zero_point = torch.randint(0, 2**num_bits, (rows,), generator=generator, dtype=torch.int32)
    weight = torch.randint(-127, 128, (outputs, inputs), generator=generator).to(torch.int8)
    return x, scale, zero_point, weight, torch.rand(outputs, generator=generator)


def _codes(x, scale, zero_point, num_bits):
    """The definition in numpy, in int64: half to even, by the float32 reciprocal."""
    values = x.to(torch.float32).numpy() * (np.float32(1) / scale.numpy())[:, None]
    codes = np.rint(values).astype(np.float64) + zero_point.numpy()[:, None]
    return torch.from_numpy(np.clip(codes, 0, 2**num_bits - 1).astype(np.int64))


def _accumulators(x, scale, zero_point, weight, num_bits):
    codes = _codes(x, scale, zero_point, num_bits) - zero_point.long()[:, None]
    return torch.einsum("mk,nk->mn", codes, weight.long())


@pytest.mark.parametrize("num_bits", [4, 8, 10, 16])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("inputs", [33, 3000])
def test_reference_follows_the_definition_bit_for_bit(num_bits, with_bias, inputs, monkeypatch):
    monkeypatch.setattr(reference, "_BLOCK_ELEMENTS", 1)
    monkeypatch.setattr(reference, "_BLOCK_ROWS", 4)  # three blocks, the last of them smaller
    x, scale, zero_point, weight, weight_scale = _problem(10, inputs, 7, num_bits, 0)
    bias = torch.randn(7, generator=torch.Generator().manual_seed(1)) if with_bias else None
    exact = _accumulators(x, scale, zero_point, weight, num_bits)
    expected = exact.float() * (scale[:, None] * weight_scale)
    expected = expected if bias is None else expected + bias
    found = reference.linear(x.view(2, 5, -1), weight, weight_scale, bias, scale, zero_point, num_bits)
    assert found.equal(expected.view(2, 5, 7))
    one_zero_point = torch.full((10,), 3, dtype=torch.int32)
    found = reference.linear(x, weight, weight_scale, bias, scale, 3, num_bits)
    assert found.equal(reference.linear(x, weight, weight_scale, bias, scale, one_zero_point, num_bits))


@both_ways
@given(
    rows=st.integers(1, 40),
    inputs=st.integers(1, 70),
    num_bits=st.integers(2, 16),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_codes_of_each_row_are_those_of_the_definition(rows, inputs, num_bits, seed, dtype):
    x, scale, zero_point, *_ = _problem(rows, inputs, 1, num_bits, seed, dtype)
    if seed % 2:  # ties, with even and odd zero points
        scale = torch.ones(rows)
        x = (torch.arange(rows * inputs).view(rows, inputs) % 2**num_bits - 2 ** (num_bits - 1) + 0.5).to(dtype)
    before = x.clone()
    planes = encode_each_row(x, scale, zero_point, num_bits, 0)
    assert x.equal(before) and len(planes) == (1 if num_bits <= 8 else 2)
    total = sum(int(plane.scale) * plane.codes.long() for plane in planes)
    assert total.equal(_codes(x, scale, zero_point, num_bits))
    assert sum(int(plane.scale) * plane.zero_point for plane in encode_each_row(x, scale, zero_point, num_bits, 5)) == 5


@needs_onednn
@both_ways
@given(
    rows=st.integers(1, 40),
    inputs=st.integers(1, 300),
    outputs=st.integers(1, 70),
    num_bits=st.integers(2, 16),
    with_bias=st.booleans(),
    symmetric=st.booleans(),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_onednn_is_within_float_rounding(rows, inputs, outputs, num_bits, with_bias, symmetric, seed):
    """|y - exact| <= 6 u (sum over planes, and what zero points add, of |scale * accumulator| + |bias|)."""
    x, scale, zero_point, weight, weight_scale = _problem(rows, inputs, outputs, num_bits, seed)
    common = 2 ** (num_bits - 1)
    zero_point = torch.full_like(zero_point, common) if symmetric else zero_point
    bias = torch.randn(outputs, generator=torch.Generator().manual_seed(seed)) if with_bias else None
    kernel = onednn.prepare_linear(LayerWeights(weight, weight_scale, bias))
    y = kernel(x, scale, common if symmetric else zero_point, num_bits)
    steps = scale.double()[:, None] * weight_scale.double()
    exact = _accumulators(x, scale, zero_point, weight, num_bits).double() * steps
    exact = exact if bias is None else exact + bias.double()
    codes, shift = _codes(x, scale, zero_point, num_bits), max(0, num_bits - 8)
    planes = [2**shift * ((codes >> shift) - (common >> shift)), codes % 2**shift if shift else 0 * codes]
    magnitude = sum((plane @ weight.long().T).abs().double() * steps for plane in planes)
    if not symmetric:
        magnitude += ((common - zero_point.long())[:, None] * weight.long().sum(1)).abs().double() * steps
    magnitude += 0 if bias is None else bias.double().abs()
    assert bool(((y.double() - exact).abs() <= 6 * U * magnitude + 1e-37).all())


@pytest.mark.parametrize("kernel", KERNELS)
@given(rows=st.integers(1, 9), inputs=st.integers(1, 500), num_bits=st.integers(2, 8), seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_accumulators_are_the_same_bit_for_bit(kernel, rows, inputs, num_bits, seed):
    """Scales of 1 and sums below 2^24: the output is the accumulator, in every kernel."""
    x, _, zero_point, weight, _ = _problem(rows, inputs, 33, num_bits, seed)
    ones = torch.ones(rows)
    prepared = kernel.prepare_linear(LayerWeights(weight, torch.ones(33)))
    exact = _accumulators(x, ones, zero_point, weight, num_bits)
    assert prepared(x, ones, zero_point, num_bits).long().equal(exact)
    middle = torch.full_like(zero_point, 2 ** (num_bits - 1))
    exact = _accumulators(x, ones, middle, weight, num_bits)
    assert prepared(x, ones, 2 ** (num_bits - 1), num_bits).long().equal(exact)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("num_bits", [6, 8, 10])
@pytest.mark.parametrize("size", [5, 40])
def test_image_is_convolved_as_if_it_were_alone(kernel, num_bits, size):
    x = torch.randn(3, 16, size, size, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 30, 0.1]).view(
        3, 1, 1, 1
    )
    *_, weight, weight_scale = _problem(1, 16 * 9, 24, 8, 0)
    weights = LayerWeights(weight.view(24, 16, 3, 3), weight_scale, torch.randn(24), ConvGeometry(padding=(1, 1, 1, 1)))
    prepared = kernel.prepare_conv2d(weights)
    scale, zero_point = torch.tensor([0.02, 0.5, 0.003]), torch.tensor([7, 31, 60], dtype=torch.int32)
    for images in (x, x.to(memory_format=torch.channels_last)):
        y = prepared(images, scale, zero_point, num_bits)
        for i in range(3):
            alone = prepared(images[i : i + 1], scale[i].item(), int(zero_point[i]), num_bits)
            assert y[i].equal(alone[0])
    y = prepared(x, scale, 32, num_bits)
    assert y[1].equal(prepared(x[1], scale[1].item(), 32, num_bits))
    assert prepared(x[1], scale[1:2], 32, num_bits).equal(y[1])
    assert prepared(x[:0], scale[:0], zero_point[:0], num_bits).shape == (0, *y.shape[1:])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("wrong", [2, 11])
def test_as_many_scales_as_rows(kernel, wrong):
    *_, weight, weight_scale = _problem(1, 9, 4, 8, 0)
    weights = LayerWeights(weight, weight_scale), LayerWeights(weight.view(4, 1, 3, 3), weight_scale)
    scale, zero_point = torch.ones(wrong), torch.zeros(wrong, dtype=torch.int32)
    with pytest.raises((RuntimeError, ValueError, InputError)):
        kernel.prepare_linear(weights[0])(torch.ones(10, 9), scale, zero_point, 8)
    with pytest.raises((RuntimeError, ValueError, InputError)):
        kernel.prepare_conv2d(weights[1])(torch.ones(10, 1, 5, 5), scale, zero_point, 8)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_whose_scale_is_no_number_shows_and_stays_alone(kernel, bad):
    x, scale, zero_point, weight, weight_scale = _problem(5, 20, 7, 8, 0)
    prepared = kernel.prepare_linear(LayerWeights(weight, weight_scale))
    expected = prepared(x, scale, zero_point, 8)
    x[2, 3], scale[2] = bad, bad
    found = prepared(x, scale, zero_point, 8)
    others = [0, 1, 3, 4]
    assert not found[2].isfinite().any() and found[others].equal(expected[others])


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_output_has_the_dtype_of_the_input_and_no_gradient(dtype):
    x, scale, zero_point, weight, weight_scale = _problem(6, 20, 7, 8, 0, dtype)
    weights = LayerWeights(weight, weight_scale, torch.randn(7).to(dtype))
    found, expected = (
        kernel.prepare_linear(weights)(x.requires_grad_(), scale, zero_point, 8) for kernel in (onednn, reference)
    )
    assert found.dtype == expected.dtype == dtype and not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=max(1e-6, torch.finfo(dtype).eps), atol=1e-2 * float(scale.max()))
