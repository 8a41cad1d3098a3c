"""The oracle: integer layers in plain torch, exact on every machine.

What is computed, for codes ``q`` of the input (`halftone.numerics.quantize`) and int8 weights ``w``::

    acc = sum(q * w)                                            exact integer
    y = float32(acc - zero_point * sum(w)) * float32(input_scale * weight_scale) + bias

with one float32 rounding after each of: the conversion, the product, the sum; the result is then cast to the
input's dtype. Padding of a convolution is real zero, that is, code ``zero_point``. There is no gradient. Scale and zero
point may be those of each row of a linear layer, or of each image of a convolution, instead of the whole input's.
Groups of weights with scales of their own are summed exactly each by itself, and joined in float64::

    y = float32(sum over groups of (acc - zero_point * sum(w)) * weight_scale) * input_scale + bias

How it stays exact although it multiplies in float32 is told in `halftone.kernels.exact_product`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from halftone.kernels.exact_product import (
    ExactProduct,
    accumulate,
    centre_of,
    centred_planes,
    float_codes,
    plan_chunks,
)
from halftone.kernels.reference_conv2d import FEATURES, conv2d, int_accumulate_conv2d, prepare_conv2d
from halftone.kernels.registry import (
    LayerWeights,
    PreparedKernel,
    Scale,
    ZeroPoint,
    register_kernel,
)
from halftone.kernels.scaled_product import ScaledProduct

__all__ = [
    "conv2d",
    "int_accumulate_conv2d",
    "int_accumulate_linear",
    "linear",
    "plan_chunks",
    "prepare_conv2d",
    "prepare_linear",
]


_Value = TypeVar("_Value", float, int)

#: Elements of one block of rows at most (4 MiB of float32), but never fewer rows than the other limit.
_BLOCK_ELEMENTS = 2**20
_BLOCK_ROWS = 128


def _multiply(plane: Tensor, weight: Tensor, start: int, stop: int) -> Tensor:
    """A part of codes ``[rows, k]`` with weights ``[1, out, stop - start]``."""
    return plane[:, start:stop] @ weight[0].T


def _as_it_is(values: Tensor) -> Tensor:
    """The output's channels are its last dimension."""
    return values


class _ReferenceLinear:
    """`PreparedKernel` of a linear layer; works through blocks of rows that stay in the cache."""

    def __init__(self, weights: LayerWeights) -> None:
        self.shape = weights.weight.shape
        self.product = ScaledProduct(weights, 1, _as_it_is)
        self.bias = None if weights.bias is None else weights.bias.detach().to(torch.float32)

    def __call__(self, x: Tensor, input_scale: Scale, input_zero_point: ZeroPoint, num_bits: int) -> Tensor:
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            rows, (features, inputs) = x.reshape(-1, x.shape[-1]), self.shape
            result = torch.empty(len(rows), features, dtype=x.dtype, device=x.device)
            opened = self.product.open()
            block = max(_BLOCK_ROWS, _BLOCK_ELEMENTS // max(1, features, inputs))
            parts, places = rows.split(block), result.split(block)
            numbers = _split(input_scale, block, len(parts)), _split(input_zero_point, block, len(parts))
            for part, place, step, zero in zip(parts, places, *numbers, strict=True):
                planes = centred_planes(float_codes(part, step, zero, num_bits), num_bits)
                y = self.product(opened, planes, _multiply, step, zero, num_bits)
                place.copy_(y if self.bias is None else y.add_(self.bias))
            return result.view(*x.shape[:-1], features)


def _split(value: _Value | Tensor, block: int, count: int) -> Sequence[_Value | Tensor]:
    """The number of every block of rows; or those of each block's rows, ``[rows, 1]``."""
    return value.view(-1, 1).split(block) if isinstance(value, Tensor) else [value] * count


@register_kernel("linear", "reference", (), priority=0, features=FEATURES)
def prepare_linear(weights: LayerWeights) -> PreparedKernel:
    """Reference of ``y = x @ w.T + b`` with a quantized ``x``; see the module's head."""
    return _ReferenceLinear(weights)


def linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    input_scale: Scale,
    input_zero_point: ZeroPoint,
    num_bits: int,
) -> Tensor:
    """One quantized linear layer; prepares the weights anew at every call.

    Args:
        x: floating point ``[..., in]``.
        weight: int8 ``[out, in]``.
        weight_scale: float32 ``[out]``.
        bias: floating point ``[out]`` or None.
        input_scale: a float32 value, or a tensor of one for each row of the flattened input.
        input_zero_point: code of real zero, or one for each row.
        num_bits: activation bits, 2 to 16.

    Returns:
        ``[..., out]`` in the dtype of ``x``.
    """
    prepared = prepare_linear(LayerWeights(weight, weight_scale, bias))
    return prepared(x, input_scale, input_zero_point, num_bits)


def int_accumulate_linear(codes: Tensor, weight: Tensor, num_bits: int) -> Tensor:
    """Exact accumulators ``sum(codes * weight)`` of a linear layer, for comparing kernels.

    Args:
        codes: integer ``[..., in]`` in ``[0, 2**num_bits - 1]``.
        weight: int8 ``[out, in]``.
        num_bits: 2 to 16.

    Returns:
        int64 ``[..., out]``.
    """
    product = ExactProduct.of(weight)
    rows = codes.reshape(-1, codes.shape[-1]).to(torch.float32, copy=True)
    total = accumulate(product.float_weights(), centred_planes(rows, num_bits), _multiply).to(torch.int64)
    total += (product.row_sum * centre_of(num_bits)).to(torch.int64)
    return total.view(*codes.shape[:-1], weight.shape[0])
