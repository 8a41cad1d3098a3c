"""Results as a person and a machine want them: one page to look at, one JSON file to read."""

from halftone.report.data import (
    ActivationRange,
    ComparisonReport,
    Fidelity,
    LeftOutLayer,
    Pair,
    Quantization,
    Settings,
    Sizes,
    StepError,
    Timing,
)
from halftone.report.html import write_report

__all__ = [
    "ActivationRange",
    "ComparisonReport",
    "Fidelity",
    "LeftOutLayer",
    "Pair",
    "Quantization",
    "Settings",
    "Sizes",
    "StepError",
    "Timing",
    "write_report",
]
