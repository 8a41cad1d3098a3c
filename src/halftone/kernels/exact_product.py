"""Exact integer products in float32: the arithmetic under the reference kernels.

Codes are centred (q - 128, magnitude at most 128) and the reduction is cut into chunks in which
128 * sum(|w|) <= 2^24 for every output channel. Then every partial sum, in whatever order, is an integer
that float32 holds. TF32 or bfloat16 factors would be exact as well (they have 8 bits). Chunks and planes
are joined in float64, where integers are exact to 2^53.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from halftone.kernels.registry import Scale, ZeroPoint
from halftone.numerics import low_plane_bits

__all__ = [
    "ExactProduct",
    "FloatChunks",
    "Planes",
    "accumulate",
    "centre_of",
    "centred_planes",
    "float_codes",
    "plan_chunks",
]

_EXACT = 2**24
_CENTRE = 128

#: Pairs (factor, plane): float32 planes whose weighted sum is the centred codes.
Planes = list[tuple[int, Tensor]]

#: Triples (start, stop, float32 weights ``[groups, out / groups, stop - start]``).
FloatChunks = list[tuple[int, int, Tensor]]


def plan_chunks(weight: Tensor) -> tuple[tuple[int, int], ...]:
    """Cuts of the reduction that keep float32 sums exact.

    Args:
        weight: int8 or int16 ``[out, k]``, at most 255 in magnitude.

    Returns:
        Consecutive ``(start, stop)`` that cover 0 to k, each with 128 * sum(|w|) <= 2^24 in every row.
    """
    length = weight.shape[1]
    largest = 128 if weight.dtype == torch.int8 else 255
    if length * largest * _CENTRE <= _EXACT or weight.shape[0] == 0:
        return ((0, length),)
    limit = _EXACT // _CENTRE
    running = weight.to(torch.int32).abs().cumsum(dim=1, dtype=torch.int32)
    chunks, start = [], 0
    while start < length:
        sums = running[:, start:] - (running[:, start - 1 : start] if start else 0)
        stop = start + int((sums.amax(dim=0) <= limit).sum())
        chunks.append((start, stop))
        start = stop
    return tuple(chunks)


@dataclass(frozen=True, eq=False)
class ExactProduct:
    """An exact product with fixed weights.

    Attributes:
        weight: int8 or int16 ``[groups, out / groups, k]``.
        row_sum: float64 ``[out]``, sums of the weights of each output channel.
        chunks: see `plan_chunks`.
        start: where in the whole reduction these weights begin, if they are a part of it.
    """

    weight: Tensor
    row_sum: Tensor
    chunks: tuple[tuple[int, int], ...]
    start: int = 0

    @classmethod
    def of(cls, weight: Tensor, groups: int = 1, start: int = 0) -> ExactProduct:
        """Plans the product with a weight ``[out, ...]``, int8 or int16."""
        flat = weight.detach().flatten(1)
        row_sum = flat.sum(dim=1, dtype=torch.int64).to(torch.float64)
        by_group = flat.reshape(groups, flat.shape[0] // groups, flat.shape[1])
        return cls(by_group, row_sum, plan_chunks(flat), start)

    def float_weights(self) -> FloatChunks:
        """The chunks in float32, converted once a call and not kept."""
        return [
            (self.start + start, self.start + stop, self.weight[:, :, start:stop].to(torch.float32))
            for start, stop in self.chunks
        ]

    def offset(self, zero_point: ZeroPoint, num_bits: int, dtype: torch.dtype) -> Tensor:
        """``[out]``: what turns a sum over centred codes into one over ``codes - zero_point``.

        Of zero points ``[rows, 1]`` it is ``[rows, out]``. Exact in float32 too where `accumulate` returns float32.
        """
        return (self.row_sum * (centre_of(num_bits) - zero_point)).to(dtype)


def accumulate(weights: FloatChunks, planes: Planes, multiply: Callable[[Tensor, Tensor, int, int], Tensor]) -> Tensor:
    """Sum over planes and chunks of ``factor * multiply(plane, weight chunk, start, stop)``.

    Returns:
        Exact integers: float32 if there is one plane and one chunk, else float64.
    """
    single = len(planes) * len(weights) == 1
    total: Tensor | None = None
    for start, stop, weight in weights:
        for factor, plane in planes:
            part = multiply(plane, weight, start, stop)
            if total is None:
                total = part if single else part.to(torch.float64).mul_(factor)
            else:
                total.add_(part, alpha=factor)
    assert total is not None
    return total


def centre_of(num_bits: int) -> int:
    """What `centred_planes` subtracts from a code."""
    shift = low_plane_bits(num_bits)
    return _CENTRE if shift == 0 else (_CENTRE << shift) + (1 << (shift - 1))


def centred_planes(codes: Tensor, num_bits: int) -> Planes:
    """Planes of float32 codes, centred: ``sum(factor * plane) == codes - centre_of(num_bits)``.

    May write into ``codes``.
    """
    shift = low_plane_bits(num_bits)
    if shift == 0:
        return [(1, codes.sub_(_CENTRE))]
    high = torch.floor(codes * 2.0**-shift)
    low = codes.sub_(high, alpha=2**shift).sub_(1 << (shift - 1))
    return [(2**shift, high.sub_(_CENTRE)), (1, low)]


def float_codes(x: Tensor, scale: Scale, zero_point: ZeroPoint, num_bits: int) -> Tensor:
    """`halftone.numerics.quantize`, but the codes stay float32 (exact); a NaN stays NaN."""
    codes = x.to(torch.float32) * (1.0 / scale)
    return codes.round_().add_(zero_point).clamp_(0, 2**num_bits - 1)
