"""The experiments of Tang et al. (ECCV 2024, arXiv 2311.06322) on a model at hand: tables of recipes, from a plan.

Every model that the plan's rows name is quantized once, every image painted once, whichever tables want it.

Importing this package loads no torch; each public name loads its module on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from halftone.study.estimate import estimate_study
    from halftone.study.plan import Plan
    from halftone.study.request import StudyRequest
    from halftone.study.results import StudyResults
    from halftone.study.run import run_study

__all__ = ["Plan", "StudyRequest", "StudyResults", "estimate_study", "run_study"]

_MODULE_OF = {
    "Plan": "plan",
    "StudyRequest": "request",
    "StudyResults": "results",
    "estimate_study": "estimate",
    "run_study": "run",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
