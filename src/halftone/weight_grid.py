"""The grid that a layer's weights are rounded to: scale and zero point of each output channel, or group of weights.

A weight is ``scale * (code - zero_point)``. Codes of a symmetric grid are in ``[-(2**(b-1) - 1), 2**(b-1) - 1]`` with
zero at 0; those of an asymmetric one fill ``[-2**(b-1), 2**(b-1) - 1]``. Groups are of consecutive weights of an output
channel in the order of memory (input channel, then row and column of a convolution's kernel); the last may be shorter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from halftone.errors import InputError, NonFiniteError
from halftone.numerics import quantize_weight, range_to_qparams, weight_limit

__all__ = ["WeightGrid", "by_group", "group_count", "range_grid"]


@dataclass(frozen=True, eq=False)
class WeightGrid:
    """See the module's head.

    Attributes:
        num_bits: 2 to 8.
        scale: float32 ``[out]``, or ``[out, groups]``.
        zero_point: int8 of the shape of ``scale``; None for a symmetric grid.
        group_size: weights of a group; None for all of an output channel.
    """

    num_bits: int
    scale: Tensor
    zero_point: Tensor | None = None
    group_size: int | None = None

    @property
    def lowest(self) -> int:
        """The smallest code."""
        return -weight_limit(self.num_bits) - (self.zero_point is not None)

    @property
    def highest(self) -> int:
        """The largest code."""
        return weight_limit(self.num_bits)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Scale and, if there are some, zero points."""
        return (self.scale,) if self.zero_point is None else (self.scale, self.zero_point)

    def spread(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """What belongs to an output channel or group, at each of its weights: broadcastable to ``shape``, that of the
        layer's weight."""
        if self.group_size is None:
            return values.view(-1, *[1] * (len(shape) - 1))
        length = torch.Size(shape[1:]).numel()
        return values.repeat_interleave(self.group_size, dim=1)[:, :length].reshape(tuple(shape))

    def codes(self, weight: Tensor) -> Tensor:
        """Weights to the nearest codes: int8 of the shape of ``weight``, which is floating point ``[out, ...]``."""
        scaled = torch.round(weight.detach().to(torch.float32) / self.spread(self.scale, weight.shape))
        if self.zero_point is not None:
            scaled += self.spread(self.zero_point, weight.shape)
        return scaled.clamp(self.lowest, self.highest).to(torch.int8)

    def centred(self, codes: Tensor) -> Tensor:
        """``codes - zero_point``: int8 where that fits, up to 7 bits and of symmetric grids, else int16."""
        if self.zero_point is None:
            return codes
        wide = codes.to(torch.int16) - self.spread(self.zero_point, codes.shape)
        return wide if self.num_bits == 8 else wide.to(torch.int8)

    def values(self, codes: Tensor) -> Tensor:
        """Real values of codes, float32 of their shape."""
        return self.centred(codes) * self.spread(self.scale, codes.shape)


def range_grid(weight: Tensor, num_bits: int, group_size: int | None = None, symmetric: bool = True) -> WeightGrid:
    """The grid that covers the range of every output channel or group, and zero.

    Args:
        weight: floating point ``[out, ...]``.
        num_bits: 2 to 8.

    Raises:
        NonFiniteError: the weight has NaN or infinite elements.
        InputError: ``num_bits`` is not 2 to 8.
    """
    if symmetric and group_size is None:
        return WeightGrid(num_bits, quantize_weight(weight, num_bits)[1])
    rows = by_group(weight, group_size)
    shape = weight.shape[:1] if group_size is None else (len(weight), -1)
    if symmetric:
        return WeightGrid(num_bits, quantize_weight(rows, num_bits)[1].view(shape), None, group_size)
    if not 2 <= num_bits <= 8:
        raise InputError(f"weights of {num_bits} bits are asked for; allowed are 2 to 8")
    if not bool(torch.isfinite(rows).all()):
        count = int((~torch.isfinite(rows)).sum())
        raise NonFiniteError(f"a weight of shape {tuple(weight.shape)} has {count} NaN or infinite elements")
    found = range_to_qparams(rows.amin(dim=1), rows.amax(dim=1), num_bits)
    zero_point = (found.zero_point - 2 ** (num_bits - 1)).to(torch.int8)
    return WeightGrid(num_bits, found.scale.view(shape), zero_point.view(shape), group_size)


def by_group(weight: Tensor, group_size: int | None) -> Tensor:
    """Weights ``[out, ...]`` by groups, ``[out * groups, group_size]`` in float32; what the last group lacks is 0."""
    rows = weight.detach().to(torch.float32).flatten(1)
    if group_size is None:
        return rows
    return functional.pad(rows, (0, -rows.shape[1] % group_size)).view(-1, group_size)


def group_count(shape: Sequence[int], group_size: int) -> int:
    """Groups of an output channel of a weight of this shape."""
    return -(-torch.Size(shape[1:]).numel() // group_size)
