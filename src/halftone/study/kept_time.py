"""How long a piece of work took over all runs that worked on it, kept beside what it makes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from halftone.files import output_errors, parse_json, write_atomically

__all__ = ["KeptTime", "kept_seconds"]

_SECONDS_BETWEEN_NOTES = 2.0  # so much a killed run may lose


class KeptTime:
    """A clock that goes on where an earlier run's stopped.

    Args:
        path: of its file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._before = path, kept_seconds(path) or 0.0
        self._began = self._noted = time.monotonic()

    @property
    def seconds(self) -> float:
        """Of all runs, up to now."""
        return self._before + time.monotonic() - self._began

    def look(self) -> None:
        """Notes the time, if the last note is some seconds old."""
        if time.monotonic() - self._noted >= _SECONDS_BETWEEN_NOTES:
            self.note()

    def note(self) -> None:
        """Writes the time down."""
        with output_errors(f"The time {self._path}"):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps({"seconds": self.seconds}) + "\n")
        self._noted = time.monotonic()

    @contextmanager
    def running(self) -> Iterator[KeptTime]:
        """Within it the clock goes; at its end, whatever that is, the time is noted."""
        self._began = self._noted = time.monotonic()
        try:
            yield self
        finally:
            self.note()


def kept_seconds(path: Path) -> float | None:
    """What a clock has noted; None if there is no note that can be read."""
    try:
        seconds = parse_json(path.read_text(encoding="utf-8"))["seconds"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(seconds) if isinstance(seconds, int | float) and seconds >= 0 else None
