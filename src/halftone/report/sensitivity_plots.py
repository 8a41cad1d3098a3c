"""Plots of the sensitivity experiments: one metric over the intervals of the steps, between the two ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from halftone.report.metrics import Metric, Reading
from halftone.report.svg import ACCENT, MUTED, RELAXED, plot
from halftone.sensitivity.results import Experiment, StepInterval

_LABELS = 8  # along the axis, at most
_DASHED, _DOTTED = (0, (4, 3)), (0, (1, 2))


def intervals_svg(experiment: Experiment, metric: Metric) -> Markup | None:
    """A metric where each interval in turn is treated unlike the others, with its 95 % intervals; None if it was not
    measured.

    The level of the model with all steps quantized is dashed, with its interval as a band; that of full precision,
    where it is not the best value there is, is dotted.
    """
    readings = [(one.interval, metric.read(one.result)) for one in experiment.intervals]
    pairs = [(interval, reading) for interval, reading in readings if reading is not None]
    if not pairs:
        return None
    text = f"{metric.heading} by steps: " + "; ".join(
        f"{interval.words} {reading.value:.4g}" for interval, reading in pairs
    )
    with plot(f"{experiment.name}-{metric.name}", text) as p:
        quantized = metric.read(experiment.all_quantized) if experiment.all_quantized is not None else None
        if quantized is not None:
            _level(p.axes, quantized)
        full = _full_precision(metric, pairs[0][1])
        if full is not None:
            p.axes.axhline(full, color=MUTED, lw=1.4, ls=_DOTTED)
        _points(p.axes, [reading for _, reading in pairs])
        _labels(p.axes, [interval for interval, _ in pairs])
        p.axes.yaxis.set_major_locator(MaxNLocator(5))
        p.axes.set(xlabel="sampling steps (noise → picture)", ylabel=metric.heading)
    return p.markup


def _full_precision(metric: Metric, reading: Reading) -> float | None:
    """Full precision's own value of a metric of text-image matching; of fidelity it is perfect, and off the scale."""
    if metric.name == "clip_score":
        return 0.0
    return reading.note_value if metric.name == "attribute_accuracy" else None


def _level(axes: Any, reading: Reading) -> None:
    if reading.low is not None and reading.high is not None:
        axes.axhspan(reading.low, reading.high, color=RELAXED, alpha=0.16, lw=0)
    axes.axhline(reading.value, color=RELAXED, lw=1.4, ls=_DASHED)


def _points(axes: Any, readings: Sequence[Reading]) -> None:
    places = range(len(readings))
    axes.plot(places, [reading.value for reading in readings], color=ACCENT, lw=1.2, alpha=0.6)
    for place, reading in zip(places, readings, strict=True):
        if reading.low is not None and reading.high is not None:
            axes.plot([place, place], [reading.low, reading.high], color=ACCENT, lw=2.2, solid_capstyle="butt")
    axes.plot(places, [reading.value for reading in readings], color=ACCENT, marker="o", ms=7, ls="")


def _labels(axes: Any, intervals: Sequence[StepInterval]) -> None:
    """Step numbers below the points; every second, third … of many."""
    stride = -(-len(intervals) // _LABELS)
    shown = range(0, len(intervals), stride)
    axes.set_xticks(list(shown), [_range(intervals[place]) for place in shown])
    axes.set_xlim(-0.5, len(intervals) - 0.5)


def _range(interval: StepInterval) -> str:
    return f"{interval.first}–{interval.last}" if interval.first < interval.last else f"{interval.last}"
