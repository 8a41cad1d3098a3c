"""Interleaved rounds: in each, every call is timed once, in an order of its own, while all other processes wait."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from benchmarks.cpu_speed.processes import Child, ChildFailed

#: Seconds of waiting before a turn: threads of the process before may still spin.
_PAUSE = 0.3
#: Seconds that a turn lasts at least.
LEAST = 0.3


def key_of(peer: str, variant: str) -> str:
    """The name of a contestant: a peer, or a peer and one of its variants."""
    return f"{peer}: {variant}" if variant else peer


@dataclass
class Contestant:
    """A call in a child that can be timed."""

    key: str
    child: Child
    variant: str
    peak_gib: float = 0.0

    def turn(self, least: float) -> float:
        """Mean seconds of a call."""
        answer = self.child.ask({"turn": self.variant, "least": least})
        self.peak_gib = max(self.peak_gib, answer["peak_gib"])
        return float(answer["seconds"])


@dataclass(frozen=True)
class Load:
    """What the processors did during a turn besides it, as shares of all of them.

    Attributes:
        waiting: the benchmark's own other processes.
        others: everything else.
        stolen: taken by the host of a virtual machine.
    """

    waiting: float
    others: float
    stolen: float


def run_rounds(
    contestants: Sequence[Contestant],
    rounds: int,
    on_turn: Callable[[], None],
    on_round: Callable[[int], None],
    failed: dict[str, str],
    least: float = LEAST,
) -> tuple[list[dict[str, float]], list[Load]]:
    """Times everyone in each round.

    Args:
        contestants: all of one group.
        rounds: how many.
        on_turn: called after each turn.
        on_round: called after each round with its number, from 1.
        failed: gets those that fail on the way, with the reason; they take no part from then on.
        least: seconds that a turn lasts at least.

    Returns:
        Seconds of each round by contestant, and the load during each turn.
    """
    times: list[dict[str, float]] = []
    loads: list[Load] = []
    children = list({id(one.child): one.child for one in contestants}.values())
    for number in range(rounds):
        order = [one for one in contestants if one.key not in failed]
        random.Random(number).shuffle(order)
        taken: dict[str, float] = {}
        for one in order:
            try:
                with _Watch(one.child, children, loads):
                    taken[one.key] = one.turn(least)
            except ChildFailed as error:
                failed.update({other.key: str(error) for other in contestants if other.child is one.child})
            on_turn()
        times.append(taken)
        on_round(number + 1)
    return times, loads


class _Watch:
    """Notes the load during a turn."""

    def __init__(self, active: Child, children: Sequence[Child], loads: list[Load]) -> None:
        self.active, self.children, self.loads = active, children, loads

    def __enter__(self) -> None:
        time.sleep(_PAUSE)
        self.before = self._look()

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.loads.append(load_between(self.before, self._look(), os.cpu_count() or 1))

    def _look(self) -> Mapping[str, float]:
        waiting = sum(child.cpu_seconds() for child in self.children if child is not self.active)
        machine = psutil.cpu_times()
        stolen = getattr(machine, "steal", 0.0)
        idle = machine.idle + getattr(machine, "iowait", 0.0)
        return {
            "wall": time.perf_counter(),
            "active": self.active.cpu_seconds(),
            "waiting": waiting,
            "stolen": stolen,
            "busy": sum(machine) - idle - stolen - getattr(machine, "guest", 0.0) - getattr(machine, "guest_nice", 0.0),
        }


def load_between(before: Mapping[str, float], after: Mapping[str, float], processors: int) -> Load:
    """What was done between two looks at the processor times."""
    spent = {name: after[name] - before[name] for name in before}
    all_of = max(1e-9, spent["wall"] * processors)
    others = spent["busy"] - spent["active"] - spent["waiting"]
    return Load(
        waiting=max(0.0, spent["waiting"] / all_of),
        others=max(0.0, others / all_of),
        stolen=max(0.0, spent["stolen"] / all_of),
    )


def conditions(loads: Sequence[Load]) -> dict[str, dict[str, float]]:
    """Median and worst load over all turns, in percent of all processors."""
    if not loads:
        return {}
    return {
        name: {
            "median_percent": 100 * statistics.median(getattr(load, name) for load in loads),
            "worst_percent": 100 * max(getattr(load, name) for load in loads),
        }
        for name in ("waiting", "others", "stolen")
    }
