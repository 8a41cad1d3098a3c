"""What tests compare quantized computations with."""

from torch import Tensor

from halftone.numerics import QParams, dequantize, quantize


def fake_quantize(x: Tensor, qparams: QParams) -> Tensor:
    """``x`` rounded to the grid of ``qparams``: quantized and back, in the dtype and shape of ``x``."""
    codes = quantize(x, qparams.scale, qparams.zero_point, qparams.num_bits)
    return dequantize(codes, qparams.scale, qparams.zero_point).to(x.dtype)
