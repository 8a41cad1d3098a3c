"""Integer layers on x86 CPUs with VNNI: oneDNN's int8 products, as torch exposes them.

What is guaranteed: the accumulators ``sum((q - zero_point) * w)`` are exact int32 for each 8-bit plane of the codes,
whatever the values. (`unavailable` tries it out: without VNNI, sums of two products saturate at 16 bits.) Like the
reference, oneDNN then goes to float32, scales and adds the bias, but it multiplies by the scales of input and weight
one after the other. Against exact arithmetic, with u = 2^-24::

    |y - exact| <= 6 u * (sum over planes of |scale * accumulator| + |bias|)

where the reference has 4 u and the total accumulator; a bfloat16 result is rounded once more. Codes of 9 to 16 bits are
two products with the same weights, the second added to the first by oneDNN in float32. (Stacked along the rows they
would be one call, but the planes' zero points differ, and joining them would take more passes over the output.) The low
plane is cut as narrow as can be: its share of a sum is below one step of the high plane.

Rows of a linear layer that have scales and zero points of their own are multiplied in steps of 1 from one zero point c
for all of them; what is then added for a row, ``(c - zero_point) * sum(w)``, counts as one more plane in the bound.

Integer sums depend on no order: an output has the same bits at any number of threads. A NaN in the input need not show
in the output (the reference shows it).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

from halftone import native
from halftone.kernels import reference
from halftone.kernels.images import image_by_image
from halftone.kernels.onednn_codes import Codes, Plane, encode_channels_last, encode_each_row, encode_rows
from halftone.kernels.onednn_product import Convolution, MatrixProduct, unavailable
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
from halftone.kernels.residence import release

__all__ = ["prepare_conv2d", "prepare_linear"]

_PRIORITY = 10
_ACCELERATORS = {"native quantization": native.unavailable}
#: Longest reduction whose int32 sum cannot overflow.
_LONGEST = (2**31 - 1) // (255 * 127)
#: Output pixels per output channel below which unfolding is faster: oneDNN's convolution sums the weights anew at every
#: call if there is a zero point, which costs as much as this many pixels (measured on AVX-512 VNNI).
_UNFOLD_BELOW = 3
#: Bytes of one unfolded part of the batch at most, but never less than an image.
_UNFOLDED_BYTES = 2**24


def _fits_int32(weights: LayerWeights) -> bool:
    """Whether no accumulator can overflow, and there is something to multiply. (Else the reference runs.)"""
    return 0 < weights.weight.numel() <= _LONGEST * len(weights.weight)


class _OnednnLinear:
    """`PreparedKernel` of a linear layer."""

    def __init__(self, weights: LayerWeights) -> None:
        self.weights = weights
        self.product = MatrixProduct(weights.weight, weights)
        self.features = len(weights.weight)
        release(weights.weight)

    def __call__(self, x: Tensor, input_scale: Scale, input_zero_point: ZeroPoint, num_bits: int) -> Tensor:
        *rows, _ = x.shape
        if x.numel() == 0:
            return x.new_empty(*rows, self.features)
        if isinstance(input_scale, Tensor):
            return self._row_by_row(x, input_scale, input_zero_point, num_bits).view(*rows, self.features)
        assert isinstance(input_zero_point, int)  # zero points of rows come with their scales
        y = self.product(encode_rows(x, input_scale, input_zero_point, num_bits), x.dtype)
        return y if len(rows) == 1 else y.view(*rows, self.features)

    def _row_by_row(self, x: Tensor, input_scale: Tensor, input_zero_point: ZeroPoint, num_bits: int) -> Tensor:
        """Each row with its own parameters, to ``[rows, out]``.

        oneDNN multiplies in steps of 1 from one zero point; what the rows differ in comes after.
        """
        rows = x.detach().reshape(-1, x.shape[-1])
        if isinstance(input_zero_point, Tensor):
            zero_points, common = input_zero_point, 2 ** (num_bits - 1)
        else:
            zero_points, common = torch.full(rows.shape[:1], input_zero_point, dtype=torch.int32), input_zero_point
        codes = encode_each_row(rows, input_scale, zero_points, num_bits, common)
        y = self.product(codes, torch.float32, with_bias=False)
        if isinstance(input_zero_point, Tensor):
            y.addr_((common - zero_points).to(torch.float32), self._scaled_sums)
        step, bias = input_scale.view(-1, 1), self.product.bias
        y = y.mul_(step) if bias is None else torch.addcmul(bias, y, step)
        return y.to(x.dtype)

    @functools.cached_property
    def _scaled_sums(self) -> Tensor:
        """Float32 ``[out]``: what an output channel gains for each step by which the zero point of a row is lower."""
        return self.weights.weight.sum(dim=1, dtype=torch.int32).to(torch.float32) * self.product.scale


_FEATURES = {
    ROW_SCALES: None,
    WEIGHT_GROUPS: "oneDNN has one scale for all weights of an output channel",
    WIDE_WEIGHTS: "oneDNN's weights are 8-bit integers",
}
_register = functools.partial(
    register_kernel,
    name="onednn",
    device_types=("cpu",),
    priority=_PRIORITY,
    available=unavailable,
    accelerators=_ACCELERATORS,
    features=_FEATURES,
)


@_register("linear")
def prepare_linear(weights: LayerWeights) -> PreparedKernel:
    """``y = x @ w.T + b`` with a quantized ``x``; see the module's head."""
    return _OnednnLinear(weights) if _fits_int32(weights) else reference.prepare_linear(weights)


class _OnednnConv2d:
    """`PreparedKernel` of a convolution; gives its output in channels-last.

    Small images are unfolded into a matrix product, large ones and groups go to oneDNN's convolution. The choice
    depends on the layer and the size of one image, so that no earlier call and no other image changes a bit. One packed
    copy of the weights is held, for the way taken last.
    """

    def __init__(self, weights: LayerWeights) -> None:
        self.weights = weights
        self.geometry = weights.geometry or ConvGeometry()
        left, right, top, bottom = self.geometry.padding
        self.is_symmetric = left == right and top == bottom
        self.symmetric = (top, left) if self.is_symmetric else (0, 0)
        self.features, _, *self.kernel_size = weights.weight.shape
        self._product: MatrixProduct | Convolution | None = None

    def __call__(self, x: Tensor, input_scale: Scale, input_zero_point: ZeroPoint, num_bits: int) -> Tensor:
        if x.dim() == 3:
            return self(x.unsqueeze(0), input_scale, input_zero_point, num_bits).squeeze(0)
        if isinstance(input_scale, Tensor) or isinstance(input_zero_point, Tensor):
            return image_by_image(self, x, input_scale, input_zero_point, num_bits)
        height, width = self._output_size(x.shape[2], x.shape[3])
        if x.numel() == 0 or height < 1 or width < 1:
            return x.new_empty(x.shape[0], self.features, height, width)
        if self.weights.weight.shape[1] == 1 and (width == 1 or self._has_outputs_of_padding()):
            # oneDNN's kernels for one channel a group read the wrong pixels.
            return reference.prepare_conv2d(self.weights)(x, input_scale, input_zero_point, num_bits)
        codes = encode_channels_last(x, input_scale, input_zero_point, num_bits)
        if self._is_unfolded(height * width):
            return self._unfold_and_multiply(codes, height, width, x.dtype)
        if not self.is_symmetric:
            codes = self._padded(codes)
        return self._convolution()(codes, x.dtype)

    def _has_outputs_of_padding(self) -> bool:
        """Whether outputs at the edge see nothing but padding."""
        left, right, top, bottom = self.geometry.padding
        down, across = (d * (k - 1) for d, k in zip(self.geometry.dilation, self.kernel_size, strict=True))
        return max(top, bottom) > down or max(left, right) > across

    def _is_unfolded(self, pixels: int) -> bool:
        if self.geometry.groups > 1:
            return False
        return self.kernel_size == [1, 1] or pixels < _UNFOLD_BELOW * self.features

    def _unfold_and_multiply(self, codes: Codes, height: int, width: int, dtype: torch.dtype) -> Tensor:
        """The convolution as a matrix product, some images at a time."""
        product, codes = self._matrix_product(), self._padded(codes)
        images = len(codes[0].codes)
        part = max(1, _UNFOLDED_BYTES // (height * width * self.weights.weight[0].numel()))
        results = [
            product(tuple(self._unfolded(plane, slice(i, i + part), height, width) for plane in codes), dtype)
            for i in range(0, images, part)
        ]
        y = results[0] if len(results) == 1 else torch.cat(results)
        return y.view(images, height, width, self.features).permute(0, 3, 1, 2)

    def _unfolded(self, plane: Plane, images: slice, height: int, width: int) -> Plane:
        """Codes ``[n, in, h, w]`` (channels-last, padded) to ``[n * h' * w', kh * kw * in]``; a copy or a view."""
        codes = plane.codes[images]
        of_image, of_channel, of_row, of_column = codes.stride()
        (down, across), (dy, dx) = self.geometry.stride, self.geometry.dilation
        windows = codes.as_strided(
            (len(codes), height, width, *self.kernel_size, codes.shape[1]),
            (of_image, of_row * down, of_column * across, of_row * dy, of_column * dx, of_channel),
        )
        return plane._replace(codes=windows.reshape(len(codes) * height * width, -1))

    def _padded(self, codes: Codes) -> Codes:
        """Planes padded with the codes of real zero."""
        if not any(self.geometry.padding):
            return codes
        return tuple(
            plane._replace(codes=functional.pad(plane.codes, self.geometry.padding, value=plane.zero_point))
            for plane in codes
        )

    def _matrix_product(self) -> MatrixProduct:
        if not isinstance(self._product, MatrixProduct):
            self._product = None
            matrix = self.weights.weight.detach().permute(0, 2, 3, 1).flatten(1)
            self._product = MatrixProduct(matrix, self.weights)
            release(self.weights.weight)
        return self._product

    def _convolution(self) -> Convolution:
        if not isinstance(self._product, Convolution):
            self._product = None
            self._product = Convolution(self.weights, self.symmetric)
            release(self.weights.weight)
        return self._product

    def _output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output for an input of this size, before padding."""
        left, right, top, bottom = self.geometry.padding
        (down, across), (dy, dx) = self.geometry.stride, self.geometry.dilation
        return (
            (height + top + bottom - dy * (self.kernel_size[0] - 1) - 1) // down + 1,
            (width + left + right - dx * (self.kernel_size[1] - 1) - 1) // across + 1,
        )


@_register("conv2d")
def prepare_conv2d(weights: LayerWeights) -> PreparedKernel:
    """A 2-D convolution with a quantized input; see the module's head."""
    return _OnednnConv2d(weights) if _fits_int32(weights) else reference.prepare_conv2d(weights)
