"""One bar over several pieces of work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int], None]


class Steps:
    """Divides a progress among parts, which say how far they are in units of their own.

    Args:
        progress: called with (units done, units in all).
        total: units of all parts.
    """

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    @contextmanager
    def part(self, units: int) -> Iterator[Progress]:
        """A part of the work, and its own progress; at its end all its units are done."""

        def advance(done: int, total: int) -> None:
            self._progress(self._done + units * done // max(total, 1), self._total)

        yield advance
        self._done += units
        self._progress(self._done, self._total)
