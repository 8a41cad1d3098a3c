"""Progress lines with the time that is left."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Mapping


class Progress:
    """Counts units of work of several kinds, and tells the time that the rest will take.

    Of a kind of which none is done yet nothing is known; the line then says "at least".

    Args:
        planned: number of units of each kind.
    """

    def __init__(self, planned: Mapping[str, int]) -> None:
        self.left = dict(planned)
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._last = time.perf_counter()

    def done(self, kind: str, words: str = "") -> None:
        """One unit is done; its time is that since the one before. Without words nothing is printed."""
        now = time.perf_counter()
        self.finish(kind, now - self._last)
        self._last = now
        if words:
            self.say(words)

    def say(self, words: str) -> None:
        """A line that ends with the time that is left."""
        say(f"{words}; {self.remaining()}")

    def finish(self, kind: str, seconds: float) -> None:
        """Notes a unit that took so long."""
        self.left[kind] = max(0, self.left.get(kind, 0) - 1)
        self.seconds[kind].append(seconds)

    def plan(self, kind: str, count: int) -> None:
        """So many more units will be done; fewer, if it is negative."""
        self.left[kind] = max(0, self.left.get(kind, 0) + count)

    def remaining(self) -> str:
        """In words."""
        known = {kind: sum(taken) / len(taken) for kind, taken in self.seconds.items()}
        seconds = sum(count * known.get(kind, 0.0) for kind, count in self.left.items())
        unknown = any(count and kind not in known for kind, count in self.left.items())
        return f"{'at least' if unknown else 'about'} {_words(seconds)} left"


def say(sentence: str) -> None:
    """A line on stderr, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {sentence}", file=sys.stderr, flush=True)


def _words(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
