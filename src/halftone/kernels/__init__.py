"""Integer kernels: one exact reference and faster ones that must equal it in the integer accumulators."""

from halftone.kernels import onednn, reference  # noqa: F401  (they register themselves)
from halftone.kernels.registry import (
    ROW_SCALES,
    WEIGHT_GROUPS,
    WIDE_WEIGHTS,
    ConvGeometry,
    Kernel,
    LayerWeights,
    PreparedKernel,
    check_device,
    kernel_report,
    register_kernel,
    select,
)

__all__ = [
    "ROW_SCALES",
    "WEIGHT_GROUPS",
    "WIDE_WEIGHTS",
    "ConvGeometry",
    "Kernel",
    "LayerWeights",
    "PreparedKernel",
    "check_device",
    "kernel_report",
    "register_kernel",
    "select",
]
