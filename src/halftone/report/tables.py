"""The tables of the page as plain rows of text: leaderboard, generalization, cost, kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from halftone.qdiffbench.results import KernelUse, Model, NoiseFloor, Results
from halftone.qdiffbench.set_results import SetResult
from halftone.report import words
from halftone.report.comparisons import decided, tied
from halftone.report.metrics import METRICS, Metric, Reading, decimals, gap_interval, metrics_of
from halftone.report.standing import Standing, set_names

FLOOR_WORDS = {
    "dtype": "rounding alone, without quantization",
    "seed": "unrelated pictures of the same prompts",
    "threads": "another order of summation",
    "repeat": "the same once more",
}


@dataclass(frozen=True)
class Cell:
    """A number as text with its interval and a note below; ``best`` if nothing is shown to be better."""

    text: str
    interval: str = ""
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class Row:
    """One line: a candidate's (with its standing) or a noise floor's (without)."""

    name: str
    about: str
    standing: Standing | None
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Board:
    """One prompt set's leaderboard; the noise floors stand below the candidates."""

    set_name: str
    n: int
    metrics: tuple[Metric, ...]
    rows: tuple[Row, ...]


def boards(results: Results, ranked: Sequence[Standing]) -> list[Board]:
    """A leaderboard for every prompt set, the candidates in one order in all of them."""
    return [_board(results, ranked, name) for name in set_names(results)]


def _board(results: Results, ranked: Sequence[Standing], set_name: str) -> Board:
    there = [s for s in ranked if set_name in s.candidate.sets]
    measured = [s.candidate.sets[set_name] for s in there]
    floors = [floor for floor in results.noise_floor if set_name in floor.sets]
    metrics = metrics_of(measured)
    digits = {m.name: decimals(m, [m.read(item) for item in measured]) for m in metrics}
    best = {m.name: _best(results, there, set_name, m) for m in metrics}
    rows = [
        Row(s.name, about(s.candidate), s, _cells(metrics, s.candidate.sets[set_name], digits, best, s.name))
        for s in there
    ]
    n = max(item.n for item in measured)
    for floor in floors:
        result = floor.sets[set_name]
        words_ = "noise floor" if result.n == n else f"noise floor, {result.n} prompts"
        rows.append(Row(floor.name, words_, None, _cells(metrics, result, digits)))
    return Board(set_name, n, tuple(metrics), tuple(rows))


def floor_words(floor: NoiseFloor) -> str:
    """What a noise floor is, for a reader."""
    return FLOOR_WORDS[floor.kind]


def about(model: Model) -> str:
    """Bits and size in a few characters: "W8 A8.4, 11.4 MB"."""
    size = "" if model.size_bytes is None else words.in_bytes(model.size_bytes)
    return ", ".join(part for part in (words.bits_name(model.avg_weight_bits, model.avg_activation_bits), size) if part)


def _cells(
    metrics: Sequence[Metric],
    result: SetResult,
    digits: Mapping[str, int],
    best: Mapping[str, set[str]] | None = None,
    name: str = "",
) -> tuple[Cell | None, ...]:
    return tuple(
        cell_of(metric.read(result), digits[metric.name], best is not None and name in best[metric.name])
        for metric in metrics
    )


def cell_of(reading: Reading | None, digits: int, best: bool = False) -> Cell | None:
    """A reading as text; None for what was not measured."""
    if reading is None:
        return None
    note = reading.note
    if reading.note_value is not None:
        note = f"{note} {words.number(reading.note_value, digits)}"
    return Cell(words.number(reading.value, digits), words.interval(reading, digits), note, best)


def _best(results: Results, there: Sequence[Standing], set_name: str, metric: Metric) -> set[str]:
    """The best candidate and those that are not distinguishable from it; nobody wins alone."""
    values = {s.name: r.value for s in there if (r := metric.read(s.candidate.sets[set_name])) is not None}
    if len(values) < 2 or not decided(results, set_name, metric.name):
        return set()
    first = (max if metric.higher else min)(values, key=lambda name: values[name])
    return {
        name for name in values if values[name] == values[first] or tied(results, set_name, metric.name, first, name)
    }


@dataclass(frozen=True)
class GapRow:
    """One metric's change between two prompt sets, for every candidate in rank order."""

    metric: Metric
    heading: str
    from_set: str
    to_set: str
    cells: tuple[Cell | None, ...]


def gap_rows(ranked: Sequence[Standing]) -> list[GapRow]:
    """The gaps that were measured, one row a metric and pair of sets."""
    known = {metric.name: metric for metric in METRICS}
    keys = dict.fromkeys((g.metric, g.from_set, g.to_set) for s in ranked for g in s.candidate.gaps)
    rows = []
    for name, from_set, to_set in keys:
        if name not in known:
            continue
        readings = [_gap(s, known[name], from_set, to_set) for s in ranked]
        digits = decimals(known[name], readings)
        heading = "CLIP score" if name == "clip_score" else known[name].heading
        cells = tuple(cell_of(r, digits) for r in readings)
        rows.append(GapRow(known[name], heading, from_set, to_set, cells))
    return rows


def _gap(standing: Standing, metric: Metric, from_set: str, to_set: str) -> Reading | None:
    """The measured gap in the column's unit, with the interval of two independent sets."""
    candidate = standing.candidate
    gap = next((g for g in candidate.gaps if (g.metric, g.from_set, g.to_set) == (metric.name, from_set, to_set)), None)
    if gap is None:
        return None
    scale = {"latent_error": 100.0, "attribute_accuracy": 100.0, "kid_to_fp": 1000.0}.get(metric.name, 1.0)
    measured = from_set in candidate.sets and to_set in candidate.sets
    if metric.name == "clip_score" or not measured:  # the score's own interval is not recorded
        return Reading(scale * gap.difference)
    first, second = metric.read(candidate.sets[from_set]), metric.read(candidate.sets[to_set])
    ends = gap_interval(first, second) if first is not None and second is not None else None
    inside = ends is not None and ends[0] <= scale * gap.difference <= ends[1]
    return Reading(scale * gap.difference, *(ends if ends is not None and inside else (None, None)))


@dataclass(frozen=True)
class KernelLine:
    """A kernel's share of a run: layers it executed at how many slots, in words."""

    kernel: str
    execution: str
    bits: str
    slots: int
    layers: int


def kernel_lines(uses: Sequence[KernelUse]) -> list[KernelLine]:
    """The kernels of a run joined over slots, in order of first use."""
    groups: dict[tuple[str, str, float | None], list[KernelUse]] = {}
    for use in uses:
        groups.setdefault((use.kernel, use.execution, use.activation_bits), []).append(use)
    return [
        KernelLine(kernel, execution, "" if bits is None else f"{bits:g}", len(group), max(u.layers for u in group))
        for (kernel, execution, bits), group in groups.items()
    ]
