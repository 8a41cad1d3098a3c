"""oneDNN's kernels against exact arithmetic: codes and accumulators bit for bit, outputs within their bound."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from halftone.kernels import onednn, reference, registry, select
from halftone.kernels.onednn_codes import encode, encode_channels_last, encode_rows
from halftone.kernels.onednn_product import unavailable
from halftone.kernels.registry import ConvGeometry, LayerWeights
from halftone.layers import QuantizedConv2d, QuantizedLinear
from halftone.numerics import quantize, range_to_qparams

needs_onednn = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
U = 2.0**-24
FILLS = ("random", "extreme", "largest")


@pytest.fixture(params=["native", "torch"])
def _codes_by(request, monkeypatch):
    """Both ways in which codes are made; the first is the second where there is no native library."""
    if request.param == "torch":
        monkeypatch.setattr("halftone.kernels.onednn_codes.native.is_supported", lambda x: False)


both_ways = pytest.mark.usefixtures("_codes_by")


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _weight(shape: tuple[int, ...], seed: int, fill: str) -> torch.Tensor:
    if fill == "largest":
        return torch.full(shape, 127 if seed % 2 else -127, dtype=torch.int8)
    weight = torch.randint(-127, 128, shape, generator=_generator(seed))
    return (torch.sign(weight) * 127 if fill == "extreme" else weight).to(torch.int8)


def _input(shape: tuple[int, ...], scale: float, zero_point: int, num_bits: int, seed: int, fill: str) -> torch.Tensor:
    """Real values whose codes fill the range, or are 0 and the largest only, or the largest only."""
    top = 2**num_bits - 1
    codes = torch.rand(shape, generator=_generator(seed + 1)) * (top + 20) - 10
    codes = {"random": codes, "extreme": (codes > top / 2) * top, "largest": torch.full(shape, top)}[fill]
    return ((codes - zero_point) * scale).to(torch.float32)


def _planes(x: torch.Tensor, scale: float, zero_point: int, num_bits: int) -> list[tuple[float, torch.Tensor]]:
    """Scales and centred float64 codes of the planes."""
    return [(p.scale, p.codes.double() - p.zero_point) for p in encode(x, scale, zero_point, num_bits)]


def _assert_within_rounding(y, products, weight_scale, bias, shape):
    """|y - exact| <= 6 u (sum |scale * accumulator| + |bias|)."""
    weight_scale = weight_scale.double().view(shape)
    bias = torch.zeros(1, dtype=torch.float64) if bias is None else bias.double().view(shape)
    parts = [scale * weight_scale * accumulator for scale, accumulator in products]
    magnitude = sum(part.abs() for part in parts) + bias.abs()
    assert y.dtype == torch.float32
    assert bool(((y.double() - sum(parts) - bias).abs() <= 6 * U * magnitude + 1e-37).all())


@both_ways
@given(
    scale=st.floats(2.0**-20, 1024, width=32),
    zero_point=st.integers(0, 2**16 - 1),
    num_bits=st.integers(2, 16),
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["wide", "ties", "huge"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_codes_are_those_of_the_definition(scale, zero_point, num_bits, seed, kind, dtype):
    top = 2**num_bits - 1
    zero_point %= top + 1
    x = torch.randn(300, generator=_generator(seed))
    if kind == "ties":
        scale = 2.0 ** (seed % 9 - 4)
        x = (torch.arange(300) - 150 + (seed % 3 - 1) * top // 2 + 0.5) * scale
    else:
        x = x * (top * scale / 3 if kind == "wide" else 1e30)
    x = x.to(dtype)
    x[:3] = torch.tensor([float("inf"), -float("inf"), 0.0])
    before = x.clone()
    planes = encode(x, scale, zero_point, num_bits)
    assert x.equal(before) and all(plane.codes.dtype == torch.uint8 for plane in planes)
    assert len(planes) == (1 if num_bits <= 8 else 2)
    total = sum(round(p.scale / planes[-1].scale) * (p.codes.long() - p.zero_point) for p in planes)
    expected = quantize(x, scale, zero_point, num_bits).long() - zero_point
    assert (total * (1 if planes[-1].scale > 0 else -1)).equal(expected)


@pytest.mark.parametrize("num_bits", [8, 10])
def test_codes_made_in_blocks_are_the_same(num_bits, monkeypatch):
    monkeypatch.setattr("halftone.kernels.onednn_codes.native.is_supported", lambda x: False)
    images = torch.randn(3, 10, 9, 7)
    inputs = [images, images.to(memory_format=torch.channels_last), images[:, ::2], images[..., :1].expand_as(images)]
    inputs.append(torch.randn(50, 60).T)
    expected = [encode(x, 0.02, 77, num_bits) for x in inputs]
    monkeypatch.setattr("halftone.kernels.onednn_codes._BLOCK", 100)
    for x, planes in zip(inputs, expected, strict=True):
        for plane, same in zip(encode(x, 0.02, 77, num_bits), planes, strict=True):
            assert plane.codes.equal(same.codes) and plane[1:] == same[1:]


@both_ways
@pytest.mark.parametrize("num_bits", [8, 10])
@pytest.mark.parametrize("transpose_from", [1, 2**17])
def test_codes_in_every_memory_format_are_the_same(num_bits, transpose_from, monkeypatch):
    monkeypatch.setattr("halftone.kernels.onednn_codes._TRANSPOSE_FROM", transpose_from)
    images = torch.randn(3, 20, 9, 8, generator=_generator(0))
    formats = [images, images.to(memory_format=torch.channels_last), images[:, ::2], images[..., :1], images[:, :1]]
    formats += [images.transpose(2, 3), images[:, :, :1, :1], images[:1].expand(4, -1, -1, -1)]
    for x in formats:
        expected = quantize(x, 0.02, 77, num_bits) - 77
        n, channels, height, width = x.shape
        for planes in (encode(x, 0.02, 77, num_bits), encode_channels_last(x, 0.02, 77, num_bits)):
            assert sum(round(p.scale / 0.02) * (p.codes.int() - p.zero_point) for p in planes).equal(expected)
        for plane in planes:
            assert plane.codes.stride() == (height * width * channels, 1, width * channels, channels)
        for plane in encode_rows(x, 0.02, 77, num_bits):
            assert plane.codes.is_contiguous() and plane.codes.shape == (n * channels * height, width)
        rows = encode_rows(x, 0.02, 77, num_bits)
        total = sum(round(p.scale / 0.02) * (p.codes.int() - p.zero_point) for p in rows)
        assert total.view(x.shape).equal(expected)


@both_ways
@pytest.mark.parametrize("num_bits", [8, 10, 16])
@pytest.mark.parametrize("zero_point", [0, 1, 2, 127, 128, 255])
def test_codes_of_every_tie(num_bits, zero_point):
    top = 2**num_bits - 1
    x = torch.arange(-zero_point - 3, top - zero_point + 3) + 0.5
    planes = encode(x, 1.0, zero_point, num_bits)
    total = sum(p.scale * (p.codes.long() - p.zero_point) for p in planes)
    assert total.equal((quantize(x, 1.0, zero_point, num_bits) - zero_point).float())


@needs_onednn
@given(
    rows=st.integers(1, 40),
    inputs=st.integers(1, 300),
    outputs=st.integers(1, 70),
    num_bits=st.integers(2, 16),
    zero_point=st.integers(0, 2**16 - 1),
    with_bias=st.booleans(),
    seed=st.integers(0, 10**6),
    fill=st.sampled_from(FILLS),
)
@settings(max_examples=200, deadline=None)
def test_linear_is_within_float_rounding(rows, inputs, outputs, num_bits, zero_point, with_bias, seed, fill):
    zero_point %= 2**num_bits
    weight, weight_scale = _weight((outputs, inputs), seed, fill), torch.rand(outputs, generator=_generator(seed))
    bias = torch.randn(outputs, generator=_generator(seed)) if with_bias else None
    scale = torch.tensor(0.0371).item()
    x = _input((rows, inputs), scale, zero_point, num_bits, seed, fill)
    y = onednn.prepare_linear(LayerWeights(weight, weight_scale, bias))(x, scale, zero_point, num_bits)
    products = [(s, codes @ weight.double().T) for s, codes in _planes(x, scale, zero_point, num_bits)]
    _assert_within_rounding(y, products, weight_scale, bias, (-1,))


@needs_onednn
@pytest.mark.parametrize("zero_point", [0, 1, 100, 255])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("inputs", [1024, 20001, 66000])
def test_deep_sums_of_the_largest_products_do_not_saturate(zero_point, sign, inputs):
    weight = torch.full((20, inputs), 127 * sign, dtype=torch.int8)
    weight[1::2, ::2] = -127
    x = torch.full((5, inputs), 255.0 - zero_point)
    x[1] = -zero_point
    y = onednn.prepare_linear(LayerWeights(weight, torch.ones(20)))(x, 1.0, zero_point, 8)
    assert y.equal((x.double() @ weight.double().T).float())


@needs_onednn
@given(
    rows=st.integers(1, 9),
    inputs=st.integers(1, 514),
    num_bits=st.integers(2, 8),
    seed=st.integers(0, 10**6),
    fill=st.sampled_from(FILLS),
)
@settings(max_examples=60, deadline=None)
def test_linear_accumulators_are_the_reference_s_bit_for_bit(rows, inputs, num_bits, seed, fill):
    """Scales of 1 and sums below 2^24: the output is the accumulator."""
    zero_point = seed % 2**num_bits
    weight = _weight((33, inputs), seed, fill)
    x = _input((rows, inputs), 1.0, zero_point, num_bits, seed, fill)
    y = onednn.prepare_linear(LayerWeights(weight, torch.ones(33)))(x, 1.0, zero_point, num_bits)
    codes = quantize(x, 1.0, zero_point, num_bits)
    expected = reference.int_accumulate_linear(codes, weight, num_bits) - zero_point * weight.long().sum(1)
    assert y.long().equal(expected)


@needs_onednn
@given(
    n=st.integers(1, 3),
    groups=st.sampled_from([1, 1, 2, 3]),
    per_group=st.integers(1, 20),
    out_per_group=st.integers(1, 20),
    size=st.tuples(st.integers(5, 12), st.integers(5, 12)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.one_of(
        st.tuples(*[st.integers(0, 2)] * 4), st.tuples(st.integers(0, 2), st.integers(0, 2)).map(lambda p: (*p, *p))
    ),
    num_bits=st.integers(2, 16),
    zero_point=st.integers(0, 2**16 - 1),
    with_bias=st.booleans(),
    channels_last=st.booleans(),
    unfold=st.booleans(),
    seed=st.integers(0, 10**6),
    fill=st.sampled_from(FILLS),
)
@settings(max_examples=300, deadline=None)
def test_conv_is_within_float_rounding(
    n,
    groups,
    per_group,
    out_per_group,
    size,
    kernel,
    stride,
    dilation,
    padding,
    num_bits,
    zero_point,
    with_bias,
    channels_last,
    unfold,
    seed,
    fill,
):
    zero_point %= 2**num_bits
    geometry, outputs = ConvGeometry(stride, padding, dilation, groups), groups * out_per_group
    assume(all(s + 0 > d * (k - 1) for s, d, k in zip(size, dilation, kernel, strict=True)))
    weight = _weight((outputs, per_group, *kernel), seed, fill)
    weight_scale, scale = torch.rand(outputs, generator=_generator(seed)), torch.tensor(0.0371).item()
    bias = torch.randn(outputs, generator=_generator(seed)) if with_bias else None
    x = _input((n, groups * per_group, *size), scale, zero_point, num_bits, seed, fill)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    kernel = onednn.prepare_conv2d(LayerWeights(weight, weight_scale, bias, geometry))
    kernel._is_unfolded = lambda pixels: unfold and groups == 1
    y = kernel(x, scale, zero_point, num_bits)
    products = []
    for plane_scale, codes in _planes(x, scale, zero_point, num_bits):
        padded = torch.nn.functional.pad(codes, padding)
        sums = torch.nn.functional.conv2d(padded, weight.double(), None, stride, 0, dilation, groups)
        products.append((plane_scale, sums.round()))
    _assert_within_rounding(y, products, weight_scale, bias, (-1, 1, 1))
    reference_y = reference.prepare_conv2d(LayerWeights(weight, weight_scale, bias, geometry))(
        x, scale, zero_point, num_bits
    )
    assert y.shape == reference_y.shape


@needs_onednn
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize(
    "kernel, geometry",
    [
        ((2, 3), {"stride": (1, 3)}),
        ((2, 1), {"padding": (0, 0, 2, 2)}),
        ((2, 1), {"padding": (0, 0, 2, 2), "stride": (1, 2)}),
    ],
)
def test_conv_of_one_channel_a_group_does_not_read_beside_the_image(groups, kernel, geometry):
    """oneDNN's own convolution gives garbage here: one column of output, or padding beyond the kernel."""
    weights = LayerWeights(
        _weight((8 * groups, 1, *kernel), 0, "random"),
        torch.rand(8 * groups),
        None,
        ConvGeometry(groups=groups, **geometry),
    )
    x = torch.randn(2, groups, 40, 5, generator=_generator(0))
    y, expected = (k.prepare_conv2d(weights)(x, 0.03, 77, 8) for k in (onednn, reference))
    torch.testing.assert_close(y, expected, rtol=6 * U, atol=1e-4)


@needs_onednn
@pytest.mark.parametrize("zero_point", [0, 1, 254, 255])
@pytest.mark.parametrize("channels, size", [(1280, 6), (16, 40)])
@pytest.mark.parametrize("num_bits", [8, 10])
def test_conv_of_the_largest_values_does_not_saturate(zero_point, channels, size, num_bits):
    geometry = ConvGeometry(padding=(1, 1, 1, 1))
    weight = torch.full((16, channels, 3, 3), 127, dtype=torch.int8)
    weight[1::2] = -127
    x = torch.full((2, channels, size, size), 2.0**num_bits - 1 - zero_point)
    weights = LayerWeights(weight, torch.ones(16), None, geometry)
    y, expected = (k.prepare_conv2d(weights)(x, 1.0, zero_point, num_bits) for k in (onednn, reference))
    torch.testing.assert_close(y, expected, rtol=6 * U, atol=0)


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_bits", [8, 10])
def test_outputs_have_the_same_bits_with_and_without_the_native_library(dtype, num_bits, monkeypatch):
    scale, zero_point = 5.0 / 2**num_bits, 2 ** (num_bits - 1) - 3
    calls = []
    for layer, x in _layers():
        prepare = onednn.prepare_linear if layer.operation == "linear" else onednn.prepare_conv2d
        kernel = prepare(LayerWeights(layer.weight, layer.weight_scale, layer.bias, layer.geometry()))
        calls.append((kernel, x.to(dtype)))
    with_library = [kernel(x, scale, zero_point, num_bits) for kernel, x in calls]
    monkeypatch.setattr("halftone.kernels.onednn_codes.native.is_supported", lambda x: False)
    for (kernel, x), y in zip(calls, with_library, strict=True):
        assert kernel(x, scale, zero_point, num_bits).equal(y)


@needs_onednn
def test_unfolding_in_parts_gives_the_same(monkeypatch):
    weights = LayerWeights(_weight((40, 6, 3, 3), 0, "random"), torch.rand(40), None, ConvGeometry())
    x, kernel = torch.randn(5, 6, 6, 6), onednn.prepare_conv2d(weights)
    expected = kernel(x, 0.02, 99, 8)
    monkeypatch.setattr(onednn, "_UNFOLDED_BYTES", 2000)
    assert kernel(x, 0.02, 99, 8).equal(expected)
    assert kernel(x[:1], 0.02, 99, 8).equal(expected[:1])


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("num_bits", [8, 12])
def test_output_has_the_dtype_of_the_input(dtype, num_bits):
    x, image = torch.randn(2, 3, 20).to(dtype), torch.randn(2, 20, 9, 9).to(dtype)
    linear = LayerWeights(_weight((7, 20), 0, "random"), torch.rand(7), torch.randn(7).to(dtype))
    conv = LayerWeights(_weight((7, 20, 3, 3), 0, "random"), torch.rand(7), torch.randn(7).to(dtype), ConvGeometry())
    rounding = torch.finfo(dtype).eps if dtype != torch.float64 else 1e-6
    for mine, exact, weights, value in (
        (onednn.prepare_linear, reference.prepare_linear, linear, x),
        (onednn.prepare_conv2d, reference.prepare_conv2d, conv, image),
    ):
        y, expected = mine(weights)(value, 0.01, 99, num_bits), exact(weights)(value, 0.01, 99, num_bits)
        assert y.dtype == dtype
        torch.testing.assert_close(y, expected, rtol=rounding, atol=max(1e-3 * rounding, 2e-5))


@needs_onednn
def test_empty_one_row_and_three_dimensional_inputs():
    linear = onednn.prepare_linear(LayerWeights(_weight((7, 20), 0, "random"), torch.ones(7)))
    assert linear(torch.empty(0, 20), 1.0, 0, 8).shape == (0, 7)
    assert linear(torch.empty(2, 0, 20), 1.0, 0, 8).shape == (2, 0, 7)
    assert linear(torch.ones(20), 1.0, 0, 8).shape == (7,)
    assert linear(torch.ones(20, 3).T, 1.0, 0, 8).equal(linear(torch.ones(3, 20), 1.0, 0, 8))
    conv = onednn.prepare_conv2d(LayerWeights(_weight((7, 20, 3, 3), 0, "random"), torch.ones(7)))
    assert conv(torch.empty(0, 20, 5, 6), 1.0, 0, 8).shape == (0, 7, 3, 4)
    assert conv(torch.ones(20, 5, 6), 1.0, 0, 8).equal(conv(torch.ones(1, 20, 5, 6), 1.0, 0, 8)[0])


@needs_onednn
def test_wrong_widths_are_errors():
    linear = onednn.prepare_linear(LayerWeights(_weight((7, 20), 0, "random"), torch.ones(7)))
    conv = onednn.prepare_conv2d(LayerWeights(_weight((7, 20, 3, 3), 0, "random"), torch.ones(7)))
    for kernel, x in ((linear, torch.ones(3, 40)), (linear, torch.ones(3, 21)), (conv, torch.ones(1, 21, 5, 5))):
        with pytest.raises(RuntimeError):
            kernel(x, 1.0, 0, 8)


@needs_onednn
def test_what_could_overflow_or_is_empty_goes_to_the_reference():
    deep = LayerWeights(torch.zeros(2, 66_400, dtype=torch.int8), torch.ones(2))
    hollow = LayerWeights(torch.zeros(2, 0, dtype=torch.int8), torch.ones(2))
    for weights in (deep, hollow):
        assert type(onednn.prepare_linear(weights)) is type(reference.prepare_linear(weights))


def _layers() -> list[tuple[torch.nn.Module, torch.Tensor]]:
    linear, conv = QuantizedLinear(64, 48, num_bits=8), QuantizedConv2d(16, 24, 3, padding=1, num_bits=8)
    for seed, layer in enumerate((linear, conv)):
        with torch.no_grad():
            layer.weight.copy_(_weight(tuple(layer.weight.shape), seed, "random"))
            layer.weight_scale.copy_(torch.rand(len(layer.weight), generator=_generator(seed)))
        layer.set_row(0, range_to_qparams(-3.0, 2.5, 8))
    return [(linear, torch.randn(100, 64)), (conv, torch.randn(2, 16, 20, 20)), (conv, torch.randn(2, 16, 5, 5))]


@needs_onednn
def test_layers_take_it_and_give_the_same_bits_again(monkeypatch):
    monkeypatch.delenv(registry.ENVIRONMENT_VARIABLE, raising=False)
    assert select("linear", "cpu", 10).name == select("conv2d", "cpu").name == "onednn"
    results = [(layer, x, layer(x)) for layer, x in _layers()]
    for layer, x, y in results:
        assert layer(x).equal(y)
        assert type(next(iter(layer._prepared._values.values()))).__module__ == onednn.__name__
        state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
        layer.load_state_dict(state)
        assert layer(x).equal(y) and not layer(x.requires_grad_()).requires_grad


@needs_onednn
def test_threads_change_nothing():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = [layer(x) for layer, x in _layers_with(_generator(0))]
        torch.set_num_threads(2)
        assert all(layer(x).equal(y) for (layer, x), y in zip(_layers_with(_generator(0)), single, strict=True))
    finally:
        torch.set_num_threads(threads)


def _layers_with(generator: torch.Generator) -> list[tuple[torch.nn.Module, torch.Tensor]]:
    return [(layer, torch.randn(x.shape, generator=generator)) for layer, x in _layers()]


def test_environment_forces_the_reference(monkeypatch):
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, "reference")
    for layer, x in _layers():
        layer(x)
        assert type(next(iter(layer._prepared._values.values()))).__module__.startswith(reference.__name__)


def test_missing_features_are_told(monkeypatch):
    def capabilities(**features: object):
        return lambda: features

    ask = unavailable.__wrapped__
    monkeypatch.setattr(torch.cpu, "get_capabilities", capabilities(architecture="aarch64"), raising=False)
    assert "x86-64" in ask() or "lacks" in ask()
    monkeypatch.setattr(torch.cpu, "get_capabilities", capabilities(architecture="x86_64", avx2=True), raising=False)
    assert "VNNI" in ask() or "lacks" in ask()
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert "features" in ask() or "lacks" in ask()
    monkeypatch.setattr("halftone.kernels.onednn_product._OPERATORS", ("no_such_operator",))
    assert "no_such_operator" in ask()


@needs_onednn
@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_saturating_instructions_are_found_out(isa):
    """oneDNN told to leave VNNI alone: its sums of pairs saturate, which only trying shows."""
    code = "from halftone.kernels.onednn_product import unavailable; print(unavailable())"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "saturate" in answer.stdout
