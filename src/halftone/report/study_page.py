"""``report.html`` of a study: its tables with intervals and plots, one file, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from halftone.qdiffbench.differences import SIGNIFICANT
from halftone.qdiffbench.set_results import SetResult
from halftone.report import words
from halftone.report.html import render, write_html
from halftone.report.metrics import METRICS, Metric, Reading, decimals, metrics_of
from halftone.report.standing import GLYPHS
from halftone.report.study_plots import COSTS, bars_svg, cost_svg, curve_svg, groups_of
from halftone.report.tables import Cell, cell_of
from halftone.study.results import StudyResults, StudyRow, StudyTable

__all__ = ["Board", "BoardRow", "boards_of", "cost_cells", "headlines", "render_study_page", "write_study_page"]

_TEMPLATE = "study.html.j2"
_DRAWN = ("fid_to_fp", "psnr")
_BY_NAME = {metric.name: metric for metric in METRICS}

#: Headings of what a row costs, in the order of `cost_cells`.
COST_HEADINGS = (
    *("weights", "mean activation bits", "products, W8A8 = 1"),
    *("calibration prompts", "denoiser passes a prompt", "time to make", "denoiser's size"),
)


@dataclass(frozen=True)
class BoardRow:
    """A row's line, or a noise floor's, which has no row."""

    name: str
    about: str
    row: StudyRow | None
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Board:
    """One prompt set of a table: lines by group, then the noise floors under the name ``""``."""

    set_name: str
    n: int
    metrics: tuple[Metric, ...]
    groups: dict[str, tuple[BoardRow, ...]]


@dataclass(frozen=True)
class Key:
    """A group in the legend."""

    name: str
    glyph: str
    color: str


@dataclass(frozen=True)
class Section:
    """What the page shows of a table; drawings as (heading, caption, SVG)."""

    table: StudyTable
    boards: tuple[Board, ...]
    keys: tuple[Key, ...]
    drawings: tuple[tuple[str, str, Markup], ...]
    costs: tuple[tuple[StudyRow, tuple[str, ...]], ...]


def write_study_page(results: StudyResults, out: Path | str) -> Path:
    """Writes ``report.html`` into a folder: whole, or as it was before; returns its path.

    Raises:
        OSError: the folder cannot be written; wrap the call in ``files.output_errors`` for a sentence.
    """
    return write_html(render_study_page(results), out)


def render_study_page(results: StudyResults) -> str:
    """The page as text; nothing is written."""
    context: dict[str, Any] = {
        "title": f"Recipes for {results.reference.name}",
        "r": results,
        "sentences": headlines(results),
        "sections": [_section(table) for table in results.tables],
        "cost_headings": COST_HEADINGS,
        "commands": results.commands,
    }
    return render(_TEMPLATE, context)


def headlines(results: StudyResults) -> list[str]:
    """Of each table and group the row that is nearest to full precision, and what is not told apart from it; on the
    first prompt set, by the main distance."""
    found = []
    for table in results.tables:
        for board in boards_of(table)[:1]:
            for group in groups_of(table):
                sentence = _headline(table, group, board.set_name)
                if sentence:
                    found.append(sentence)
    return found


def _headline(table: StudyTable, group: str, set_name: str) -> str:
    metric = _BY_NAME["fid_to_fp"]
    readings = _read(table, group, set_name, metric)
    if len(readings) < 2:
        return ""
    first = min(readings, key=lambda name: readings[name].value)
    digits = decimals(metric, [*readings.values()])
    interval = words.interval(readings[first], digits)
    value = words.number(readings[first].value, digits)
    text = f"{table.title}, {group}: {first} has the lowest {metric.label}, {value}"
    text += f" ({interval})" if interval else ""
    others = [name for name in _winners(table, group, set_name, metric) if name != first]
    if others:
        text += f", not told apart from {words.enumerated(others)}"
    return f"{text}."


def boards_of(table: StudyTable) -> list[Board]:
    """A board for every prompt set, in the order of the settings."""
    names = [name for name in table.settings.prompt_sets if any(name in row.sets for row in table.rows)]
    return [_board(table, name) for name in names]


def _board(table: StudyTable, set_name: str) -> Board:
    there = [row for row in table.rows if set_name in row.sets]
    results = [row.sets[set_name] for row in there]
    metrics = metrics_of(results)
    digits = {metric.name: decimals(metric, [metric.read(one) for one in results]) for metric in metrics}
    groups: dict[str, tuple[BoardRow, ...]] = {}
    for group in groups_of(table):
        best = {metric.name: _winners(table, group, set_name, metric) for metric in metrics}
        groups[group] = tuple(
            BoardRow(row.name, _about(row), row, _cells(metrics, row.sets[set_name], digits, best, row.name))
            for row in there
            if row.group == group
        )
    floors = tuple(
        BoardRow(floor.name, f"noise floor, {result.n} prompts", None, _cells(metrics, result, digits, {}, ""))
        for floor in table.noise_floor
        if (result := floor.sets.get(set_name)) is not None
    )
    if floors:
        groups[""] = floors
    return Board(set_name, max(one.n for one in results), tuple(metrics), groups)


def _cells(
    metrics: Sequence[Metric],
    result: SetResult,
    digits: Mapping[str, int],
    best: Mapping[str, Sequence[str]],
    name: str,
) -> tuple[Cell | None, ...]:
    return tuple(
        cell_of(metric.read(result), digits[metric.name], name in best.get(metric.name, ())) for metric in metrics
    )


def _about(row: StudyRow) -> str:
    """Bits and cost in a few characters: "W4 A8.4, 1.2 products"."""
    return f"{words.bits_name(row.weight_bits, row.average_activation_bits)}, {row.products:.3g} products"


def _read(table: StudyTable, group: str, set_name: str, metric: Metric) -> dict[str, Reading]:
    """By the names of a group's rows."""
    found = {row.name: row.sets[set_name] for row in table.rows if row.group == group and set_name in row.sets}
    readings = {name: metric.read(result) for name, result in found.items()}
    return {name: reading for name, reading in readings.items() if reading is not None}


def _winners(table: StudyTable, group: str, set_name: str, metric: Metric) -> list[str]:
    """The best row of a group and those that are not told apart from it; none where nothing was compared."""
    readings = _read(table, group, set_name, metric)
    if len(readings) < 2:
        return []
    first = (max if metric.higher else min)(readings, key=lambda name: readings[name].value)
    told = {
        frozenset((one.a, one.b)): one.difference != 0.0 and one.p_value < SIGNIFICANT[-1]
        for one in table.comparisons
        if one.set == set_name and one.metric == metric.name
    }
    if not any(first in pair for pair in told):
        return []
    return [name for name in readings if name == first or told.get(frozenset((first, name))) is False]


def cost_cells(row: StudyRow) -> tuple[str, ...]:
    """What a row costs, as texts under `COST_HEADINGS`."""
    made = row.calibration
    return (
        f"{row.weight_bits} bits",
        f"{row.average_activation_bits:.4g}",
        f"{row.products:.3g}",
        str(made.prompts),
        f"{made.denoiser_passes_per_prompt:.4g}",
        "–" if made.seconds is None else words.in_seconds(made.seconds),
        words.in_bytes(row.denoiser_bytes),
    )


def _section(table: StudyTable) -> Section:
    keys = tuple(
        Key(group, GLYPHS[place % len(GLYPHS)], f"--c{place % len(GLYPHS)}")
        for place, group in enumerate(groups_of(table))
    )
    costs = tuple((row, cost_cells(row)) for row in table.rows)
    return Section(table, tuple(boards_of(table)), keys, tuple(_drawings(table)), costs)


def _drawings(table: StudyTable) -> list[tuple[str, str, Markup]]:
    """FID and PSNR on every set, in the form that the table's kind asks for."""
    found: list[tuple[str, str, Markup | None]] = []
    for set_name in table.settings.prompt_sets:
        for metric in (_BY_NAME[name] for name in _DRAWN):
            heading, better = f"{metric.label}, {set_name}", f"{'Higher' if metric.higher else 'Lower'} is better."
            if table.kind == "comparison":
                found += [(heading, better, cost_svg(table, set_name, metric, cost)) for cost in COSTS]
            elif table.kind == "ablation":
                found += [
                    (f"{heading}: {group}", better, bars_svg(table, group, set_name, metric))
                    for group in groups_of(table)
                ]
            else:
                found.append((heading, better, curve_svg(table, set_name, metric)))
    return [(heading, caption, svg) for heading, caption, svg in found if svg is not None]
