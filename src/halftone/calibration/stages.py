"""How far a calibration is: piece by piece, each stage by itself, for whoever tells how long it will take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = [
    "INPUTS",
    "LOCKSTEP",
    "PROTECTING",
    "RELAXING",
    "ROUNDING",
    "TRAJECTORY",
    "Advance",
    "CallDone",
    "Follow",
    "Progress",
    "Stages",
]

#: What the stages are called, in the order in which they begin.
PROTECTING, RELAXING, TRAJECTORY = "choosing protected layers", "choosing relaxed steps", "full precision"
INPUTS, ROUNDING, LOCKSTEP = "looking at inputs", "rounding", "calibrating"

Progress = Callable[[int, int], None]  # of (finished calls and units, all of them)
CallDone = Callable[[int, int, bool], None]  # of (finished calls, all calls, whether this one was on disk)


@dataclass(frozen=True)
class Advance:
    """A piece of a stage is done; it began when the piece before it, of whatever stage, was done.

    Attributes:
        stage: one of the names above.
        done, total: pieces of the stage.
        work: of this piece; within a stage time goes by it.
        left: work of the pieces that are still to come.
        replayed: whether the piece was found on disk, so that its time tells nothing of the others'.
    """

    stage: str
    done: int
    total: int
    work: float
    left: float
    replayed: bool


Follow = Callable[[Advance], None]


class Stages:
    """Tells of every piece twice: in detail, and as one count over scans, trajectory, rounding and lockstep.

    Args:
        total: pieces of the choices of protected layers and relaxed steps, denoiser calls of trajectory and lockstep,
            and units to round. What is found out on the way may lower it.
        progress: called with (finished pieces, total).
        follow: called with every `Advance`, before that.
    """

    def __init__(
        self, total: int = 0, progress: Progress = lambda done, total: None, follow: Follow = lambda advance: None
    ):
        self.total, self.progress, self.follow = total, progress, follow
        self.done = 0

    def tell(self, advance: Advance) -> None:
        """One piece more; walks that look at inputs are in no count, since how many there are depends on memory."""
        self.follow(advance)
        if advance.stage != INPUTS:
            self.done += 1
            self.progress(self.done, self.total)

    def calls(self, stage: str) -> CallDone:
        """For a stage of denoiser calls, which are alike."""
        return lambda done, total, replayed: self.tell(Advance(stage, done, total, 1.0, total - done, replayed))
