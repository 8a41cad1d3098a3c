"""Activations to unsigned bytes in four passes of plain torch ops; code for code `halftone.numerics.quantize`.

The passes are ``x * (1 / scale)``, ``+ (magic + zero_point)``, clamp, and a conversion of the *bits* to bytes. The
magic number is 1.5 * 2^23, where neighbouring float32 values are 1 apart: adding it rounds, half to even, and leaves
the code in the low bits. That spares a rounding, an addition and torch's conversion of floats to bytes, which is slow.

A tie goes to an even *sum*, so the sum's parity must be that of the rounded value: the zero point has to be even. If it
is odd, the complement ``top - q`` is made instead (from ``-x``; its zero point ``top - zero_point`` is even), and the
sign goes into the scale: ``scale * (q - z) == -scale * ((top - q) - (top - z))``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from halftone.numerics import low_plane_bits

__all__ = ["Codes", "Plane", "encode"]

#: As float32: 0x4B400000, so the low 16 bits of ``magic + code`` are those of the code.
_MAGIC = 1.5 * 2**23
#: Elements worked on at a time: fresh memory for a large float32 temporary costs more than the arithmetic.
_BLOCK = 2**19


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
    top, shift = 2**num_bits - 1, low_plane_bits(num_bits)
    if zero_point % 2:
        zero_point, scale = top - zero_point, -scale
    planes = [torch.empty_like(x, dtype=torch.uint8) for _ in range(2 if shift else 1)]
    if x.numel() <= _BLOCK:
        _write(x, planes, 1.0 / scale, zero_point, top, shift)
    else:
        for values, parts in _blocks(x, planes):
            _write(values, parts, 1.0 / scale, zero_point, top, shift)
    if shift == 0:
        return (Plane(planes[0], zero_point, scale),)
    high, low = planes
    return Plane(high, zero_point >> shift, scale * 2**shift), Plane(low, zero_point % 2**shift, scale)


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
