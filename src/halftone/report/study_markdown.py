"""A study's tables as Markdown, written between markers of a page that people write around them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from halftone.errors import InputError
from halftone.files import write_atomically
from halftone.report import words
from halftone.report.study_page import COST_HEADINGS, Board, boards_of, cost_cells, headlines
from halftone.report.tables import Cell
from halftone.study.results import StudyResults, StudyTable

__all__ = ["MEASURED_ON", "check_target", "study_markdown", "table_markdown", "write_tables"]

#: The part that says where and from what all of it was measured; the other parts are called as the tables.
MEASURED_ON = "measured-on"


def check_target(path: Path, names: Sequence[str]) -> None:
    """Refuses, before hours of work, a file that the tables cannot be written into.

    Args:
        names: of the plan's tables.

    Raises:
        InputError: it is no text file, has no marker of these tables, or one without its other half.
    """
    text = _read(path)
    if text is None:
        return
    found = [name for name in (*names, MEASURED_ON) if _place(path, text, name) is not None]
    if not found:
        raise InputError(
            f"{path} has no place for a table; write {_begin(names[0])} and {_end(names[0])} into it, or name a new"
            " file."
        )


def write_tables(results: StudyResults, path: Path) -> None:
    """Puts every measured table between its markers, whatever stood there; the rest of the file stays as it is. A new
    file gets all tables.

    Raises:
        InputError: see `check_target`.
        OSError: the file cannot be written.
    """
    text = _read(path)
    if text is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, study_markdown(results))
        return
    parts = {table.name: table_markdown(table) for table in results.tables}
    for name, part in {**parts, MEASURED_ON: _measured_on(results)}.items():
        place = _place(path, text, name)
        if place is not None:
            text = f"{text[: place[0]]}\n{part.strip()}\n{text[place[1] :]}"
    write_atomically(path, text)


def study_markdown(results: StudyResults) -> str:
    """A page with all tables between their markers."""
    parts = {MEASURED_ON: _measured_on(results)} | {one.name: table_markdown(one) for one in results.tables}
    lines = [f"# Recipes for {_escaped(results.reference.name)}", ""]
    for name, part in parts.items():
        heading = next((table.title for table in results.tables if table.name == name), "")
        lines += [*([f"## {_escaped(heading)}", ""] if heading else []), _begin(name), part.strip(), _end(name), ""]
    return "\n".join(lines)


def table_markdown(table: StudyTable) -> str:
    """Sentence, a table for each prompt set, costs, and what a reader must know."""
    lines = [_escaped(table.sentence), ""]
    for board in boards_of(table):
        lines += [*_board_lines(table, board), ""]
    lines += [*_cost_lines(table), ""]
    settings = table.settings
    guidance = "" if settings.guidance_scale is None else f", guidance {settings.guidance_scale:g}"
    lines.append(
        f"{settings.width}×{settings.height} pixels, {settings.scheduler}, {settings.num_inference_steps} steps"
        f"{guidance}. In parentheses: 95 % intervals. Bold: the best of its group, with all that are not told apart"
        " from it (paired, on the same prompts). FID, where it has an interval, is less its bias from few images."
    )
    lines += ["", *(f"- {_escaped(text)}" for text in table.warnings)] if table.warnings else []
    return "\n".join(lines) + "\n"


def _board_lines(table: StudyTable, board: Board) -> Iterator[str]:
    yield f"**{_escaped(board.set_name)}**, {board.n} prompts:"
    yield ""
    yield _line(["row", *(metric.heading for metric in board.metrics)])
    yield _line(["---", *["---:"] * len(board.metrics)])
    with_groups = len([group for group in board.groups if group]) > 1
    for group, rows in board.groups.items():
        if with_groups and group:
            yield _line([f"*{_escaped(group)}*", *[""] * len(board.metrics)])
        for row in rows:
            name = _escaped(row.name) if row.row is not None else f"*{_escaped(row.name)}* (noise floor)"
            yield _line([name, *(_value(cell) for cell in row.cells)])


def _cost_lines(table: StudyTable) -> Iterator[str]:
    yield _line(["row", *COST_HEADINGS])
    yield _line(["---", *["---:"] * len(COST_HEADINGS)])
    for row in table.rows:
        yield _line([_escaped(row.name), *cost_cells(row)])


def _measured_on(results: StudyResults) -> str:
    """Model, plan, machine, and the command."""
    place, reference = results.environment, results.reference
    size = "" if reference.size_bytes is None else f", denoiser {words.in_bytes(reference.size_bytes)}"
    versions = ", ".join(f"{name} {version}" for name, version in place.versions.items())
    lines = [
        f"`{reference.source}` ({reference.dtype or 'as it is'}{size}), plan `{results.plan}`, measured {place.created}"
        f" on {_escaped(place.accelerator or place.processor)}, {place.platform},"
        f" {place.threads} thread{'s' if place.threads != 1 else ''}; {versions}.",
        "",
        *(f"- {_escaped(sentence)}" for sentence in headlines(results)),
    ]
    if results.missing:
        lines += ["", f"Not measured yet: {_escaped(words.enumerated(results.missing))}."]
    return "\n".join(lines) + "\n"


def _value(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    text = f"**{cell.text}**" if cell.best else cell.text
    return f"{text} ({cell.interval})" if cell.interval else text


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """On one line, without what Markdown or HTML would take for their own."""
    text = " ".join(text.split())
    for character in "\\`*_[]<>|":
        text = text.replace(character, f"\\{character}")
    return text


def _begin(name: str) -> str:
    return f"<!-- study: {name} -->"


def _end(name: str) -> str:
    return f"<!-- end of study: {name} -->"


def _read(path: Path) -> str | None:
    """The file's text; None if there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}).") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def _place(path: Path, text: str, name: str) -> tuple[int, int] | None:
    """Where what stands between the markers begins and ends; None without markers."""
    begin, end = text.find(_begin(name)), text.find(_end(name))
    if begin < 0 and end < 0:
        return None
    if begin < 0 or end < begin:
        raise InputError(f"{path} has only one of {_begin(name)} and {_end(name)}, or both the wrong way round.")
    return begin + len(_begin(name)), end
