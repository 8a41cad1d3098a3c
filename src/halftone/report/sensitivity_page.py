"""``report.html`` of the sensitivity experiments: the same house style as a benchmark's, one file, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from halftone.qdiffbench.set_results import SetResult
from halftone.report import words
from halftone.report.html import render, write_html
from halftone.report.metrics import Metric, decimals, metrics_of
from halftone.report.sensitivity_plots import intervals_svg
from halftone.report.tables import Cell, cell_of
from halftone.sensitivity.results import Experiment, SensitivityResults

_TEMPLATE = "sensitivity.html.j2"
_FIDELITY = ("psnr", "ssim", "fid_to_fp")
_MATCHING = ("clip_score", "attribute_accuracy")
_SIDES = {"start": ("first", "last"), "end": ("last", "first")}
_HEADINGS = {
    "perturb": "Noise on the prediction, one interval at a time",
    "float": "All steps quantized, one interval in floating point",
}


@dataclass(frozen=True)
class Row:
    """A line of an experiment's table; an end of the scale is muted."""

    name: str
    is_end: bool
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Section:
    """What the page shows of an experiment: drawings as (metric, SVG), and every metric as a table."""

    experiment: Experiment
    heading: str
    fidelity: tuple[tuple[Metric, Markup], ...]
    matching: tuple[tuple[Metric, Markup], ...]
    metrics: tuple[Metric, ...]
    rows: tuple[Row, ...]


def write_sensitivity_page(results: SensitivityResults, out: Path | str) -> Path:
    """Writes ``report.html`` into a folder: whole, or as it was before; returns its path.

    Raises:
        OSError: the folder cannot be written; wrap the call in ``files.output_errors`` for a sentence.
    """
    return write_html(render_sensitivity_page(results), out)


def render_sensitivity_page(results: SensitivityResults) -> str:
    """The page as text; nothing is written."""
    context: dict[str, Any] = {
        "title": f"Sensitive steps of {results.reference.name}",
        "r": results,
        "headline": headline(results),
        "sections": [_section(experiment) for experiment in results.experiments],
        "n": results.experiments[0].intervals[0].result.n,
        "commands": results.settings.commands,
    }
    return render(_TEMPLATE, context)


def headline(results: SensitivityResults) -> str:
    """Which side is the sensitive one, for fidelity and for matching, in one sentence."""
    found: dict[str, set[str]] = {}
    for experiment in results.experiments:
        for one in experiment.sides:
            found.setdefault(one.measure, set()).update([one.side] if one.side is not None else [])
    if not found:
        return "One interval has no sides to compare."
    text = words.enumerated([_verdict(measure, sides) for measure, sides in found.items()])
    return f"{text[0].upper()}{text[1:]}."


def _verdict(measure: str, sides: set[str]) -> str:
    if not sides:
        return f"no side is told apart for {measure}"
    if len(sides) > 1:
        return f"the experiments disagree on {measure}"
    more, less = _SIDES[next(iter(sides))]
    return f"{measure} suffers more from the {more} steps than from the {less} ones"


def _section(experiment: Experiment) -> Section:
    results = _results(experiment)
    metrics = tuple(metrics_of(results.values()))
    return Section(
        experiment,
        _HEADINGS[experiment.name],
        _drawings(experiment, metrics, _FIDELITY),
        _drawings(experiment, metrics, _MATCHING),
        metrics,
        tuple(_rows(experiment, results, metrics)),
    )


def _results(experiment: Experiment) -> dict[str, SetResult]:
    """By the name of the table's line: the intervals, then the ends."""
    found = {one.interval.words: one.result for one in experiment.intervals}
    ends = {"all steps quantized": experiment.all_quantized, "no step quantized": experiment.none_quantized}
    return found | {name: result for name, result in ends.items() if result is not None}


def _drawings(
    experiment: Experiment, metrics: Sequence[Metric], names: Sequence[str]
) -> tuple[tuple[Metric, Markup], ...]:
    drawn = [(metric, intervals_svg(experiment, metric)) for metric in metrics if metric.name in names]
    return tuple((metric, svg) for metric, svg in drawn if svg is not None)


def _rows(experiment: Experiment, results: Mapping[str, SetResult], metrics: Sequence[Metric]) -> list[Row]:
    digits = {metric.name: decimals(metric, [metric.read(one) for one in results.values()]) for metric in metrics}
    return [
        Row(
            name,
            place >= len(experiment.intervals),
            tuple(cell_of(metric.read(result), digits[metric.name]) for metric in metrics),
        )
        for place, (name, result) in enumerate(results.items())
    ]
