"""Exact products, scaled: of whole output channels, or of groups of their weights with scales of their own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from halftone.kernels.exact_product import ExactProduct, FloatChunks, Planes, accumulate
from halftone.kernels.registry import LayerWeights, Scale, ZeroPoint

__all__ = ["ScaledProduct"]


class ScaledProduct:
    """What comes after the codes and before the bias, in the reference.

    Args:
        weights: of the layer.
        groups: of a convolution.
        align: puts ``[out]`` where the output's channels are.
    """

    def __init__(self, weights: LayerWeights, groups: int, align: Callable[[Tensor], Tensor]) -> None:
        self.align = align
        if weights.group_size is None:
            self.parts = [(ExactProduct.of(weights.weight, groups), weights.scale)]
            return
        flat = weights.weight.detach().flatten(1)
        self.parts = [
            (ExactProduct.of(part, groups, number * weights.group_size), weights.scale[:, number].to(torch.float64))
            for number, part in enumerate(flat.split(weights.group_size, dim=1))
        ]

    def open(self) -> list[FloatChunks]:
        """The weights in float32, for as long as a call takes."""
        return [product.float_weights() for product, _ in self.parts]

    def __call__(
        self,
        opened: list[FloatChunks],
        planes: Planes,
        multiply: Callable[[Tensor, Tensor, int, int], Tensor],
        step: Scale,
        zero_point: ZeroPoint,
        num_bits: int,
    ) -> Tensor:
        """Float32 ``scale * step * sum((codes - zero_point) * w)``.

        One float32 rounding of the sum and one of the product, as `halftone.kernels.reference` has it. With groups the
        exact sums are scaled and added in float64, that is rounded to float32, and multiplied by ``step``.

        Args:
            opened: what `open` gave.
            planes, multiply: see `accumulate`.
            step: scale of the input.
        """
        if len(self.parts) == 1:
            ((product, scale),) = self.parts
            total = self._exact(product, opened[0], planes, multiply, zero_point, num_bits)
            if scale.dtype == torch.float32:
                return total.to(torch.float32).mul_(self.align(scale) * step)
        sums = (
            self._exact(product, chunks, planes, multiply, zero_point, num_bits).to(torch.float64) * self.align(scale)
            for (product, scale), chunks in zip(self.parts, opened, strict=True)
        )
        joined = next(sums)
        for other in sums:
            joined.add_(other)
        return joined.to(torch.float32).mul_(step)

    def _exact(
        self,
        product: ExactProduct,
        chunks: FloatChunks,
        planes: Planes,
        multiply: Callable[[Tensor, Tensor, int, int], Tensor],
        zero_point: ZeroPoint,
        num_bits: int,
    ) -> Tensor:
        """``sum((codes - zero_point) * w)`` over one part: exact, float32 or float64."""
        total = accumulate(chunks, planes, multiply)
        return total.add_(self.align(product.offset(zero_point, num_bits, total.dtype)))
