"""Rows of prompt files: text (one a line), JSONL or CSV, as prompts with their optional alternatives."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halftone.errors import InputError, suggest
from halftone.files import parse_json

SUFFIXES = (".jsonl", ".csv", ".txt")
DEFAULT_COLUMN = "prompt"
ALTERNATIVES = "alternatives"

_Row = tuple[int, dict[str, Any]]


@dataclass(frozen=True)
class PromptEntry:
    """A prompt, and texts that are false for it (in one attribute, say); without alternatives it has none."""

    prompt: str
    alternatives: tuple[str, ...] = ()


def read_entries(path: Path, column: str | None = None) -> tuple[PromptEntry, ...]:
    """All prompts of a UTF-8 file, stripped of surrounding blanks; the file's suffix says how it is read.

    ``.jsonl``: a JSON object a line; ``.csv``: a first row of column names; anything else: one prompt a line. Blank
    lines are skipped. In a column ``alternatives``, JSONL has a list of texts and CSV the same list as JSON.

    Args:
        column: which key or column holds the prompt; "prompt" if not given. Text files have none.

    Raises:
        InputError: the file is missing, not text, empty or malformed, or has no such column; says where.
    """
    text = _text(path)
    suffix = path.suffix.lower()
    if suffix not in (".jsonl", ".csv"):
        if column is not None:
            raise InputError(f"{path} is a text file with one prompt a line; it has no column {column!r}.")
        entries = [PromptEntry(line.strip()) for line in text.split("\n") if line.strip()]
    else:
        rows = _json_rows(path, text) if suffix == ".jsonl" else _csv_rows(path, text)
        entries = [_entry(path, line, row, column or DEFAULT_COLUMN) for line, row in rows]
    if not entries:
        raise InputError(f"The prompt file {path} has no prompts; write one a line.")
    return tuple(entries)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"The prompt file {path} does not exist.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"The prompt file {path} is not UTF-8 text (byte {error.start}).") from error
    except OSError as error:
        raise InputError(f"The prompt file {path} cannot be read: {error.strerror}.") from error


def _json_rows(path: Path, text: str) -> Iterator[_Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number} is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise InputError(f'{path}, line {number} must be a JSON object such as {{"prompt": "a red cube"}}.')
        yield number, row


def _csv_rows(path: Path, text: str) -> Iterator[_Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise InputError(f"{path}, line {reader.line_num} has another number of cells than the first row.")
            parsed: dict[str, Any] = dict(row)
            if parsed.get(ALTERNATIVES) is not None:
                parsed[ALTERNATIVES] = _alternatives_cell(path, reader.line_num, parsed[ALTERNATIVES])
            yield reader.line_num, parsed
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num} is not CSV: {error}.") from error


def _alternatives_cell(path: Path, line: int, cell: str) -> Any:
    try:
        return parse_json(cell) if cell.strip() else []
    except ValueError as error:
        raise InputError(
            f"{path}, line {line}: alternatives must be a JSON list of texts, got {cell[:80]!r}."
        ) from error


def _entry(path: Path, line: int, row: dict[str, Any], column: str) -> PromptEntry:
    if column not in row:
        raise InputError(
            f"{path}, line {line} has no column {column!r} ({suggest(column, row)}); name one with FILE:COLUMN."
        )
    prompt = row[column]
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"{path}, line {line}: {column!r} must be a text that is not empty, got {prompt!r}.")
    alternatives = row.get(ALTERNATIVES)
    if alternatives is None:
        alternatives = []
    if not isinstance(alternatives, list) or not all(isinstance(text, str) and text.strip() for text in alternatives):
        raise InputError(f"{path}, line {line}: alternatives must be a list of texts that are not empty.")
    stripped = tuple(text.strip() for text in alternatives)
    if prompt.strip() in stripped:
        raise InputError(f"{path}, line {line}: the prompt is one of its own alternatives.")
    return PromptEntry(prompt.strip(), stripped)
