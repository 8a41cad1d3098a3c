"""Fused attention by the native library; ``src/attention.cpp`` says what is computed.

Relative errors (Frobenius) against exact attention, on normally distributed inputs: with scores in bfloat16 0.35 % of
float32 inputs and 0.2 % of bfloat16 ones, like torch's own; with scores from 8-bit integers 0.9 %. Channels that are
much larger than the others raise the latter to some percent.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from halftone.errors import InputError
from halftone.native.library import library
from halftone.native.library import unavailable as library_unavailable

__all__ = [
    "Precision",
    "attention",
    "reason_against",
    "reason_against_type",
    "reason_against_width",
    "unavailable",
]

#: Of the scores: what Q and K are rounded to.
Precision = Literal["bfloat16", "int8"]

_DTYPES = (torch.float32, torch.bfloat16)
_FAILURES = {1: "the CPU lacks AVX-512 VNNI or BF16", 2: "a shape that it does not take", 3: "out of memory"}


def unavailable() -> str | None:
    """None if the kernel runs on this machine, else the reason why not."""
    reason = library_unavailable()
    if reason is None and _max_head_dim() == 0:
        return "the CPU lacks AVX-512 VNNI or BF16"
    return reason


def reason_against_type(device_type: str, dtype: torch.dtype) -> str | None:
    """Why no tensors of that kind are for the kernel; None if some are."""
    if device_type != "cpu":
        return f"it does not run on {device_type}"
    return None if dtype in _DTYPES else f"it does not take {dtype}"


def reason_against_width(head_dim: int) -> str | None:
    """Why heads of so many channels are not for the kernel; None if they are."""
    return f"the kernel's heads have at most {_max_head_dim()} channels" if head_dim > _max_head_dim() else None


def reason_against(query: Tensor, key: Tensor, value: Tensor) -> str | None:
    """Why these tensors are not for the kernel; None if they are."""
    tensors = query, key, value
    for tensor in tensors:
        reason = reason_against_type(tensor.device.type, tensor.dtype)
        if reason is not None:
            return reason
    if key.dtype != query.dtype or value.dtype != query.dtype:
        return "queries, keys and values differ in dtype"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return "it has no gradient"
    if any(tensor.dim() != 4 or tensor.numel() == 0 for tensor in tensors):
        return "it takes four dimensions, none of them empty"
    if key.shape != value.shape or _without_tokens(key) != _without_tokens(query):
        return "queries, keys and values differ in batch, heads or head size"
    return reason_against_width(query.shape[3])


def attention(
    query: Tensor, key: Tensor, value: Tensor, precision: Precision = "bfloat16", scale: float | None = None
) -> Tensor:
    """``softmax(scale * query @ key.T) @ value`` of every head.

    Args:
        query: float32 or bfloat16 ``[batch, heads, queries, head_dim]``, of any strides.
        key, value: ``[batch, heads, keys, head_dim]`` in the dtype of ``query``.
        precision: of the scores.
        scale: ``head_dim ** -0.5`` if not given.

    Returns:
        A tensor of the shape and dtype of ``query``, laid out in memory as ``[batch, queries, heads, head_dim]``.

    Raises:
        InputError: the kernel does not run here, or does not take these tensors.
    """
    reason = unavailable() or reason_against(query, key, value)
    if reason is not None:
        raise InputError(f"The native attention cannot run: {reason}.")
    return _attention(query, key, value, precision == "int8", query.shape[3] ** -0.5 if scale is None else scale)


@torch.library.custom_op("halftone::attention", mutates_args=())
def _attention(query: Tensor, key: Tensor, value: Tensor, is_int8: bool, scale: float) -> Tensor:
    """An operator of torch's, so that torch.compile leaves it whole."""
    tensors = [tensor if tensor.stride(3) == 1 else tensor.contiguous() for tensor in (query, key, value)]
    out = _empty_output(query)
    strides = [stride for tensor in (*tensors, out) for stride in tensor.stride()[:3]]
    status = _function()(
        *(tensor.data_ptr() for tensor in (*tensors, out)),
        (ctypes.c_int64 * 5)(*query.shape[:3], key.shape[2], query.shape[3]),
        (ctypes.c_int64 * 12)(*strides),
        query.dtype == torch.bfloat16, scale, is_int8, torch.get_num_threads(),
    )  # fmt: skip
    if status != 0:
        raise InputError(f"The native attention failed: {_FAILURES[status]}.")
    return out


@_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, is_int8: bool, scale: float) -> Tensor:
    return _empty_output(query)


def _empty_output(query: Tensor) -> Tensor:
    batch, heads, tokens, head_dim = query.shape
    return query.new_empty(batch, tokens, heads, head_dim).transpose(1, 2)


def _without_tokens(tensor: Tensor) -> tuple[int, ...]:
    batch, heads, _, head_dim = tensor.shape
    return batch, heads, head_dim


@functools.cache
def _max_head_dim() -> int:
    loaded = library()
    return 0 if loaded is None else int(loaded.halftone_attention_max_head_dim())


@functools.cache
def _function() -> Callable[..., int]:
    loaded = library()
    assert loaded is not None
    function = loaded.halftone_attention
    pointer, integer = ctypes.c_void_p, ctypes.c_int32
    function.argtypes = [*[pointer] * 6, integer, ctypes.c_float, integer, integer]
    function.restype = integer
    return function
