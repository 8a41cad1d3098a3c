"""The convolution half of the oracle; what it computes is defined in `halftone.kernels.reference`.

Convolutions are unfolded tile by tile (a band of output rows, or several small images) and multiplied as
matrices; never ``conv2d``, whose Winograd kernels on some machines are not exact.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from halftone.kernels.exact_product import (
    ExactProduct,
    Planes,
    accumulate,
    centre_of,
    centred_planes,
    float_codes,
)
from halftone.kernels.images import image_by_image
from halftone.kernels.registry import (
    ROW_SCALES,
    WEIGHT_GROUPS,
    WIDE_WEIGHTS,
    ConvGeometry,
    LayerWeights,
    PreparedKernel,
    Scale,
    ZeroPoint,
    register_kernel,
)
from halftone.kernels.scaled_product import ScaledProduct

__all__ = ["FEATURES", "conv2d", "int_accumulate_conv2d", "prepare_conv2d"]

#: The reference can do everything.
FEATURES = {ROW_SCALES: None, WEIGHT_GROUPS: None, WIDE_WEIGHTS: None}

#: Elements of one unfolded tile at most (8 MiB), but never fewer output pixels than the other limit.
_TILE_ELEMENTS = 2**21
_TILE_PIXELS = 512


class _ReferenceConv2d:
    """`PreparedKernel` of a convolution."""

    def __init__(self, weights: LayerWeights) -> None:
        self.geometry = weights.geometry or ConvGeometry()
        self.product = ScaledProduct(weights, self.geometry.groups, _as_rows)
        self.features, _, *self.kernel_size = weights.weight.shape
        bias = weights.bias
        self.bias = None if bias is None else bias.detach().to(torch.float32).view(-1, 1)

    def __call__(self, x: Tensor, input_scale: Scale, input_zero_point: ZeroPoint, num_bits: int) -> Tensor:
        if x.dim() == 3:
            return self(x.unsqueeze(0), input_scale, input_zero_point, num_bits).squeeze(0)
        if isinstance(input_scale, Tensor) or isinstance(input_zero_point, Tensor):
            return image_by_image(self, x, input_scale, input_zero_point, num_bits)
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            codes = float_codes(x, input_scale, input_zero_point, num_bits)
            result: Tensor | None = None
            opened = self.product.open()
            for images, rows, columns in self.tiles(codes, input_zero_point, num_bits):
                if result is None:
                    result = self.empty_output(x, x.dtype)
                y = self.product(opened, columns, _multiply, input_scale, input_zero_point, num_bits)
                if self.bias is not None:
                    y.add_(self.bias)
                self.store(result, images, rows, y)
            return self.empty_output(x, x.dtype) if result is None else result

    def empty_output(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Uninitialized output ``[n, out, h', w']`` for an input ``[n, in, h, w]``."""
        left, right, top, bottom = self.geometry.padding
        size = self._output_size(x.shape[2] + top + bottom, x.shape[3] + left + right)
        return torch.empty(x.shape[0], self.features, *size, dtype=dtype, device=x.device)

    @staticmethod
    def store(result: Tensor, images: slice, rows: slice, tile: Tensor) -> None:
        """Writes a tile ``[out, n * pixels]`` to its place in the output ``[n, out, h', w']``."""
        place = result[images, :, rows].transpose(0, 1)
        place.copy_(tile.view(place.shape))

    def tiles(self, codes: Tensor, zero_point: int, num_bits: int) -> Iterator[tuple[slice, slice, Planes]]:
        """The codes as a matrix product takes them, tile by tile; may write into ``codes``.

        Args:
            codes: float32 ``[n, in, h, w]``.
            zero_point: code of the padding.
            num_bits: 2 to 16.

        Yields:
            Images, output rows, and their planes unfolded: ``[groups, k, images * rows * w']``.
        """
        if any(self.geometry.padding):
            codes = functional.pad(codes, self.geometry.padding, value=float(zero_point))
        height, width = self._output_size(codes.shape[2], codes.shape[3])
        planes = centred_planes(codes.contiguous(), num_bits)
        reduction = codes.shape[1] * self.kernel_size[0] * self.kernel_size[1]
        pixels = max(_TILE_PIXELS, _TILE_ELEMENTS // max(1, reduction))
        band = max(1, min(height, pixels // max(1, width)))
        images = max(1, pixels // max(1, height * width))
        for first in range(0, codes.shape[0], images):
            part = slice(first, first + images)
            for top in range(0, height, band):
                rows = slice(top, min(top + band, height))
                yield part, rows, [(f, self._unfold(plane[part], rows, width)) for f, plane in planes]

    def _unfold(self, plane: Tensor, rows: slice, width: int) -> Tensor:
        """``[n, in, h, w]`` (padded) to ``[groups, in / groups * kernel, n * rows * width]``; a copy or a view."""
        (down, across), (dy, dx) = self.geometry.stride, self.geometry.dilation
        n, channels = plane.shape[:2]
        of_image, of_channel, of_row, of_column = plane.stride()
        window = plane.as_strided(
            (channels, *self.kernel_size, n, rows.stop - rows.start, width),
            (of_channel, of_row * dy, of_column * dx, of_image, of_row * down, of_column * across),
            plane.storage_offset() + rows.start * down * of_row,
        )
        groups = self.geometry.groups
        reduction = channels // groups * self.kernel_size[0] * self.kernel_size[1]
        return window.reshape(groups, reduction, n * (rows.stop - rows.start) * width)

    def _output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output for a padded input of this size."""
        (down, across), (dy, dx) = self.geometry.stride, self.geometry.dilation
        return (
            (height - dy * (self.kernel_size[0] - 1) - 1) // down + 1,
            (width - dx * (self.kernel_size[1] - 1) - 1) // across + 1,
        )


def _multiply(plane: Tensor, weight: Tensor, start: int, stop: int) -> Tensor:
    """A part of unfolded codes ``[groups, k, pixels]`` with weights ``[groups, out / groups, stop - start]``."""
    if len(weight) == 1:
        return weight[0] @ plane[0, start:stop]
    return torch.bmm(weight, plane[:, start:stop]).flatten(0, 1)


def _as_rows(values: Tensor) -> Tensor:
    """The output's channels are its first dimension."""
    return values.view(-1, 1)


@register_kernel("conv2d", "reference", (), priority=0, features=FEATURES)
def prepare_conv2d(weights: LayerWeights) -> PreparedKernel:
    """Reference of a 2-D convolution with a quantized input; see the module's head."""
    return _ReferenceConv2d(weights)


def conv2d(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    input_scale: Scale,
    input_zero_point: ZeroPoint,
    num_bits: int,
    geometry: ConvGeometry,
) -> Tensor:
    """One quantized convolution; prepares the weights anew at every call.

    Args:
        x: floating point ``[n, in, h, w]`` or ``[in, h, w]``.
        weight: int8 ``[out, in / groups, kh, kw]``.
        weight_scale: float32 ``[out]``.
        bias: floating point ``[out]`` or None.
        input_scale: a float32 value, or a tensor of one for each image.
        input_zero_point: code of real zero, or one for each image.
        num_bits: activation bits, 2 to 16.
        geometry: stride, padding, dilation, groups.

    Returns:
        ``[n, out, h', w']`` in the dtype of ``x``.
    """
    prepared = prepare_conv2d(LayerWeights(weight, weight_scale, bias, geometry))
    return prepared(x, input_scale, input_zero_point, num_bits)


def int_accumulate_conv2d(
    codes: Tensor, weight: Tensor, num_bits: int, zero_point: int, geometry: ConvGeometry
) -> Tensor:
    """Exact accumulators ``sum(codes * weight)`` of a convolution whose padding has the code ``zero_point``.

    Args:
        codes: integer ``[n, in, h, w]`` in ``[0, 2**num_bits - 1]``.
        weight: int8 ``[out, in / groups, kh, kw]``.
        num_bits: 2 to 16.
        zero_point: the code of real zero.
        geometry: stride, padding, dilation, groups.

    Returns:
        int64 ``[n, out, h', w']``.
    """
    layer = _ReferenceConv2d(LayerWeights(weight, torch.ones(weight.shape[0]), None, geometry))
    product = ExactProduct.of(weight, geometry.groups)
    offset = (product.row_sum * centre_of(num_bits)).to(torch.int64).view(-1, 1)
    result, weights = layer.empty_output(codes, torch.int64), product.float_weights()
    for images, rows, columns in layer.tiles(codes.to(torch.float32, copy=True), zero_point, num_bits):
        total = accumulate(weights, columns, _multiply)
        layer.store(result, images, rows, total.to(torch.int64) + offset)
    return result
