"""The goals that Halftone has set itself for Stable Diffusion 1.5 at two threads, and whether a run meets them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from benchmarks.cpu_speed.peers.registry import COMMON
from benchmarks.cpu_speed.rounds import key_of

MODEL, THREADS = "sd15", 2
#: Load by others (percent of the processors) above which a machine was not free.
BUSY = 3.0
_PRODUCTS = ("convolution", "linear")


class Verdict(NamedTuple):
    """A goal and what was found; None where it could not be told."""

    goal: str
    found: str
    holds: bool | None


def verdicts(run: Mapping[str, Any]) -> list[Verdict]:
    """Of a run of the model that the goals are about; empty for others."""
    if (run["model"], run["threads"]) != (MODEL, THREADS):
        return []
    return [
        _faster(run, "at least 7 × faster than PyTorch float32", 7.0, ("torch-fp32",)),
        _faster(run, "at least 2.8 × faster than PyTorch bfloat16", 2.8, ("torch-bf16",)),
        _faster(run, "at least 1.2 × faster than OpenVINO + NNCF int8 at its best", 1.2, _nncf(run)),
        _share(run),
        _relaxed(run),
    ]


def fastest(run: Mapping[str, Any], names: Collection[str]) -> str | None:
    """Of the contestants of these names whose output is right, the one that Halftone is ahead of by the least.

    By ratios, which are taken round by round: times of groups that ran one after the other are not comparable.
    """
    found = {
        name: one["halftone_is_faster"]["median"]
        for name, one in run["contestants"].items()
        if name in names and one["agrees"] and one["halftone_is_faster"] is not None
    }
    return min(found, key=found.__getitem__, default=None)


def _nncf(run: Mapping[str, Any]) -> list[str]:
    return [name for name, one in run["contestants"].items() if one["peer"].startswith("nncf-")]


def _faster(run: Mapping[str, Any], goal: str, least: float, names: Collection[str]) -> Verdict:
    name = fastest(run, names)
    if name is None or (doubt := _doubt(run, COMMON)) is None:
        return _not_measured(goal)
    ratio = run["contestants"][name]["halftone_is_faster"]["median"]
    wrong = [other for other in names if other in run["contestants"] and not run["contestants"][other]["agrees"]]
    left_out = f" ({', '.join(wrong)} left out, whose output is wrong)" if wrong else ""
    return _verdict(goal, f"{ratio:.2f} ×{left_out}", ratio >= least, doubt)


def _share(run: Mapping[str, Any]) -> Verdict:
    goal = "at least 50 % of the int8 ceiling over the whole call"
    share = run["contestants"].get(COMMON, {}).get("share_of_int8_ceiling")
    if share is None or (doubt := _doubt(run, COMMON)) is None:
        return _not_measured(goal)
    return _verdict(goal, f"{share:.0%}", share >= 0.5, doubt)


def _relaxed(run: Mapping[str, Any]) -> Verdict:
    """A call whose products take p of its time may take 1 + 1.1 p of it: 2.1 times the products, and nothing else."""
    goal = "a relaxed slot costs at most 2.1 × the integer products and nothing else"
    relaxed, profile = key_of(COMMON, "relaxed"), run["profiles"].get(COMMON)
    ratio = run["contestants"].get(relaxed, {}).get("halftone_is_faster")
    if ratio is None or profile is None or (doubt := _doubt(run, COMMON, relaxed)) is None:
        return _not_measured(goal)
    share = sum(float(profile["groups"].get(group, {}).get("share", 0.0)) for group in _PRODUCTS)
    most = 1 + 1.1 * share
    found = f"{ratio['median']:.2f} × the time of an ordinary slot, of which products take {share:.0%}"
    return _verdict(goal, f"{found}: at most {most:.2f} ×", ratio["median"] <= most, doubt)


def _doubt(run: Mapping[str, Any], *names: str) -> str | None:
    """Why nothing can be said though it was measured; empty if it can, None if it was not measured."""
    found = [run["contestants"].get(name) for name in names]
    if None in found:
        return None
    if not all(one["agrees"] for one in found if one is not None):
        return "Halftone's output is wrong"
    others = run["load"].get("others", {}).get("median_percent", 0.0)
    return "the machine was not free" if others > BUSY else ""


def _verdict(goal: str, found: str, holds: bool, doubt: str) -> Verdict:
    return Verdict(goal, f"{found}, but {doubt}" if doubt else found, None if doubt else holds)


def _not_measured(goal: str) -> Verdict:
    return Verdict(goal, "not measured", None)
