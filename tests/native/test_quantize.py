"""Every variant of the native quantization against the definition, code for code."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halftone.native import library, unavailable
from halftone.native.quantize import is_supported, quantize, quantize_rows, quantize_to_channels_last
from halftone.numerics import quantize as definition

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
VARIANTS = range(library().halftone_instruction_set() + 1) if library() else (0,)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _planes(shape: torch.Size, num_bits: int, memory_format: torch.memory_format) -> list[torch.Tensor]:
    """Planes full of what no test expects."""
    count = 2 if num_bits > 8 else 1
    return [torch.full(shape, 0xA5, dtype=torch.uint8).to(memory_format=memory_format) for _ in range(count)]


def _assert_codes(planes: list[torch.Tensor], x: torch.Tensor, scale: float, zero_point: int, num_bits: int) -> None:
    codes, shift = definition(x, scale, zero_point, num_bits), max(0, num_bits - 8)
    expected = [codes >> shift, codes & (2**shift - 1)][: len(planes)]
    assert all(plane.equal(part.to(torch.uint8)) for plane, part in zip(planes, expected, strict=True))


@pytest.mark.parametrize("instruction_set", VARIANTS)
@given(
    count=st.integers(0, 200),
    scale=st.floats(2.0**-20, 1024, width=32),
    zero_point=st.integers(0, 2**16 - 1),
    num_bits=st.integers(2, 16),
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["wide", "ties", "huge", "tiny"]),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=150, deadline=None)
def test_codes_are_those_of_the_definition(instruction_set, count, scale, zero_point, num_bits, seed, kind, dtype):
    top = 2**num_bits - 1
    zero_point %= top + 1
    x = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    if kind == "ties":
        scale = 2.0 ** (seed % 9 - 4)
        x = (torch.arange(count) - count // 2 + (seed % 3 - 1) * top // 2 + 0.5) * scale
    else:
        x = x * {"wide": top * scale / 3, "huge": 1e30, "tiny": 1e-40}[kind]
    x = x.to(dtype)
    x[:3] = torch.tensor([float("inf"), -float("inf"), 0.0])[:count]
    planes = _planes(x.shape, num_bits, torch.contiguous_format)
    quantize(x, 1.0 / scale, zero_point, num_bits, planes, instruction_set)
    _assert_codes(planes, x, scale, zero_point, num_bits)


@pytest.mark.parametrize("instruction_set", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale, zero_point, num_bits", [(0.037, 101, 8), (2.0**-12, 7, 16), (300.0, 3, 3)])
def test_codes_of_every_16_bit_number(instruction_set, dtype, scale, zero_point, num_bits):
    scale = torch.tensor(scale).item()
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    planes = _planes(x.shape, num_bits, torch.contiguous_format)
    quantize(x, 1.0 / scale, zero_point, num_bits, planes, instruction_set)
    number = ~x.isnan()
    _assert_codes([plane[number] for plane in planes], x[number], scale, zero_point, num_bits)
    assert all(int(plane[~number].max()) == 0 for plane in planes)


@pytest.mark.parametrize("instruction_set", VARIANTS)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 150), st.integers(1, 20), st.integers(1, 20)),
    num_bits=st.sampled_from([4, 8, 9, 16]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_images_are_transposed_on_the_way(instruction_set, shape, num_bits, dtype, seed):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    planes = _planes(x.shape, num_bits, torch.channels_last)
    scale, zero_point = 2.0 ** (3 - num_bits), 2 ** (num_bits - 1) - 3
    quantize_to_channels_last(x, 1.0 / scale, zero_point, num_bits, planes, instruction_set)
    _assert_codes(planes, x, scale, zero_point, num_bits)


@pytest.mark.parametrize("instruction_set", VARIANTS)
@given(
    shape=st.tuples(st.integers(0, 40), st.integers(0, 70)),
    num_bits=st.sampled_from([4, 8, 9, 16]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_rows_have_parameters_of_their_own(instruction_set, shape, num_bits, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator).to(dtype)
    scales = torch.rand(shape[0], generator=generator) / 2**num_bits + 2.0**-20
    zero_points = torch.randint(0, 2**num_bits, shape[:1], generator=generator, dtype=torch.int32)
    planes = _planes(x.shape, num_bits, torch.contiguous_format)
    quantize_rows(x, 1.0 / scales, zero_points, num_bits, planes, instruction_set)
    for row in range(shape[0]):
        _assert_codes([plane[row] for plane in planes], x[row], scales[row].item(), int(zero_points[row]), num_bits)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(threads):
    x = torch.randn(2, 70, 41, 43)
    flat, images = _planes(x.shape, 10, torch.contiguous_format), _planes(x.shape, 10, torch.channels_last)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        quantize(x, 100.0, 512, 10, flat)
        quantize_to_channels_last(x, 100.0, 512, 10, images)
    finally:
        torch.set_num_threads(before)
    for planes in (flat, images):
        _assert_codes(planes, x, 0.01, 512, 10)


def test_what_it_takes():
    assert all(is_supported(torch.ones(2, dtype=dtype)) for dtype in DTYPES)
    assert not is_supported(torch.ones(2, dtype=torch.float64)) and not is_supported(torch.ones(2, device="meta"))
