"""Activations to unsigned bytes; code for code `halftone.numerics.quantize`.

The native library makes them in one pass. Where it is not there, or does not know the dtype, four passes of plain torch
ops do: ``x * (1 / scale)``, ``+ (magic + zero_point)``, clamp, and a conversion of the *bits* to bytes. The
magic number is 1.5 * 2^23, where neighbouring float32 values are 1 apart: adding it rounds, half to even, and leaves
the code in the low bits. That spares a rounding, an addition and torch's conversion of floats to bytes, which is slow.

A tie goes to an even *sum*, so the sum's parity must be that of the rounded value: the zero point has to be even. If it
is odd, the complement ``top - q`` is made instead (from ``-x``; its zero point ``top - zero_point`` is even), and the
sign goes into the scale: ``scale * (q - z) == -scale * ((top - q) - (top - z))``. Either way the products, and so the
outputs, have the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from halftone.errors import InputError
from halftone.native import quantize as native
from halftone.numerics import low_plane_bits

__all__ = [
    "Codes",
    "Plane",
    "channels_last_strides",
    "encode",
    "encode_channels_last",
    "encode_each_row",
    "encode_rows",
]

#: As float32: 0x4B400000, so the low 16 bits of ``magic + code`` are those of the code.
_MAGIC = 1.5 * 2**23
#: Elements worked on at a time: fresh memory for a large float32 temporary costs more than the arithmetic.
_BLOCK = 2**19
#: Elements of an image from which torch's blocked transpose of a matrix beats its general copy.
_TRANSPOSE_FROM = 2**17


class Plane(NamedTuple):
    """One 8-bit part of the codes.

    Attributes:
        codes: uint8, shape and strides of the input (dense).
        zero_point: this part of the zero point, 0 to 255.
        scale: float32 value of one step of this part; may be negative.
    """

    codes: Tensor
    zero_point: int
    scale: float


#: ``sum(scale * (codes - zero_point))`` over the planes is the dequantized input; one up to 8 bits, else two.
Codes = tuple[Plane, ...]


def encode(x: Tensor, scale: float, zero_point: int, num_bits: int) -> Codes:
    """Quantizes a floating-point tensor.

    Args:
        x: any shape, taken as float32. It is only read. A NaN gives some code, as in `halftone.numerics.quantize`.
        scale: a float32 value.
        zero_point: code of real zero, ``[0, 2**num_bits - 1]``.
        num_bits: 2 to 16.

    Returns:
        Planes, the high one first.
    """
    if not native.is_supported(x):
        return _encode_with_torch(x, scale, zero_point, num_bits)
    planes = _like(x, num_bits)
    if not x.is_contiguous() and x.stride() != planes[0].stride():  # not dense
        x = x.contiguous()
        planes = _like(x, num_bits)
    native.quantize(x, 1.0 / scale, zero_point, num_bits, planes)
    return _described(planes, scale, zero_point, num_bits)


def encode_rows(x: Tensor, scale: float, zero_point: int, num_bits: int) -> Codes:
    """`encode` of ``[..., k]`` into contiguous planes ``[rows, k]``."""
    if not (x.is_contiguous() and native.is_supported(x)):
        return encode(x.reshape(-1, x.shape[-1]).contiguous(), scale, zero_point, num_bits)
    shape = x.numel() // x.shape[-1], x.shape[-1]
    planes = [torch.empty(shape, dtype=torch.uint8) for _ in range(2 if num_bits > 8 else 1)]
    native.quantize(x, 1.0 / scale, zero_point, num_bits, planes)
    return _described(planes, scale, zero_point, num_bits)


def encode_each_row(x: Tensor, scale: Tensor, zero_point: Tensor, num_bits: int, common: int) -> Codes:
    """Codes of rows that have a scale and a zero point each.

    Args:
        x: ``[rows, k]``.
        scale: float32 ``[rows]``.
        zero_point: int32 ``[rows]``.
        num_bits: 2 to 16.
        common: the zero point that the planes are to state, since the product knows one for all rows.

    Returns:
        Contiguous planes in steps of 1: ``sum(scale * (codes - zero_point))`` is the codes less ``common``.

    Raises:
        InputError: there are not as many scales and zero points as rows.
    """
    if not len(x) == len(scale) == len(zero_point):  # the library would read beside them
        raise InputError(f"{len(x)} rows have {len(scale)} scales and {len(zero_point)} zero points")
    planes = [torch.empty(x.shape, dtype=torch.uint8) for _ in range(2 if num_bits > 8 else 1)]
    if native.is_supported(x):
        native.quantize_rows(x.contiguous(), 1.0 / scale, zero_point.contiguous(), num_bits, planes)
    else:
        step = max(1, _BLOCK // max(1, x.shape[1]))
        columns = (x, 1.0 / scale[:, None], zero_point[:, None], *planes)
        for values, factor, zero, *parts in zip(*(column.split(step) for column in columns), strict=True):
            # Rounded by itself: with an odd zero point adding the magic number would send ties the other way.
            codes = (values.to(torch.float32) * factor).round_().add_(zero)
            _write(codes, parts, 1.0, 0, 2**num_bits - 1, low_plane_bits(num_bits))
    return _described(planes, 1.0, common, num_bits)


def encode_channels_last(x: Tensor, scale: float, zero_point: int, num_bits: int) -> Codes:
    """`encode` of images ``[n, c, h, w]`` of any memory format; in the planes' memory the channels are innermost.

    The planes' strides are in canonical form even where a size is 1.
    """
    if not native.is_supported(x):
        codes = _encode_with_torch(x, scale, zero_point, num_bits)
        return tuple(plane._replace(codes=_with_channels_last(plane.codes)) for plane in codes)
    strides = channels_last_strides(x.shape)
    planes = [torch.empty_strided(x.shape, strides, dtype=torch.uint8) for _ in range(2 if num_bits > 8 else 1)]
    is_planar = not x.is_contiguous(memory_format=torch.channels_last)
    if is_planar and x.is_contiguous():
        native.quantize_to_channels_last(x, 1.0 / scale, zero_point, num_bits, planes)
    else:
        dense = x.contiguous(memory_format=torch.channels_last) if is_planar else x
        native.quantize(dense, 1.0 / scale, zero_point, num_bits, planes)
    return _described(planes, scale, zero_point, num_bits)


def channels_last_strides(shape: Sequence[int]) -> tuple[int, int, int, int]:
    """Strides of ``[n, c, h, w]`` with the channels innermost."""
    _, channels, height, width = shape
    return channels * height * width, 1, width * channels, channels


def _like(x: Tensor, num_bits: int) -> list[Tensor]:
    """Uninitialized planes of the shape of ``x``, and with its strides if it is dense."""
    return [torch.empty_like(x, dtype=torch.uint8) for _ in range(2 if num_bits > 8 else 1)]


def _described(planes: Sequence[Tensor], scale: float, zero_point: int, num_bits: int) -> Codes:
    """Planes of codes with their zero points and scales."""
    if len(planes) == 1:
        return (Plane(planes[0], zero_point, scale),)
    shift, (high, low) = low_plane_bits(num_bits), planes
    return Plane(high, zero_point >> shift, scale * 2**shift), Plane(low, zero_point % 2**shift, scale)


def _encode_with_torch(x: Tensor, scale: float, zero_point: int, num_bits: int) -> Codes:
    x, top, shift = x.detach(), 2**num_bits - 1, low_plane_bits(num_bits)
    if zero_point % 2:
        zero_point, scale = top - zero_point, -scale
    planes = _like(x, num_bits)
    if x.numel() <= _BLOCK:
        _write(x, planes, 1.0 / scale, zero_point, top, shift)
    else:
        for values, parts in _blocks(x, planes):
            _write(values, parts, 1.0 / scale, zero_point, top, shift)
    return _described(planes, scale, zero_point, num_bits)


def _with_channels_last(codes: Tensor) -> Tensor:
    """A copy if need be."""
    strides = channels_last_strides(codes.shape)
    if codes.stride() == strides:
        return codes
    if not codes.is_contiguous() or codes[0].numel() < _TRANSPOSE_FROM:
        return codes.permute(0, 2, 3, 1).contiguous().as_strided(codes.shape, strides)
    result = torch.empty_strided(codes.shape, strides, dtype=codes.dtype)
    for target, image in zip(result.permute(0, 2, 3, 1).flatten(1, 2), codes.flatten(2), strict=True):
        target.copy_(image.T)
    return result


def _write(x: Tensor, planes: Sequence[Tensor], factor: float, zero_point: int, top: int, shift: int) -> None:
    """The codes of ``x`` into uint8 planes of its shape."""
    y = x * factor if x.dtype == torch.float32 else x.to(torch.float32).mul_(factor)
    bits = y.add_(_MAGIC + zero_point).clamp_(_MAGIC, _MAGIC + top).view(torch.int32)
    if shift:
        planes[1].copy_(bits).bitwise_and_(2**shift - 1)
        bits.bitwise_right_shift_(shift)
    planes[0].copy_(bits)


def _blocks(x: Tensor, planes: list[Tensor]) -> Iterator[tuple[Tensor, Sequence[Tensor]]]:
    """``x`` and the planes made by ``empty_like`` in matching pieces."""
    if x.stride() != planes[0].stride():  # not dense
        x = x.clone(memory_format=torch.contiguous_format)
        planes[:] = [plane.new_empty(x.shape) for plane in planes]
    flat = [tensor.as_strided((x.numel(),), (1,)).split(_BLOCK) for tensor in (x, *planes)]
    for values, *parts in zip(*flat, strict=True):
        yield values, parts
