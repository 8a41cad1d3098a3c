"""Affine quantization as pure functions: range to parameters, numbers to integers and back.

The definition every kernel follows (all arithmetic in float32)::

    q = clamp(round_half_even(x * (1 / scale)) + zero_point, 0, 2**num_bits - 1)
    x' = (q - zero_point) * scale

Note the *multiplication by the float32 reciprocal*: it differs from a division by one code in rare
ties, so a kernel that divides is wrong. Activations are unsigned codes; weights are signed and
symmetric, one scale per output channel, in ``[-(2**(b-1) - 1), 2**(b-1) - 1]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halftone.errors import InputError, NonFiniteError

__all__ = [
    "MAX_NUM_BITS",
    "MIN_NUM_BITS",
    "MIN_SCALE",
    "QParams",
    "dequantize",
    "low_plane_bits",
    "measured_qparams",
    "quantize",
    "quantize_weight",
    "range_to_qparams",
    "weight_limit",
]

MIN_NUM_BITS = 2
MAX_NUM_BITS = 16
PLANE_BITS = 8
#: Smallest scale ever produced: the smallest normal float32, whose reciprocal is finite.
MIN_SCALE = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, eq=False)
class QParams:
    """Parameters of one affine quantization.

    Attributes:
        scale: float32, the step between two codes; any shape, usually ``[]``.
        zero_point: int32, the code of real zero; the shape of ``scale``.
        num_bits: number of bits of a code, 2 to 16.
    """

    scale: Tensor
    zero_point: Tensor
    num_bits: int

    def __post_init__(self) -> None:
        _check_num_bits(self.num_bits)


def _check_num_bits(num_bits: int) -> None:
    if not MIN_NUM_BITS <= num_bits <= MAX_NUM_BITS:
        raise InputError(f"num_bits is {num_bits}; allowed are {MIN_NUM_BITS} to {MAX_NUM_BITS}")


def range_to_qparams(lo: float | Tensor, hi: float | Tensor, num_bits: int, symmetric: bool = False) -> QParams:
    """Quantization parameters that cover ``[lo, hi]`` with unsigned codes of ``num_bits`` bits.

    The range is first widened to contain zero, so that zero has an exact code. Asymmetric: scale =
    (hi - lo) / (2^b - 1), zero_point = round(-lo / scale). Symmetric: scale = max(|lo|, |hi|) /
    (2^(b-1) - 1) and zero_point = 2^(b-1), the middle code. A range that is all zero gives scale 1.
    Tiny ranges never give a scale below `MIN_SCALE`.

    Args:
        lo: lower end, a float or a tensor of any shape.
        hi: upper end, same shape as ``lo``.
        num_bits: 2 to 16.
        symmetric: whether the range is made symmetric around zero.

    Raises:
        NonFiniteError: an end is NaN or infinite.
        InputError: ``hi`` is below ``lo``, or ``num_bits`` is out of range.
    """
    _check_num_bits(num_bits)
    low = torch.as_tensor(lo).to(torch.float64)
    high = torch.as_tensor(hi).to(torch.float64)
    if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise NonFiniteError(f"a range to quantize has a NaN or infinite end: lo {lo}, hi {hi}")
    if bool((high < low).any()):
        raise InputError(f"a range to quantize ends below its start: lo {lo}, hi {hi}")
    return _cover(low, high, num_bits, symmetric)


def measured_qparams(lo: Tensor, hi: Tensor, num_bits: int, symmetric: bool = False) -> QParams:
    """`range_to_qparams` of ranges that are measured while a model runs, one for each row or image.

    Nothing is checked, since in a linear layer that would make an accelerator wait: a range with a NaN or infinite end
    gives a scale that is not finite, and so an output that is not.

    Args:
        lo: smallest values, floating point, any shape.
        hi: largest values, same shape.
        num_bits: 2 to 16.
        symmetric: whether ranges are made symmetric around zero.

    Returns:
        Scales and zero points of the shape of ``lo``.
    """
    return _cover(lo.to(torch.float64), hi.to(torch.float64), num_bits, symmetric)


def _cover(low: Tensor, high: Tensor, num_bits: int, symmetric: bool) -> QParams:
    """The formulas of `range_to_qparams`, element by element, for float64 ends."""
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    levels = 2**num_bits - 1
    if symmetric:
        span, steps = torch.maximum(-low, high), 2 ** (num_bits - 1) - 1
    else:
        span, steps = high - low, levels
    scale = _scale_of(span, steps)
    if symmetric:
        zero_point = torch.full_like(scale, 2 ** (num_bits - 1)).to(torch.int32)
    else:
        zero_point = torch.round(-low / scale.to(torch.float64)).clamp(0, levels).to(torch.int32)
    return QParams(scale, zero_point, num_bits)


def _scale_of(span: Tensor, steps: int) -> Tensor:
    """float32 scale of a non-negative span divided in ``steps``; 1 where the span is zero."""
    scale = (span.to(torch.float64) / steps).clamp(min=MIN_SCALE).to(torch.float32)
    return torch.where(span == 0, torch.ones_like(scale), scale)


def quantize(x: Tensor, scale: Tensor | float, zero_point: Tensor | int, num_bits: int) -> Tensor:
    """Unsigned codes of ``x``: the reference definition of the module's head.

    Args:
        x: any floating-point tensor, taken as float32. A NaN has no code; what it gives is undefined.
        scale: float32, broadcastable to ``x``.
        zero_point: integer, broadcastable to ``x``.
        num_bits: 2 to 16.

    Returns:
        int32 tensor of the shape of ``x``, in ``[0, 2**num_bits - 1]``.
    """
    _check_num_bits(num_bits)
    reciprocal = 1.0 / torch.as_tensor(scale, dtype=torch.float32, device=x.device)
    codes = torch.round(x.to(torch.float32) * reciprocal) + zero_point
    return codes.clamp(0, 2**num_bits - 1).to(torch.int32)


def dequantize(codes: Tensor, scale: Tensor | float, zero_point: Tensor | int) -> Tensor:
    """Real values of integer codes: ``(codes - zero_point) * scale`` in float32, shape of ``codes``."""
    step = torch.as_tensor(scale, dtype=torch.float32, device=codes.device)
    return (codes.to(torch.int32) - zero_point).to(torch.float32) * step


def weight_limit(num_bits: int) -> int:
    """Largest magnitude of a signed weight of ``num_bits`` bits: ``2**(num_bits - 1) - 1``."""
    return 2 ** (num_bits - 1) - 1


def quantize_weight(weight: Tensor, num_bits: int, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Symmetric signed weights, one scale per output channel, rounded to nearest.

    Args:
        weight: floating point, ``[out, ...]``.
        num_bits: 2 to 8.
        scale: float32 ``[out]``; None for the one that maps the channel's largest magnitude to the largest integer.

    Returns:
        ``(integers, scale)``: int8 of the shape of ``weight``; float32 ``[out]``. A channel that is all
        zero has scale 1.

    Raises:
        NonFiniteError: the weight has NaN or infinite elements.
        InputError: ``num_bits`` is not 2 to 8.
    """
    if not MIN_NUM_BITS <= num_bits <= PLANE_BITS:
        raise InputError(f"weights of {num_bits} bits are asked for; allowed are 2 to 8")
    values = weight.detach().to(torch.float32)
    if not bool(torch.isfinite(values).all()):
        count = int((~torch.isfinite(values)).sum())
        raise NonFiniteError(f"a weight of shape {tuple(weight.shape)} has {count} NaN or infinite elements")
    limit = weight_limit(num_bits)
    if scale is None:
        scale = _scale_of(values.flatten(1).abs().amax(dim=1), limit)
    integers = torch.round(values / scale.view(-1, *[1] * (values.dim() - 1)))
    return integers.clamp(-limit, limit).to(torch.int8), scale


def low_plane_bits(num_bits: int) -> int:
    """Bits of the low plane of a code: 0 up to 8 bits, ``num_bits - 8`` above."""
    _check_num_bits(num_bits)
    return max(0, num_bits - PLANE_BITS)
