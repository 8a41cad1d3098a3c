"""Plots of a study's tables: values against cost, bars of an ablation, curves over what a table varies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from halftone.report.comparison_plots import short_name
from halftone.report.metrics import Metric, Reading
from halftone.report.svg import DASHES, INK, MARKERS, MUTED, PAPER, SERIES, plot
from halftone.study.results import StudyRow, StudyTable

_WIDE_RANGE = 30.0  # between the largest and the smallest value: then by decades
_OFFSET = 5  # points, of a name beside its mark

Cost = tuple[str, Callable[[StudyRow], float]]

#: What values are drawn against, with its axis label.
COSTS: dict[str, Cost] = {
    "bits": ("mean activation bits", lambda row: row.average_activation_bits),
    "products": ("executed 8-bit products, W8A8 = 1", lambda row: row.products),
}

#: What a table of that kind varies.
VARIED: dict[str, Cost] = {
    "relaxed share": ("share of relaxed steps", lambda row: row.relaxed_share),
    "calibration prompts": ("calibration prompts", lambda row: float(row.calibration.prompts)),
}


def groups_of(table: StudyTable) -> list[str]:
    """The groups in the order in which they come; the place of one is its colour and mark."""
    return [*dict.fromkeys(row.group for row in table.rows)]


def cost_svg(table: StudyTable, set_name: str, metric: Metric, cost: str) -> Markup | None:
    """A metric of all rows against a cost, a colour for each group, the best of each named; None if not measured."""
    label, read_cost = COSTS[cost]
    points = [(row, read_cost(row), reading) for row, reading in _readings(table.rows, set_name, metric)]
    if not points:
        return None
    groups, costs = groups_of(table), [x for _, x, _ in points]
    middle = (min(costs) + max(costs)) / 2
    text = f"{metric.heading} against {label}: " + "; ".join(
        f"{row.name} at {x:.3g} {reading.value:.4g}" for row, x, reading in points
    )
    with plot(f"{table.name}-{set_name}-{metric.name}-{cost}", text) as p:
        for place, group in enumerate(groups):
            members = [point for point in points if point[0].group == group]
            for _, x, reading in members:
                _point(p.axes, x, reading, place)
            if members:
                best = (max if metric.higher else min)(members, key=lambda point: point[2].value)
                _name(p.axes, best[0].name, best[1], best[2].value, to_the_left=best[1] > middle)
        p.axes.margins(x=0.2, y=0.16)
        _value_axis(p.axes, [reading for _, _, reading in points])
        p.axes.xaxis.set_major_locator(MaxNLocator(6))
        p.axes.set(xlabel=label, ylabel=metric.heading)
    return p.markup


def bars_svg(table: StudyTable, group: str, set_name: str, metric: Metric) -> Markup | None:
    """A metric of a group's rows as bars with intervals, in the table's order; None if not measured."""
    rows = [row for row in table.rows if row.group == group]
    found = _readings(rows, set_name, metric)
    if not found:
        return None
    place = groups_of(table).index(group)
    text = f"{metric.heading}, {group}: " + "; ".join(f"{row.name} {reading.value:.4g}" for row, reading in found)
    with plot(f"{table.name}-{group}-{set_name}-{metric.name}", text, 3.9, 0.7 + 0.27 * len(found), grid="x") as p:
        for y, (_, reading) in enumerate(found):
            p.axes.barh(y, reading.value, height=0.62, color=SERIES[place % 8], alpha=0.35, lw=0)
            if reading.low is not None and reading.high is not None:
                p.axes.plot([reading.low, reading.high], [y, y], color=SERIES[place % 8], lw=2.2, solid_capstyle="butt")
        p.axes.set_yticks(range(len(found)), [short_name(row.name) for row, _ in found])
        for label in p.axes.get_yticklabels():
            label.set_color(INK)
        p.axes.set_ylim(len(found) - 0.4, -0.6)
        low = min(reading.value if reading.low is None else reading.low for _, reading in found)
        if metric.name == "psnr" and low > 10:  # decibels have no meaningful zero
            p.axes.set_xlim(left=low - 0.15 * (max(reading.value for _, reading in found) - low) - 1)
        p.axes.xaxis.set_major_locator(MaxNLocator(5))
        p.axes.set_xlabel(f"{metric.heading} ({'right' if metric.higher else 'left'} is better)")
    return p.markup


def curve_svg(table: StudyTable, set_name: str, metric: Metric) -> Markup | None:
    """A metric over what the table varies, a line with intervals for each group; None if not measured."""
    label, read_varied = VARIED[table.kind]
    found = _readings(table.rows, set_name, metric)
    if not found:
        return None
    text = f"{metric.heading} over {label}: " + "; ".join(
        f"{row.group} at {read_varied(row):g} {reading.value:.4g}" for row, reading in found
    )
    with plot(f"{table.name}-{set_name}-{metric.name}-curve", text) as p:
        for place, group in enumerate(groups_of(table)):
            members = sorted(
                ((read_varied(row), reading) for row, reading in found if row.group == group), key=lambda one: one[0]
            )
            xs, values = [x for x, _ in members], [reading.value for _, reading in members]
            p.axes.plot(xs, values, color=SERIES[place % 8], lw=1.2, alpha=0.7, ls=DASHES[place % 8])
            for x, reading in members:
                _point(p.axes, x, reading, place)
        if table.kind == "calibration prompts":
            counts = sorted({read_varied(row) for row, _ in found})
            p.axes.set_xscale("log", base=2)
            p.axes.xaxis.set_major_locator(FixedLocator(counts))
            p.axes.xaxis.set_minor_locator(NullLocator())
            p.axes.xaxis.set_major_formatter(FuncFormatter(_plain))
        _value_axis(p.axes, [reading for _, reading in found])
        p.axes.set(xlabel=label, ylabel=metric.heading)
    return p.markup


def _readings(rows: Sequence[StudyRow], set_name: str, metric: Metric) -> list[tuple[StudyRow, Reading]]:
    """Of the rows that were measured on that set in that metric."""
    found = [(row, metric.read(row.sets[set_name])) for row in rows if set_name in row.sets]
    return [(row, reading) for row, reading in found if reading is not None]


def _point(axes: Any, x: float, reading: Reading, place: int) -> None:
    color = SERIES[place % 8]
    if reading.low is not None and reading.high is not None:
        axes.plot([x, x], [reading.low, reading.high], color=color, lw=2.0, solid_capstyle="butt")
    marker = MARKERS[place % 8]
    axes.plot([x], [reading.value], marker=marker, ms=6.5, mfc=color, mec=PAPER, mew=0.8, color=color, ls="")


def _name(axes: Any, name: str, x: float, y: float, to_the_left: bool) -> None:
    """Beside a mark, towards the middle; the drawing makes no room for it."""
    side = -1 if to_the_left else 1
    note = axes.annotate(
        short_name(name),
        (x, y),
        xytext=(side * _OFFSET, _OFFSET),
        textcoords="offset points",
        ha="right" if to_the_left else "left",
        fontsize=7.5,
        color=INK,
    )
    note.set_in_layout(False)


def _value_axis(axes: Any, readings: Sequence[Reading]) -> None:
    """By decades where values of very different size would lie on each other."""
    values = [reading.value for reading in readings]
    if min(values) > 0 and max(values) / min(values) > _WIDE_RANGE:
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.5 * min(values))  # an interval may end at 0
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(axis="y", which="both", labelcolor=MUTED)


def _plain(value: float, _: Any = None) -> str:
    """Without powers of ten, which would be formulas."""
    return f"{value:g}"
