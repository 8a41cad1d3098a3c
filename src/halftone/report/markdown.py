"""The leaderboard as a Markdown table, for a README or a model card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from halftone.qdiffbench.results import Model, Results
from halftone.report import words
from halftone.report.standing import standings
from halftone.report.tables import Board, Cell, Row, boards


def markdown_table(results: Results) -> str:
    """One table over all prompt sets: candidates from the nearest to the farthest, then the noise floors.

    A column is there if at least one candidate has it. Values carry their 95 % interval in parentheses; bold is the
    best, with all that are not distinguishable from it.
    """
    all_boards = boards(results, standings(results))
    metrics = {metric.name: metric.heading for board in all_boards for metric in board.metrics}
    with_sets = len(all_boards) > 1
    costs = _cost_columns(results)
    head = ["model", *(["prompts"] if with_sets else []), *metrics.values(), *costs]
    lines = [_line(head), _line(["---"] * (2 if with_sets else 1) + ["---:"] * (len(metrics) + len(costs)))]
    for board in all_boards:
        lines += _rows(board, list(metrics), costs, with_sets)
    return "\n".join([*lines, "", *_notes(results, all_boards)]) + "\n"


def _rows(board: Board, metrics: Sequence[str], costs: Sequence[str], with_sets: bool) -> Iterator[str]:
    for row in board.rows:
        cells = dict(zip([metric.name for metric in board.metrics], row.cells, strict=True))
        name = _escaped(row.name) if row.standing else f"*{_escaped(row.name)}* (noise floor)"
        values = [_value(cells.get(metric)) for metric in metrics]
        yield _line(
            [name, *([_escaped(board.set_name)] if with_sets else []), *values, *(_cost(row, cost) for cost in costs)]
        )


def _value(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    text = f"**{cell.text}**" if cell.best else cell.text
    return f"{text} ({cell.interval})" if cell.interval else text


def _cost_columns(results: Results) -> list[str]:
    """The costs that at least one candidate has."""
    return [name for name, read in _COSTS.items() if any(read(candidate) for candidate in results.candidates)]


def _cost(row: Row, name: str) -> str:
    return _COSTS[name](row.standing.candidate) or "–" if row.standing else "–"


def _bits(model: Model) -> str:
    return words.bits_name(model.avg_weight_bits, model.avg_activation_bits)


def _size(model: Model) -> str:
    return "" if model.size_bytes is None else words.in_bytes(model.size_bytes)


def _time(model: Model) -> str:
    return "" if model.seconds_per_image is None else words.in_seconds(model.seconds_per_image.median)


_COSTS = {"mean bits": _bits, "size": _size, "time an image": _time}


def _notes(results: Results, all_boards: Sequence[Board]) -> list[str]:
    """What the table compares, and every warning."""
    settings = results.settings
    counts = words.enumerated([f"{board.n} prompts {_escaped(board.set_name)}" for board in all_boards])
    run = [f"{settings.width}×{settings.height} pixels"]
    if settings.scheduler:
        run.append(settings.scheduler)
    if settings.num_inference_steps:
        run.append(f"{settings.num_inference_steps} steps")
    if settings.guidance_scale is not None:
        run.append(f"guidance {settings.guidance_scale:g}")
    size, time = _size(results.reference), _time(results.reference)
    costs = ", ".join(part for part in (size, f"{time} an image" if time else "") if part)
    about = f" ({costs})" if costs else ""
    lines = [
        f"Compared with {_escaped(results.reference.name)}{about} on the same prompts and initial noise:"
        f" {counts}; {', '.join(run)}. In parentheses: 95 % intervals."
    ]
    if any(metric.name == "fid_to_fp" for board in all_boards for metric in board.metrics):
        lines[0] += " FID, where it has an interval, is less its bias from finitely many images."
    for warning in results.warnings:
        lines += ["", f"> **Note:** {_escaped(warning)}"]
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """Text from outside as one line of a table, without markup of its own."""
    text = " ".join(text.split())
    for sign in "\\|*_`<>[]":
        text = text.replace(sign, f"\\{sign}")
    return text
