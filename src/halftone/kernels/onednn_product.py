"""The int8 products of oneDNN, as torch exposes them, bound to one layer's weights; and whether they are exact here."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from halftone.kernels.onednn_codes import Codes, Plane
from halftone.kernels.registry import ConvGeometry, LayerWeights

__all__ = ["Convolution", "MatrixProduct", "unavailable"]

_OPERATORS = ("qlinear_prepack", "qlinear_pointwise", "qconv_prepack", "qconv_pointwise", "qconv2d_pointwise")
#: CPU features that add 8-bit products into 32 bits without saturating on the way.
_DOT_PRODUCTS = ("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8")


class _Product:
    """Scale and bias as the operators want them.

    Calls take codes and give ``sum((q - zero_point) * w) * scale + bias``.
    """

    def __init__(self, weights: LayerWeights) -> None:
        self.scale = weights.scale.detach()
        self.zeros = torch.zeros(len(self.scale), dtype=torch.int32)
        self.bias = None if weights.bias is None else weights.bias.detach().to(torch.float32)

    @staticmethod
    def written_dtype(dtype: torch.dtype, codes: Codes) -> torch.dtype:
        """What oneDNN writes: bfloat16 only if it is wanted and no second plane is to be added to it."""
        return torch.bfloat16 if dtype == torch.bfloat16 and len(codes) == 1 else torch.float32


class MatrixProduct(_Product):
    """A product with a matrix.

    Args:
        weight: int8 ``[out, k]``; a packed copy is kept.
        weights: the layer's scale and bias.
    """

    def __init__(self, weight: Tensor, weights: LayerWeights) -> None:
        super().__init__(weights)
        self.packed: Tensor = torch.ops.onednn.qlinear_prepack.default(weight.detach().contiguous(), None)
        self._multiply = torch.ops.onednn.qlinear_pointwise.default
        self._multiply_add = torch.ops.onednn.qlinear_pointwise.binary

    def __call__(self, codes: Codes, dtype: torch.dtype, with_bias: bool = True) -> Tensor:
        """Planes ``[rows, k]``, at least one row, to ``[rows, out]`` in ``dtype``."""
        bias = self.bias if with_bias else None
        written = self.written_dtype(dtype, codes)
        (plane, zero_point, scale), *others = codes
        # fmt: off
        y: Tensor = self._multiply(plane, scale, zero_point, self.packed, self.scale, self.zeros, bias,
                                   1.0, 0, written, "none", [], "")
        for plane, zero_point, scale in others:
            y = self._multiply_add(plane, scale, zero_point, self.packed, self.scale, self.zeros, y, None,
                                   1.0, 0, written, 1.0, 0, "sum", 1.0, "none", [], "")
        # fmt: on
        return y if dtype == written else y.to(dtype)


class Convolution(_Product):
    """A convolution; pads symmetrically, with the planes' zero points.

    Args:
        weights: of the layer; a packed copy of the weight is kept.
        padding: (vertical, horizontal).
    """

    def __init__(self, weights: LayerWeights, padding: tuple[int, int]) -> None:
        super().__init__(weights)
        geometry = weights.geometry or ConvGeometry()
        self._geometry = [*map(list, (geometry.stride, padding, geometry.dilation)), geometry.groups]
        weight = weights.weight.detach()
        prepack = torch.ops.onednn.qconv_prepack.default
        self.packed: Tensor = prepack(weight, self.scale, 1.0, 1, *self._geometry, None)
        self._convolve = torch.ops.onednn.qconv_pointwise.default
        self._convolve_add = torch.ops.onednn.qconv2d_pointwise.binary

    def __call__(self, codes: Codes, dtype: torch.dtype) -> Tensor:
        """Planes ``[n, in, h, w]``, not empty, to ``[n, out, h', w']`` in ``dtype``; channels-last is best."""
        written = self.written_dtype(dtype, codes)
        (plane, zero_point, scale), *others = codes
        # fmt: off
        y: Tensor = self._convolve(plane, scale, zero_point, self.packed, self.scale, self.zeros, self.bias,
                                   *self._geometry, 1.0, 0, written, "none", [], "")
        for plane, zero_point, scale in others:
            y = self._convolve_add(plane, scale, zero_point, self.packed, self.scale, self.zeros, y, None,
                                   *self._geometry, 1.0, 0, written, 1.0, 0, "sum", 1.0, "none", [], "")
        # fmt: on
        return y if dtype == written else y.to(dtype)


@functools.cache
def unavailable() -> str | None:
    """None if the products exist in this torch and are exact on this CPU, else the reason why not."""
    if not torch.backends.mkldnn.is_available():
        return "torch is built without oneDNN"
    missing = [name for name in _OPERATORS if not hasattr(torch.ops.onednn, name)]
    if missing:
        return f"torch {torch.__version__} lacks onednn::{missing[0]}"
    reason = _cpu_reason()
    if reason is not None:
        return reason
    try:
        exact = all(_is_exact(rows, inputs) for rows, inputs in ((1, 64), (3, 333), (64, 256)))
    except (AttributeError, RuntimeError, TypeError) as error:
        return f"torch's oneDNN products do not run here: {str(error).splitlines()[0]}"
    return None if exact else "oneDNN's int8 products saturate here (is ONEDNN_MAX_CPU_ISA set?)"


def _cpu_reason() -> str | None:
    """None on an x86-64 CPU with 8-bit dot products, else what is missing."""
    try:
        features = torch.cpu.get_capabilities()
    except (AttributeError, RuntimeError) as error:
        return f"torch does not tell the CPU's features: {error}"
    if features.get("architecture") != "x86_64":
        return f"it is for x86-64 CPUs; this one is {features.get('architecture')}"
    if not any(features.get(name) for name in _DOT_PRODUCTS):
        return "the CPU has no VNNI, so sums of two products would saturate at 16 bits"
    return None


def _is_exact(rows: int, inputs: int) -> bool:
    """Tries products whose pair sums need 17 bits and whose totals float32 holds, as a matrix and as an image."""
    signs = torch.tensor([1, -1], dtype=torch.int8).repeat(8)
    weight = (127 * signs).view(-1, 1).repeat(1, inputs)
    layer = LayerWeights(weight[:, :, None, None], torch.ones(16))
    multiply, convolve = MatrixProduct(weight, layer), Convolution(layer, (0, 0))
    codes = torch.full((rows, inputs), 255, dtype=torch.uint8)
    image = codes.T.reshape(1, inputs, rows, 1).contiguous(memory_format=torch.channels_last)
    for zero_point in (0, 100, 255):
        total = ((255 - zero_point) * 127 * inputs * signs.to(torch.float32)).expand(rows, 16)
        y = multiply((Plane(codes, zero_point, 1.0),), torch.float32)
        z = convolve((Plane(image, zero_point, 1.0),), torch.float32)
        if not (y.equal(total) and z[0, :, :, 0].T.equal(total)):
            return False
    return True
