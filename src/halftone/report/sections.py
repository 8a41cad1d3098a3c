"""What the page's templates are filled with: rows, drawings and groups made from the page's input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halftone.qdiffbench.results import Candidate, Model, Results
from halftone.qdiffbench.set_results import StepDrift
from halftone.report import comparison_plots, plots, tables, words
from halftone.report.comparisons import duels, label
from halftone.report.gallery import Gallery
from halftone.report.headline import execution_words, facts, smaller
from halftone.report.metrics import metrics_of
from halftone.report.page_input import PageInput
from halftone.report.ranges import most_moving_layers, wasted_bits
from halftone.report.standing import CLOSE, SAME, SIMILAR, Standing, headline, set_names, standings
from halftone.report.tables import Cell


def page_context(page: PageInput, gallery: Gallery) -> dict[str, Any]:
    """Everything the templates name."""
    results = page.results
    ranked, sets = standings(results), set_names(results)
    single = ranked[0] if len(ranked) == 1 else None
    return {
        "page": page,
        "title": page.title,
        "r": results,
        "ranked": ranked,
        "sets": sets,
        "single": single,
        "headline": headline(ranked),
        "facts": facts(single, next(iter(single.kinds)), results) if single and single.kinds else [],
        "smaller": {s.name: smaller(s.candidate, results) for s in ranked},
        "gallery": gallery,
        "boards": tables.boards(results, ranked),
        "gaps": tables.gap_rows(ranked),
        "duels": duels(results),
        "label": label,
        "floor_words": tables.floor_words,
        "bounds": (SAME, CLOSE, SIMILAR),
        "costs": cost_rows(results, ranked),
        "kernels": [(s, tables.kernel_lines(s.candidate.kernels)) for s in ranked if s.candidate.kernels],
        "left_out": _grouped_by_reason(page.quantization.left_out if page.quantization else {}),
        "commands": commands(page),
        **_drawings(page, ranked, sets),
    }


def commands(page: PageInput) -> list[str]:
    """Command lines that reproduce the page, each once."""
    own = page.quantization.commands if page.quantization else ()
    return [*dict.fromkeys([*own, *page.results.settings.commands])]


def cost_rows(results: Results, ranked: Sequence[Standing]) -> list[tuple[Standing | None, Model, dict[str, Cell]]]:
    """The reference and every candidate with what they cost; a cost that nobody has is no column."""
    models: list[tuple[Standing | None, Model]] = [(None, results.reference), *((s, s.candidate) for s in ranked)]
    rows = [(standing, model, _costs(model, results.reference)) for standing, model in models]
    return rows if any(costs for _, _, costs in rows) else []


def _costs(model: Model, reference: Model) -> dict[str, Cell]:
    costs: dict[str, Cell] = {}
    for name, mine, theirs in (
        ("time an image", model.seconds_per_image, reference.seconds_per_image),
        ("time a step", model.seconds_per_step, reference.seconds_per_step),
    ):
        if mine is not None:
            spread = f"{words.in_seconds(mine.low)} to {words.in_seconds(mine.high)}"
            against = "" if theirs is None or model is reference else words.compared(mine.median, theirs.median)
            costs[name] = Cell(words.in_seconds(mine.median), spread, against)
    for name, count, base in (
        ("peak memory", model.peak_memory_bytes, reference.peak_memory_bytes),
        ("file size", model.size_bytes, reference.size_bytes),
    ):
        if count is not None:
            share = "" if not base or model is reference else f"{count / base:.2f}× full precision"
            costs[name] = Cell(words.in_bytes(count), note=share)
    bits = words.bits_name(model.avg_weight_bits, model.avg_activation_bits)
    if bits:
        costs["mean bits"] = Cell(bits)
    if isinstance(model, Candidate) and (execution := execution_words(model)):
        costs["executed as"] = Cell(execution)
    return costs


def slot_bits(page: PageInput, ranked: Sequence[Standing]) -> dict[str, list[tuple[float, float]]]:
    """(timestep, bits) of every slot, for the candidates of which they are known to vary with the slot."""
    found = {s.name: _kernel_bits(s.candidate) for s in ranked}
    facts_, candidates = page.quantization, page.results.candidates
    if facts_ is not None and candidates:
        name = facts_.candidate or candidates[0].name
        found[name] = [*zip(facts_.slot_timesteps, map(float, facts_.slot_bits), strict=True)]
    return {name: slots for name, slots in found.items() if len(slots) > 1}


def _kernel_bits(candidate: Candidate) -> list[tuple[float, float]]:
    """Mean bits of the layers in every slot, from the record of the kernels."""
    slots: dict[float, list[tuple[float, int]]] = {}
    for use in candidate.kernels:
        if use.timestep is not None and use.activation_bits is not None and use.layers:
            slots.setdefault(use.timestep, []).append((use.activation_bits, use.layers))
    return [(t, sum(b * n for b, n in uses) / sum(n for _, n in uses)) for t, uses in slots.items()]


def relaxed_steps(slots: Sequence[tuple[float, float]], steps: int) -> list[int]:
    """Steps with more bits than the others; none if slots and steps do not correspond one to one."""
    bits = [b for _, b in slots]
    return [i for i, b in enumerate(bits) if b > min(bits)] if len(bits) == steps else []


def _drawings(page: PageInput, ranked: Sequence[Standing], sets: Sequence[str]) -> dict[str, Any]:
    results = page.results
    slots = slot_bits(page, ranked)
    measured = [s.candidate.sets[name] for s in ranked for name in sets if name in s.candidate.sets]
    several = len(measured) > 1
    moving = most_moving_layers(page.activation_ranges)
    floors = results.noise_floor
    return {
        "ruler": comparison_plots.ruler_svg(ranked, floors, sets) if ranked and (floors or several) else None,
        "intervals": [(m, comparison_plots.interval_svg(m, ranked, sets)) for m in metrics_of(measured)]
        if several
        else [],
        "scatters": _scatters(results, ranked, sets),
        "drifts": _drifts(page, ranked, sets, slots),
        "histograms": _histograms(page, ranked, sets),
        "slots": slots,
        "bits_svg": plots.slot_bits_svg(slots, ranked) if slots else None,
        "ranges": [(n, wasted_bits(steps), plots.activation_range_svg(steps, n)) for n, steps in moving],
    }


def _scatters(results: Results, ranked: Sequence[Standing], sets: Sequence[str]) -> list[tuple[str, Any]]:
    """Fidelity against bits and against time; without two values it says nothing and is not drawn."""
    found = []
    bits = {
        "activation": [(s, b) for s in ranked if (b := s.candidate.avg_activation_bits) is not None],
        "weight": [(s, b) for s in ranked if (b := s.candidate.avg_weight_bits) is not None],
    }
    seconds = [(s, t.median) for s in ranked if (t := s.candidate.seconds_per_image) is not None]
    for kind, values in bits.items():
        if len({round(b, 2) for _, b in values}) > 1:
            svg = comparison_plots.scatter_svg(values, sets, f"average {kind} bits")
            found.append((f"Fidelity against {kind} bits", svg))
    if len({t for _, t in seconds}) > 1:
        reference = results.reference.seconds_per_image
        full = reference.median if reference is not None else None
        found.append(
            ("Fidelity against time", comparison_plots.scatter_svg(seconds, sets, "seconds an image", reference=full))
        )
    return found


def _drifts(
    page: PageInput, ranked: Sequence[Standing], sets: Sequence[str], slots: Mapping[str, Sequence[tuple[float, float]]]
) -> list[tuple[str, Any, bool]]:
    """(set, drawing, whether relaxed steps are shaded) of every set with drift."""
    found = []
    for name in sets:
        lines = [(s, drift) for s in ranked if (drift := _drift(page, s, name))]
        if lines:
            only = slots.get(ranked[0].name, ()) if len(ranked) == 1 else ()
            relaxed = relaxed_steps(only, len(lines[0][1]))
            found.append((name, comparison_plots.drift_svg(lines, name, relaxed), bool(relaxed)))
    return found


def _drift(page: PageInput, standing: Standing, set_name: str) -> Sequence[StepDrift]:
    given = page.drift.get((standing.name, set_name))
    if given is not None or set_name not in standing.candidate.sets:
        return given or ()
    return standing.candidate.sets[set_name].drift


def _histograms(page: PageInput, ranked: Sequence[Standing], sets: Sequence[str]) -> list[tuple[str, Any]]:
    found = []
    for name in sets:
        values = {s.name: v for s in ranked if len(v := page.psnr_values.get((s.name, name), ()))}
        if values:
            found.append((name, plots.psnr_histogram_svg(values, ranked, name)))
    return found


def _grouped_by_reason(left_out: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Reasons in order of first appearance, each with the names of its layers."""
    groups: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        groups.setdefault(reason, []).append(name)
    return list(groups.items())
