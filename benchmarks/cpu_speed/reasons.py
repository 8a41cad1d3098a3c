"""Why something was not measured, in a sentence that tells nothing of the machine's folders."""

from __future__ import annotations

import re

_LENGTH = 300


def reason_of(error: BaseException) -> str:
    """An error as one sentence, without paths of this machine."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    first = lines[0] if lines else ""
    said = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return without_paths(said)[:_LENGTH]


def without_paths(text: str) -> str:
    """A text with files named by their last part alone."""
    return re.sub(r"(?<![\w/:])/(?:[^\s/'\":]+/)+", "", text)
