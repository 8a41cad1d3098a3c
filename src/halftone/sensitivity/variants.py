"""What is painted besides full precision: one thing done to one interval of the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["ALL_QUANTIZED", "EXPERIMENTS", "FLOAT", "PERTURB", "ExperimentName", "Variant", "variants_of"]

ExperimentName = Literal["perturb", "float"]
PERTURB: ExperimentName = "perturb"
FLOAT: ExperimentName = "float"
EXPERIMENTS: tuple[ExperimentName, ...] = (PERTURB, FLOAT)


@dataclass(frozen=True)
class Variant:
    """A way to paint.

    Attributes:
        experiment: "perturb": full precision, with noise on the prediction in some steps; "float": everything
            quantized but some steps.
        steps: those steps, 0 being the first.
    """

    experiment: ExperimentName
    steps: range

    @property
    def folder_name(self) -> str:
        """For its images: "perturb-001-004"."""
        if self == ALL_QUANTIZED:
            return "all-quantized"
        return f"{self.experiment}-{self.steps.start + 1:03d}-{self.steps.stop:03d}"


ALL_QUANTIZED = Variant(FLOAT, range(0))


def variants_of(experiment: ExperimentName, intervals: Sequence[range]) -> tuple[Variant, ...]:
    """An experiment's variants, one for each interval in order; of "float" then the one with no step in floating point.
    (That with all of them so is full precision itself, and not painted again.)"""
    found = tuple(Variant(experiment, steps) for steps in intervals)
    return (*found, ALL_QUANTIZED) if experiment == FLOAT else found
