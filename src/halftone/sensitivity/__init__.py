"""Which steps are sensitive: the two experiments of Tang et al. (ECCV 2024, arXiv 2311.06322) on any model.

``perturb``: full precision, with Gaussian noise on the denoiser's prediction in one interval of the steps at a time.
``float``: every step quantized, but one interval in floating point.

Both are compared with full precision on the same prompts and initial noise, for fidelity and for text-image matching.

Importing this package loads no torch; each public name loads its module on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from halftone.sensitivity.measurement import measure_sensitivity
    from halftone.sensitivity.request import SensitivityRequest
    from halftone.sensitivity.results import SensitivityResults

__all__ = ["SensitivityRequest", "SensitivityResults", "measure_sensitivity"]

_MODULE_OF = {"SensitivityRequest": "request", "SensitivityResults": "results", "measure_sensitivity": "measurement"}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
