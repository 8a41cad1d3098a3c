"""Prompt files: one prompt a line, or one of the sets that ship with the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from halftone.errors import InputError, suggest

MAX_CHARACTERS = 10_000
_SETS = Path(__file__).parent / "bundled" / "prompts"
_PREFIX = "bundled:"


def prompt_sets() -> tuple[str, ...]:
    """Names of the prompt sets that ship with the package."""
    return tuple(sorted(path.stem for path in _SETS.glob("*.txt")))


def read_prompts(source: str | Path, limit: int | None = None, skip: int = 0) -> tuple[str, ...]:
    """The prompts of a UTF-8 text file, one a line, or of ``bundled:NAME``; blank lines are skipped.

    Args:
        source: path, or bundled:calibration, bundled:scenes, bundled:styled.
        limit: how many to take; None for all.
        skip: how many to leave out at the start.

    Raises:
        InputError: the file is missing, not text, empty, or has fewer prompts than asked for.
    """
    path = _path(str(source))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"The prompt file {path} does not exist.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"The prompt file {path} is not UTF-8 text (byte {error.start}).") from error
    except OSError as error:
        raise InputError(f"The prompt file {path} cannot be read: {error.strerror}.") from error
    prompts = [line.strip() for line in text.split("\n") if line.strip()]
    if not prompts:
        raise InputError(f"The prompt file {path} has no prompts; write one a line.")
    wanted = prompts[skip:] if limit is None else prompts[skip : skip + limit]
    if not wanted or (limit is not None and len(wanted) < limit):
        raise InputError(f"{source} has {len(prompts)} prompts, and {skip + (limit or 1)} are asked for.")
    return check_prompts(wanted)


def check_prompts(prompts: Sequence[str]) -> tuple[str, ...]:
    """The prompts, if they can be used.

    Raises:
        InputError: there is none, or one is no text, too long or holds a NUL character; says which.
    """
    if isinstance(prompts, str):
        raise InputError("Prompts must be a list of texts, not one text.")
    if not prompts:
        raise InputError("There are no prompts; give at least one.")
    for number, prompt in enumerate(prompts, start=1):
        if not isinstance(prompt, str):
            raise InputError(f"Prompt {number} is of type {type(prompt).__name__}, not a text.")
        if len(prompt) > MAX_CHARACTERS:
            raise InputError(f"Prompt {number} has {len(prompt)} characters; at most {MAX_CHARACTERS} are allowed.")
        if "\0" in prompt:
            raise InputError(f"Prompt {number} contains a NUL character; remove it.")
    return tuple(prompts)


def _path(source: str) -> Path:
    if not source.startswith(_PREFIX):
        return Path(source)
    name = source.removeprefix(_PREFIX)
    if name not in prompt_sets():
        raise InputError(f"There is no bundled prompt set {name!r}; {suggest(name, prompt_sets())}.")
    return _SETS / f"{name}.txt"
