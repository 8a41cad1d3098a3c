"""Plots that set candidates, prompt sets and noise floors beside each other."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from halftone.qdiffbench.results import NoiseFloor
from halftone.qdiffbench.set_results import SetResult, StepDrift
from halftone.report import words
from halftone.report.metrics import Metric, Reading
from halftone.report.standing import Standing
from halftone.report.svg import DASHES, INK, MARKERS, MUTED, PAPER, RELAXED, SERIES, plot

_FLOOR_LABELS = {"dtype": "other dtype", "seed": "other noise", "threads": "other threads", "repeat": "repeated"}
_LABEL_WIDTH, _LABEL_LINES = 17, 2


def ruler_svg(ranked: Sequence[Standing], floors: Sequence[NoiseFloor], sets: Sequence[str]) -> Markup:
    """PSNR of everything that was measured on one axis: candidates between other noise and a repeated run."""
    rows = [(s.name, s, s.candidate.sets) for s in ranked]
    order = sorted(floors, key=lambda f: -max((s.psnr.mean for s in f.sets.values()), default=0.0))
    rows_of_floors = [(_FLOOR_LABELS[f.kind], None, f.sets) for f in order]
    above = [row for row in rows_of_floors if _highest(row[2]) >= _highest(rows[0][2])] if rows else rows_of_floors
    lines = [*above, *rows, *(row for row in rows_of_floors if row not in above)]
    text = "PSNR in dB: " + "; ".join(f"{name} {_highest(results):.1f}" for name, _, results in lines)
    with plot("ruler", text, 4.9, 0.62 + 0.36 * len(lines), grid="x") as p:
        for y, (_, standing, results) in enumerate(lines):
            for i, name in enumerate(n for n in sets if n in results):
                mean, (low, high) = results[name].psnr.mean, results[name].psnr.ci95
                _point(p.axes, y, Reading(mean, low, high), standing, i, len(sets))
        _rows(p.axes, [name for name, _, _ in lines], [s for _, s, _ in lines])
        low = min((s.psnr.mean for _, _, results in lines for s in results.values()), default=0.0)
        p.axes.set_xlim(min(10.0, 0.9 * low), None)
        p.axes.set_xlabel("PSNR to full precision, dB (right is nearer)")
    return p.markup


def interval_svg(metric: Metric, ranked: Sequence[Standing], sets: Sequence[str]) -> Markup:
    """One metric of every candidate on every set with its interval; later sets are hollow."""
    readings = [
        (y, s, i, reading)
        for y, s in enumerate(ranked)
        for i, name in enumerate(sets)
        if name in s.candidate.sets and (reading := metric.read(s.candidate.sets[name])) is not None
    ]
    text = f"{metric.heading}: " + "; ".join(
        f"{s.name} on {sets[i]} {reading.value:.4g}" for _, s, i, reading in readings
    )
    height = 0.66 + (0.2 + 0.13 * len(sets)) * len(ranked)
    with plot(f"interval-{metric.name}", text, 3.9, height, grid="x") as p:
        for y, standing, i, reading in readings:
            _point(p.axes, y, reading, standing, i, len(sets))
        _rows(p.axes, [s.name for s in ranked], ranked)
        p.axes.xaxis.set_major_locator(MaxNLocator(5))
        p.axes.margins(x=0.08)
        p.axes.set_xlabel(f"{metric.heading} ({'right' if metric.higher else 'left'} is better)")
    return p.markup


def scatter_svg(
    points: Sequence[tuple[Standing, float]],
    sets: Sequence[str],
    label: str,
    reference: float | None = None,
) -> Markup:
    """PSNR of candidates against a cost, with intervals; full precision's cost dashed.

    Args:
        points: candidate and its cost.
        label: the cost's name and unit.
    """
    text = f"PSNR against {label}: " + "; ".join(f"{s.name} at {x:.3g}" for s, x in points)
    with plot(f"scatter-{label}", text) as p:
        for standing, x in points:
            for i, name in enumerate(n for n in sets if n in standing.candidate.sets):
                psnr = standing.candidate.sets[name].psnr
                _point(p.axes, x, Reading(psnr.mean, *psnr.ci95), standing, i, 1, vertical=True)
        if reference is not None:
            p.axes.axvline(reference, color=MUTED, lw=1.2, ls=(0, (2, 2)))
        p.axes.margins(x=0.12, y=0.14)
        p.axes.yaxis.set_major_locator(MaxNLocator(5))
        p.axes.xaxis.set_major_locator(MaxNLocator(6))
        p.axes.set(xlabel=label, ylabel="PSNR, dB")
    return p.markup


def drift_svg(
    lines: Sequence[tuple[Standing, Sequence[StepDrift]]], set_name: str, relaxed: Sequence[int] = ()
) -> Markup:
    """Relative latent error after every step, a line with its interval for each candidate.

    Args:
        relaxed: numbers of the steps to shade, 0 is the first.
    """
    text = f"Latent error over the steps, {set_name}: " + "; ".join(
        f"{s.name} ends at {100 * drift[-1].latent_error.mean:.3g} %" for s, drift in lines
    )
    last = max(item.step for _, drift in lines for item in drift) + 1
    with plot(f"drift-{set_name}", text) as p:
        for step in relaxed:
            p.axes.axvspan(step + 0.5, step + 1.5, color=RELAXED, alpha=0.16, lw=0)
        for standing, drift in lines:
            steps, color = [item.step + 1 for item in drift], SERIES[standing.place % 8]
            low, high = ([100 * item.latent_error.ci95[end] for item in drift] for end in (0, 1))
            p.axes.fill_between(steps, low, high, color=color, alpha=0.24, lw=0)
            mean = [100 * item.latent_error.mean for item in drift]
            p.axes.plot(steps, mean, color=color, lw=2, ls=DASHES[standing.place % 8])
        p.axes.set_xlim(0.5, last + 0.5)
        p.axes.set_ylim(bottom=0)
        p.axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        p.axes.set(xlabel="sampling step (noise → picture)", ylabel="latent error, %")
    return p.markup


def _point(
    axes: Any, at: float, reading: Reading, standing: Standing | None, set_index: int, sets: int, vertical: bool = False
) -> None:
    """A value with its interval at row (or x) ``at``; the first set filled, later ones hollow and below it."""
    color = MUTED if standing is None else SERIES[standing.place % 8]
    marker = "|" if standing is None else MARKERS[standing.place % 8]
    at = at + (0.0 if sets < 2 else 0.3 * (set_index / (sets - 1) - 0.5))
    fill = color if set_index == 0 or standing is None else PAPER
    if reading.low is not None and reading.high is not None:
        ends = [reading.low, reading.high]
        x, y = ([at, at], ends) if vertical else (ends, [at, at])
        axes.plot(x, y, color=color, lw=2.2, solid_capstyle="butt")
    x, y = ([at], [reading.value]) if vertical else ([reading.value], [at])
    axes.plot(x, y, marker=marker, ms=7 if standing else 9, mfc=fill, mec=color, mew=1.6, color=color, ls="")


def _rows(axes: Any, names: Sequence[str], standings: Sequence[Standing | None]) -> None:
    """Names along the left side, first row on top, candidates in ink and floors muted."""
    axes.set_yticks(range(len(names)), [short_name(name) for name in names])
    for label, standing in zip(axes.get_yticklabels(), standings, strict=True):
        label.set_color(INK if standing is not None else MUTED)
    axes.set_ylim(len(names) - 0.5, -0.5)


def short_name(name: str) -> str:
    """A name on at most two lines."""
    name = " ".join(name.split())
    lines = textwrap.wrap(name, _LABEL_WIDTH, max_lines=_LABEL_LINES, placeholder="…")
    return "\n".join(lines)


def _highest(results: dict[str, SetResult]) -> float:
    return max((result.psnr.mean for result in results.values()), default=float(-words.CAP_DB))
