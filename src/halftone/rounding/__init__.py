"""Weights to integers: the scale of each output channel, and the rules that round to its grid."""

from halftone.rounding.adaround import AdaRound
from halftone.rounding.gptq import GPTQ
from halftone.rounding.nearest import Nearest
from halftone.rounding.rule import (
    Collector,
    RoundingRule,
    Unit,
    UnitCost,
    build_rounding,
    register_rounding,
    rounding_names,
)
from halftone.rounding.scale import SCALE_SEARCHES, weight_grid, weight_scale

__all__ = [
    "GPTQ",
    "SCALE_SEARCHES",
    "AdaRound",
    "Collector",
    "Nearest",
    "RoundingRule",
    "Unit",
    "UnitCost",
    "build_rounding",
    "register_rounding",
    "rounding_names",
    "weight_grid",
    "weight_scale",
]
