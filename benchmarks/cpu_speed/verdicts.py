"""The goals that Halftone has set itself for Stable Diffusion 1.5 at two threads, and whether a run meets them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from benchmarks.cpu_speed.peers.registry import COMMON
from benchmarks.cpu_speed.rounds import key_of

MODEL, THREADS = "sd15", 2
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
    share = run["contestants"].get(COMMON, {}).get("share_of_int8_ceiling")
    products = _relaxed_ratio(run)
    return [
        _faster(run, "at least 7 × faster than PyTorch float32", 7.0, "torch-fp32"),
        _faster(run, "at least 2.8 × faster than PyTorch bfloat16", 2.8, "torch-bf16"),
        _faster(run, "at least 1.2 × faster than OpenVINO + NNCF int8 at its best", 1.2, "nncf-"),
        _at_least("at least 50 % of the int8 ceiling over the whole call", share, 0.5, "{:.0%}"),
        _at_most("a relaxed slot costs at most 2.1 × the integer products", products, 2.1, "{:.2f} ×"),
    ]


def best_of(run: Mapping[str, Any], prefix: str) -> str | None:
    """The fastest contestant of those whose peer begins so and whose output is right."""
    found = {
        name: one["median_s"]
        for name, one in run["contestants"].items()
        if one["peer"].startswith(prefix) and one["agrees"]
    }
    return min(found, key=found.__getitem__, default=None)


def _faster(run: Mapping[str, Any], goal: str, least: float, prefix: str) -> Verdict:
    name = best_of(run, prefix)
    ratio = run["contestants"][name]["halftone_is_faster"] if name is not None else None
    return _at_least(goal, None if ratio is None else ratio["median"], least, "{:.2f} ×")


def _relaxed_ratio(run: Mapping[str, Any]) -> float | None:
    """Time of the products in a relaxed slot over that in an ordinary one, by the profiles."""
    profiles = run["profiles"]
    ordinary, relaxed = (profiles.get(key_of(COMMON, variant)) for variant in ("", "relaxed"))
    if ordinary is None or relaxed is None:
        return None
    return _products_of(relaxed) / _products_of(ordinary)


def _products_of(profile: Mapping[str, Any]) -> float:
    return sum(float(profile["groups"].get(group, {}).get("seconds", 0.0)) for group in _PRODUCTS)


def _at_least(goal: str, value: float | None, bound: float, form: str) -> Verdict:
    return _not_measured(goal) if value is None else Verdict(goal, form.format(value), value >= bound)


def _at_most(goal: str, value: float | None, bound: float, form: str) -> Verdict:
    return _not_measured(goal) if value is None else Verdict(goal, form.format(value), value <= bound)


def _not_measured(goal: str) -> Verdict:
    return Verdict(goal, "not measured", None)
