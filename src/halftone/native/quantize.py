"""Activations to unsigned codes by the native library; ``src/quantize.cpp`` says what is computed."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from halftone.native.library import library

__all__ = ["is_supported", "quantize", "quantize_rows", "quantize_to_channels_last"]

#: The numbers by which the library knows dtypes.
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_BEST = -1
_CODING = (ctypes.c_float, ctypes.c_int32, ctypes.c_int32, *[ctypes.c_void_p] * 2, *[ctypes.c_int32] * 2)
_CODING_OF_ROWS = (*[ctypes.c_void_p] * 2, *_CODING[2:])


def is_supported(x: Tensor) -> bool:
    """Whether the library is there and takes this tensor's dtype and device."""
    return x.is_cpu and x.dtype in _DTYPES and _is_there()


def quantize(
    x: Tensor, factor: float, zero_point: int, num_bits: int, planes: Sequence[Tensor], instruction_set: int = _BEST
) -> None:
    """Codes of a tensor, element by element in the order of memory.

    Args:
        x: float32, bfloat16 or float16 in one dense piece of memory.
        factor: reciprocal of the scale, a float32 value.
        zero_point: 0 to ``2**num_bits - 1``.
        num_bits: 2 to 16.
        planes: where the codes go, uint8 of the shape and strides of ``x``; two for more than 8 bits, the high first.
        instruction_set: which variant runs, for tests: 0 portable, 1 AVX2, 2 AVX-512; the CPU's best by default.
    """
    high, low = _addresses(planes)
    _function("halftone_quantize", 1)(
        x.data_ptr(), _DTYPES[x.dtype], x.numel(), factor, zero_point, num_bits,
        high, low, instruction_set, torch.get_num_threads(),
    )  # fmt: skip


def quantize_rows(
    x: Tensor,
    factors: Tensor,
    zero_points: Tensor,
    num_bits: int,
    planes: Sequence[Tensor],
    instruction_set: int = _BEST,
) -> None:
    """`quantize` of contiguous ``[rows, length]``, each row with its own parameters.

    Args:
        factors: float32 ``[rows]``, contiguous: reciprocals of the scales.
        zero_points: int32 ``[rows]``, contiguous.
        planes: contiguous uint8 ``[rows, length]``.
    """
    high, low = _addresses(planes)
    _function("halftone_quantize_rows", 2, _CODING_OF_ROWS)(
        x.data_ptr(), _DTYPES[x.dtype], *x.shape, factors.data_ptr(), zero_points.data_ptr(), num_bits,
        high, low, instruction_set, torch.get_num_threads(),
    )  # fmt: skip


def quantize_to_channels_last(
    x: Tensor, factor: float, zero_point: int, num_bits: int, planes: Sequence[Tensor], instruction_set: int = _BEST
) -> None:
    """`quantize` of contiguous images ``[n, c, h, w]`` into channels-last planes ``[n, c, h, w]``."""
    images, channels, height, width = x.shape
    high, low = _addresses(planes)
    _function("halftone_quantize_to_channels_last", 3)(
        x.data_ptr(), _DTYPES[x.dtype], images, channels, height * width, factor, zero_point, num_bits,
        high, low, instruction_set, torch.get_num_threads(),
    )  # fmt: skip


def _addresses(planes: Sequence[Tensor]) -> tuple[int, int | None]:
    return planes[0].data_ptr(), planes[1].data_ptr() if len(planes) > 1 else None


@functools.cache
def _is_there() -> bool:
    """Asked once a process: looking at the environment takes a third of the time that a small input takes."""
    return library() is not None


@functools.cache
def _function(name: str, sizes: int, coding: tuple[Any, ...] = _CODING) -> Callable[..., None]:
    """A function of the library that takes an input, its dtype, some sizes, and how to code it."""
    loaded = library()
    assert loaded is not None
    function = getattr(loaded, name)
    function.argtypes = [ctypes.c_void_p, ctypes.c_int32, *[ctypes.c_int64] * sizes, *coding]
    function.restype = None
    return function
