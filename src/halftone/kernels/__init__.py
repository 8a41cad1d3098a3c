"""Integer kernels: one exact reference and faster ones that must equal it in the integer accumulators."""

from halftone.kernels import onednn, reference  # noqa: F401  (they register themselves)
from halftone.kernels.registry import (
    ConvGeometry,
    Kernel,
    LayerWeights,
    PreparedKernel,
    kernel_report,
    register_kernel,
    select,
)

__all__ = [
    "ConvGeometry",
    "Kernel",
    "LayerWeights",
    "PreparedKernel",
    "kernel_report",
    "register_kernel",
    "select",
]
