"""The few kinds of error Halftone raises on purpose.

Every message is written for the person at the keyboard: what was wrong, where, and what to do about it.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable

__all__ = [
    "ArtifactError",
    "CalibrationError",
    "HalftoneError",
    "InputError",
    "NonFiniteError",
    "OutputError",
    "RecipeError",
    "is_out_of_memory",
    "suggest",
]


class HalftoneError(Exception):
    """Base of all errors that Halftone raises on purpose; one clear sentence, no traceback needed."""


class RecipeError(HalftoneError):
    """A recipe asks for something unknown, contradictory or out of range."""


class InputError(HalftoneError):
    """An argument or an input tensor cannot be used as given."""


class ArtifactError(HalftoneError):
    """A stored quantized model is damaged, incomplete or of another format."""


class CalibrationError(HalftoneError):
    """Calibration failed, or a layer is executed that was never calibrated."""


class NonFiniteError(CalibrationError):
    """NaN or infinity where finite numbers are needed (weights or observed activations)."""


class OutputError(HalftoneError):
    """A file could not be written (no space left, no permission)."""


def is_out_of_memory(error: Exception) -> bool:
    """Python's own error, an accelerator's, or that of torch's allocator, which has no type of its own."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def suggest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: ``did you mean 'x'?``, or the list of the known names.

    Args:
        name: what was asked for.
        known: the names that exist.

    Returns:
        A phrase to end an error message with; never empty.
    """
    names = sorted(known)
    lowered = {candidate.lower(): candidate for candidate in names}
    near = difflib.get_close_matches(name.lower(), list(lowered), n=5, cutoff=0.6)
    if near:
        best = max(near, key=lambda candidate: _likeness(name.lower(), candidate))
        return f"did you mean {lowered[best]!r}?"
    if not names:
        return "none are known"
    return "known: " + ", ".join(names)


def _likeness(asked: str, candidate: str) -> tuple[float, int]:
    """How near a name is; letters that were swapped count for less than others."""
    ratio = difflib.SequenceMatcher(None, candidate, asked).ratio()
    return ratio, (Counter(asked) & Counter(candidate)).total()
