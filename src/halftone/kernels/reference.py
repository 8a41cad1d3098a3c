"""The oracle: integer layers in plain torch, exact on every machine.

What is computed, for codes ``q`` of the input (`halftone.numerics.quantize`) and int8 weights ``w``::

    acc = sum(q * w)                                            exact integer
    y = float32(acc - zero_point * sum(w)) * float32(input_scale * weight_scale) + bias

with one float32 rounding after each of: the conversion, the product, the sum; the result is then cast to the
input's dtype. Padding of a convolution is real zero, that is, code ``zero_point``. There is no gradient.
How it stays exact although it multiplies in float32 is told in `halftone.kernels.exact_product`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from halftone.kernels.exact_product import (
    ExactProduct,
    FloatChunks,
    accumulate,
    centre_of,
    centred_planes,
    float_codes,
    plan_chunks,
)
from halftone.kernels.reference_conv2d import conv2d, int_accumulate_conv2d, prepare_conv2d
from halftone.kernels.registry import LayerWeights, PreparedKernel, register_kernel

__all__ = [
    "conv2d",
    "int_accumulate_conv2d",
    "int_accumulate_linear",
    "linear",
    "plan_chunks",
    "prepare_conv2d",
    "prepare_linear",
]


#: Elements of one block of rows at most (4 MiB of float32), but never fewer rows than the other limit.
_BLOCK_ELEMENTS = 2**20
_BLOCK_ROWS = 128


def _centred_product(weights: FloatChunks, codes: Tensor, num_bits: int) -> Tensor:
    """``sum((codes - centre) * w)`` of float32 codes ``[rows, k]``: exact ``[rows, out]``."""

    def multiply(plane: Tensor, weight: Tensor, start: int, stop: int) -> Tensor:
        return plane[:, start:stop] @ weight[0].T

    return accumulate(weights, centred_planes(codes, num_bits), multiply)


class _ReferenceLinear:
    """`PreparedKernel` of a linear layer; works through blocks of rows that stay in the cache."""

    def __init__(self, weights: LayerWeights) -> None:
        self.product = ExactProduct.of(weights.weight)
        self.scale = weights.scale
        self.bias = None if weights.bias is None else weights.bias.detach().to(torch.float32)

    def __call__(self, x: Tensor, input_scale: float, input_zero_point: int, num_bits: int) -> Tensor:
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            rows, (features, inputs) = x.reshape(-1, x.shape[-1]), self.product.weight.shape[1:]
            result = torch.empty(len(rows), features, dtype=x.dtype, device=x.device)
            weights, scale = self.product.float_weights(), self.scale * input_scale
            block = max(_BLOCK_ROWS, _BLOCK_ELEMENTS // max(1, features, inputs))
            for part, place in zip(rows.split(block), result.split(block), strict=True):
                codes = float_codes(part, input_scale, input_zero_point, num_bits)
                total = _centred_product(weights, codes, num_bits)
                total.add_(self.product.offset(input_zero_point, num_bits, total.dtype))
                y = total.to(torch.float32).mul_(scale)
                place.copy_(y if self.bias is None else y.add_(self.bias))
            return result.view(*x.shape[:-1], features)


@register_kernel("linear", "reference", (), priority=0)
def prepare_linear(weights: LayerWeights) -> PreparedKernel:
    """Reference of ``y = x @ w.T + b`` with a quantized ``x``; see the module's head."""
    return _ReferenceLinear(weights)


def linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    input_scale: float,
    input_zero_point: int,
    num_bits: int,
) -> Tensor:
    """One quantized linear layer; prepares the weights anew at every call.

    Args:
        x: floating point ``[..., in]``.
        weight: int8 ``[out, in]``.
        weight_scale: float32 ``[out]``.
        bias: floating point ``[out]`` or None.
        input_scale: a float32 value.
        input_zero_point: code of real zero.
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
    total = _centred_product(product.float_weights(), rows, num_bits).to(torch.int64)
    total += (product.row_sum * centre_of(num_bits)).to(torch.int64)
    return total.view(*codes.shape[:-1], weight.shape[0])
