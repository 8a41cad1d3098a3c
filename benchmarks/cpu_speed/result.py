"""What the measurements come to: times, ratios, shares of the ceilings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.cpu_speed.peers import Peer
from benchmarks.cpu_speed.peers.registry import BASE, CEILINGS, COMMON
from benchmarks.cpu_speed.ratios import Round, ratio, timing, values_of

#: Relative difference from full precision above which a result counts as wrong. (8-bit integers are below 0.1.)
WRONG_ABOVE = 0.25


@dataclass
class Measured:
    """A contestant that ran.

    Attributes:
        peer, variant: which.
        facts: what its child told of its first calls.
        ready: what its child told of itself.
        peak_gib: of its process.
    """

    peer: Peer
    variant: str
    facts: Mapping[str, Any]
    ready: Mapping[str, Any]
    peak_gib: float = 0.0


def ceilings_of(measured: Mapping[str, Measured], groups: Sequence[Sequence[Round]]) -> dict[str, float]:
    """Operations a second (in 10⁹) of large products by arithmetic; the fastest of several ways counts."""
    found: dict[str, float] = {}
    for key, one in measured.items():
        values = values_of(groups, key) if one.peer.name == CEILINGS else []
        if values:
            arithmetic = one.variant.split()[0]
            speed = one.facts["operations"] / timing(values)["median_s"] / 1e9
            found[arithmetic] = max(speed, found.get(arithmetic, 0.0))
    return found


def contestants_result(
    measured: Mapping[str, Measured],
    groups: Sequence[Sequence[Round]],
    operations: int,
    ceilings: Mapping[str, float],
) -> dict[str, dict[str, Any]]:
    """Everything that is known of each contestant but the ceilings, JSON-ready.

    Args:
        operations: multiplications and additions of a call; 0 if they are not counted.
    """
    found = {}
    for key, one in measured.items():
        values = values_of(groups, key)
        if values and one.peer.name != CEILINGS:
            found[key] = {
                **_facts(one),
                **timing(values),
                "rounds_s": [[times.get(key) for times in group] for group in groups if any(key in t for t in group)],
                "speedup_over_fp32": ratio(groups, BASE, key, COMMON),
                "halftone_is_faster": ratio(groups, key, COMMON, COMMON),
                **_shares(one.peer.arithmetic, operations / timing(values)["median_s"] / 1e9, ceilings),
            }
    return found


def _facts(one: Measured) -> dict[str, Any]:
    error = one.facts["error"]
    return {
        "peer": one.peer.name,
        "words": ", ".join(filter(None, (one.peer.words, one.variant))),
        "arithmetic": one.peer.arithmetic,
        "error": error,
        "agrees": error is not None and math.isfinite(error) and error <= WRONG_ABOVE,
        "first_call_s": one.facts["first_s"],
        # the other variants begin in a process that has started already
        "start_s": None if one.variant else one.ready["start_s"],
        "loaded_gib": one.ready["loaded_gib"],
        "peak_gib": max(one.peak_gib, one.ready["peak_gib"]),
    }


def _shares(arithmetic: str, speed: float, ceilings: Mapping[str, float]) -> dict[str, float | None]:
    """Attained operations a second, and as shares of what large products attain."""
    if speed == 0:
        return {}
    own, int8 = ceilings.get(arithmetic), ceilings.get("int8")
    return {
        "gops": speed,
        "share_of_own_ceiling": speed / own if own else None,
        "share_of_int8_ceiling": speed / int8 if int8 else None,
    }
