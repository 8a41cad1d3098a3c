"""Which side of the trajectory is the sensitive one: first interval against last, told only where it shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from halftone.qdiffbench.set_results import Mean, SetResult, Summary
from halftone.sensitivity.results import IntervalResult, SensitiveSide
from halftone.sensitivity.variants import PERTURB, ExperimentName

__all__ = ["sensitive_sides"]

Side = Literal["start", "end"]


@dataclass(frozen=True)
class _Measure:
    """What is compared, and how a sentence names it."""

    name: Literal["fidelity", "matching"]
    metric: Literal["psnr", "clip_score_difference"]
    label: str
    unit: str

    def value(self, result: SetResult) -> Summary | Mean | None:
        return result.psnr if self.metric == "psnr" else result.clip_score_difference


_MEASURES = (
    _Measure("fidelity", "psnr", "PSNR", " dB"),
    _Measure("matching", "clip_score_difference", "CLIP score change", ""),
)


def sensitive_sides(experiment: ExperimentName, results: Sequence[IntervalResult]) -> tuple[SensitiveSide, ...]:
    """A side for each measure that was taken; none of a trajectory that is one interval.

    Noise in the sensitive interval leaves less than noise in the other one, and floating point there restores more. A
    side is named only if the 95 % intervals of the two do not overlap.

    Args:
        results: of all intervals, in step order.
    """
    return tuple(_sides(experiment, results)) if len(results) > 1 else ()


def _sides(experiment: ExperimentName, results: Sequence[IntervalResult]) -> Iterator[SensitiveSide]:
    for measure in _MEASURES:
        start, end = (measure.value(one.result) for one in (results[0], results[-1]))
        if start is not None and end is not None:
            side = _side(experiment, start, end)
            sentence = _sentence(measure, side, experiment, (results[0], start), (results[-1], end))
            yield SensitiveSide(measure=measure.name, metric=measure.metric, side=side, sentence=sentence)


def _side(experiment: ExperimentName, start: Summary | Mean, end: Summary | Mean) -> Side | None:
    if start.ci95[0] <= end.ci95[1] and end.ci95[0] <= start.ci95[1]:
        return None
    start_is_lower = start.mean < end.mean
    return "start" if start_is_lower == (experiment == PERTURB) else "end"


def _sentence(
    measure: _Measure,
    side: Side | None,
    experiment: ExperimentName,
    start: tuple[IntervalResult, Summary | Mean],
    end: tuple[IntervalResult, Summary | Mean],
) -> str:
    treatment = "noise" if experiment == PERTURB else "floating point"
    first, last = (f"{_number(measure, value)} with {treatment} in {one.interval.words}" for one, value in (start, end))
    if side is None:
        return f"For {measure.name} the sides are not told apart: {measure.label} {first}, {last}."
    there, elsewhere = (first, last) if side == "start" else (last, first)
    where = "first" if side == "start" else "last"
    return f"For {measure.name} the {where} steps are the sensitive ones: {measure.label} {there}, {elsewhere}."


def _number(measure: _Measure, value: Summary | Mean) -> str:
    low, high = value.ci95
    return f"{value.mean:.2f}{measure.unit} ({low:.2f} to {high:.2f})"
