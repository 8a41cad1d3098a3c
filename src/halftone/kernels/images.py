"""A convolution with a scale and zero point for each image, by a kernel that knows one for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from halftone.kernels.registry import Scale, ZeroPoint

__all__ = ["image_by_image"]

_Value = TypeVar("_Value", float, int)


def image_by_image(
    convolve: Callable[[Tensor, float, int, int], Tensor],
    x: Tensor,
    input_scale: Scale,
    input_zero_point: ZeroPoint,
    num_bits: int,
) -> Tensor:
    """Calls a convolution once for each image, so that every bit is that of the image alone.

    An image of a denoiser is thousands of pixels: one at a time costs the product nothing.

    Args:
        convolve: takes images, one scale, one zero point and the bits.
        x: floating point ``[n, in, h, w]``.
        input_scale: float32, one or ``[n]``.
        input_zero_point: codes, one or ``[n]``.
        num_bits: 2 to 16.

    Returns:
        ``[n, out, h', w']`` in the dtype of ``x``.
    """
    if len(x) == 0:
        return convolve(x, 1.0, 0, num_bits)
    scales, zero_points = _numbers(input_scale, len(x)), _numbers(input_zero_point, len(x))
    images = zip(x.split(1), scales, zero_points, strict=True)
    return torch.cat([convolve(image, scale, zero_point, num_bits) for image, scale, zero_point in images])


def _numbers(value: _Value | Tensor, count: int) -> list[_Value]:
    return value.tolist() if isinstance(value, Tensor) else [value] * count
