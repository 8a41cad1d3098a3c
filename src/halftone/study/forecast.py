"""How much of a study is left while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from halftone.qdiffbench.request import Progress, ProgressBar
from halftone.quantities import time_text
from halftone.study.estimate import SHARED, Work

__all__ = ["Forecast"]

_SECONDS_BETWEEN_LINES = 60.0


class Forecast:
    """Tells from time to time how much of a study is left; estimates give way to what works of a kind really took.

    Args:
        works: what is to be done.
        progress: makes a bar with a title.
        announce: called with a line.
        world: processes that share calibrating and painting.
    """

    def __init__(
        self,
        works: Sequence[Work],
        progress: ProgressBar,
        announce: Callable[[str], None],
        world: int = 1,
    ) -> None:
        self._works = {(work.table, work.label): work for work in works}
        self._models = {work.label: work for work in works if work.kind == "calibrating"}
        self._progress, self._announce, self._world = progress, announce, world
        self._left = list(works)
        self._took: dict[str, tuple[float, float]] = {}  # kind -> seconds that it took, seconds that were expected
        self._told = -_SECONDS_BETWEEN_LINES

    def left(self) -> float:
        """Seconds that are left."""
        return sum(self._expected(work) for work in self._left)

    def bar(self, table: str) -> ProgressBar:
        """A maker of bars for the benchmark of a table."""

        @contextmanager
        def make(label: str) -> Iterator[Progress]:
            self.tell()
            began, seen = time.monotonic(), dict[str, int]()
            with self._progress(label) as advance:

                def noted(done: int, total: int) -> None:
                    seen.setdefault("first", done)
                    seen["total"] = total
                    advance(done, total)

                yield noted
            work = self._works.get((table, label))
            if work is not None:
                self._finish(work, time.monotonic() - began, _share_done_now(seen))

        return make

    @contextmanager
    def calibrating(self, name: str) -> Iterator[None]:
        """Within it a model is made."""
        self.tell()
        began = time.monotonic()
        yield
        if name in self._models:
            self._finish(self._models[name], time.monotonic() - began, 1.0)

    def tell(self) -> None:
        """Says how much is left, unless it was said just now."""
        now = time.monotonic()
        if self._left and now - self._told >= _SECONDS_BETWEEN_LINES:
            self._told = now
            self._announce(f"The whole study: about {time_text(self.left())} left.")

    def _finish(self, work: Work, seconds: float, share: float) -> None:
        """A work is done, of which a share was done now and the rest found on disk."""
        if work in self._left:
            self._left.remove(work)
        took, expected = self._took.get(work.kind, (0.0, 0.0))
        self._took[work.kind] = (took + seconds, expected + share * work.seconds)

    def _expected(self, work: Work) -> float:
        took, expected = self._took.get(work.kind, (0.0, 0.0))
        ratio = took / expected if expected > 0 else 1.0
        return work.seconds * ratio / (self._world if work.kind in SHARED else 1)


def _share_done_now(seen: Mapping[str, int]) -> float:
    """From the first and the last report of a bar: a first one that is late found what came before on disk."""
    total = seen.get("total", 0)
    if total <= 0:
        return 0.0
    first = seen["first"]
    return 0.0 if first >= total > 1 else (total - first + 1) / total
