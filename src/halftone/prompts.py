"""Prompts: a file (text, JSONL or CSV), or one of the sets that ship with the package."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from halftone.errors import InputError, suggest
from halftone.prompt_files import SUFFIXES, PromptEntry, read_entries

MAX_CHARACTERS = 10_000
_SETS = Path(__file__).parent / "bundled" / "prompts"
_PREFIX = "bundled:"


def prompt_sets() -> tuple[str, ...]:
    """Names of the prompt sets that ship with the package."""
    return tuple(sorted({path.stem for path in _SETS.glob("*") if path.suffix in SUFFIXES}))


def prompt_entries(source: str | Path, column: str | None = None) -> tuple[PromptEntry, ...]:
    """All prompts of FILE, FILE:COLUMN or bundled:NAME, with their alternatives where the file has them.

    Args:
        column: which column or key holds the prompt, as an alternative to FILE:COLUMN.

    Raises:
        InputError: the file is missing, malformed or empty, has no such column, or a text cannot be used.
    """
    path, named = _path(str(source))
    if column is not None and named is not None and column != named:
        raise InputError(f"{source} names the column {named!r}, and {column!r} is asked for.")
    entries = read_entries(path, column if column is not None else named)
    check_prompts([entry.prompt for entry in entries])
    for entry in entries:
        if entry.alternatives:
            check_prompts(entry.alternatives)
    return entries


def read_prompts(source: str | Path, limit: int | None = None, skip: int = 0) -> tuple[str, ...]:
    """The prompts of a text file, one a line, of a JSONL or CSV file, or of ``bundled:NAME``.

    Args:
        source: path, path:column, or bundled:calibration, bundled:scenes, bundled:styled.
        limit: how many to take; None for all.
        skip: how many to leave out at the start.

    Raises:
        InputError: the file is missing, malformed or empty, or has fewer prompts than asked for.
    """
    if (limit is not None and limit < 1) or skip < 0:
        raise InputError(f"{limit} prompts after the first {skip} are asked for; take at least 1 and skip 0 or more.")
    prompts = [entry.prompt for entry in prompt_entries(source)]
    wanted = prompts[skip:] if limit is None else prompts[skip : skip + limit]
    if not wanted or (limit is not None and len(wanted) < limit):
        raise InputError(f"{source} has {len(prompts)} prompts, and {skip + (limit or 1)} are asked for.")
    return tuple(wanted)


def check_prompts(prompts: Iterable[str]) -> tuple[str, ...]:
    """The prompts, if they can be used; an iterator is used up.

    Raises:
        InputError: there is none, or one is no text, too long or holds a NUL character; says which.
    """
    if isinstance(prompts, str):
        raise InputError("Prompts must be a list of texts, not one text.")
    if not isinstance(prompts, Iterable):
        raise InputError(f"Prompts must be a list of texts, not {type(prompts).__name__}.")
    prompts = tuple(prompts)
    if not prompts:
        raise InputError("There are no prompts; give at least one.")
    for number, prompt in enumerate(prompts, start=1):
        if not isinstance(prompt, str):
            raise InputError(f"Prompt {number} is of type {type(prompt).__name__}, not a text.")
        if len(prompt) > MAX_CHARACTERS:
            raise InputError(f"Prompt {number} has {len(prompt)} characters; at most {MAX_CHARACTERS} are allowed.")
        if "\0" in prompt:
            raise InputError(f"Prompt {number} contains a NUL character; remove it.")
        if not _is_unicode(prompt):
            raise InputError(f"Prompt {number} holds bytes that are no valid Unicode text; write it in UTF-8.")
    return prompts


def _is_unicode(text: str) -> bool:
    """False for lone surrogates, which arrive when a terminal's bytes are not what the locale says."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _path(source: str) -> tuple[Path, str | None]:
    """The file of a source, and the column that FILE:COLUMN names."""
    if source.startswith(_PREFIX):
        name = source.removeprefix(_PREFIX)
        if name not in prompt_sets():
            raise InputError(f"There is no bundled prompt set {name!r}; {suggest(name, prompt_sets())}")
        # of NAME.jsonl and NAME.txt the one that has alternatives too
        return next(path for suffix in SUFFIXES if (path := _SETS / f"{name}{suffix}").exists()), None
    # a file may have a colon in its name
    head, colon, column = source.rpartition(":")
    if colon and column and not Path(source).exists() and Path(head).is_file():
        return Path(head), column
    return Path(source), None
