"""What the study's numbers say: the order of the noisy models in every metric, and which criteria hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import comb
from typing import Any

from halftone.qdiffbench.fidelity import PSNR_CAP_DB
from halftone.qdiffbench.results import Results
from halftone.report.metrics import metrics_of

MOST_FID_TO_ITSELF = 1e-3
MOST_MEMORY = 3e9  # bytes
SIGNIFICANT = 0.05
WANTED_SHARE = 0.95

Part = dict[str, Any]


def ranks(results: Results) -> dict[str, Part]:
    """By set and metric: values with intervals in the order of the candidates, and whether they get worse that way."""
    found: dict[str, Part] = {}
    for name in results.settings.prompt_sets:
        sets = [one.sets[name] for one in results.candidates]
        p_values = {(one.metric, one.a, one.b): one.p_value for one in results.comparisons if one.set == name}
        found[name] = {}
        for metric in metrics_of(sets):
            readings = [reading for one in sets if (reading := metric.read(one)) is not None]
            worse = [a.value != b.value and (a.value > b.value) == metric.higher for a, b in pairwise(readings)]
            names = pairwise(one.name for one in results.candidates)
            wrong = [p_values.get((metric.name, a, b)) for (a, b), fits in zip(names, worse, strict=True) if not fits]
            found[name][metric.name] = {
                "heading": metric.heading,
                "values": [reading.value for reading in readings],
                "intervals": [[reading.low, reading.high] for reading in readings],
                "order": _order(wrong),
            }
    return found


def _order(p_values: Sequence[float | None]) -> str:
    """In words, from the p-values of those neighbours that are in the wrong order (None: not compared)."""
    if not p_values:
        return "right"
    return "wrong" if any(p is None or p < SIGNIFICANT for p in p_values) else "not distinguished"


def criteria(parts: Mapping[str, Part], kills: int) -> list[Part]:
    """What the benchmark must do, whether it does, and the number that says so.

    Args:
        parts: by name.
        kills: that were asked for.
    """
    first, one = parts["itself"], parts["undisturbed"]
    distance, memory = max(first["fid_to_fp"].values()), max(first["peak_memory_bytes"], one["peak_memory_bytes"])
    return [
        _criterion(
            "FID of full precision to itself",
            f"at most {MOST_FID_TO_ITSELF}",
            f"{distance:.2g}",
            distance <= MOST_FID_TO_ITSELF,
        ),
        _criterion(
            "PSNR of full precision to itself",
            f"the cap, {PSNR_CAP_DB:g} dB, in every pair",
            f"{min(first['worst_psnr'].values()):g} dB in the worst pair",
            min(first["worst_psnr"].values()) >= PSNR_CAP_DB,
        ),
        _ranking_criterion(parts["ranking"]),
        _coverage_criterion(parts["coverage"]),
        _criterion("peak memory of a comparison", "under 3 GB", f"{memory / 1e9:.2f} GB", memory < MOST_MEMORY),
        _criterion(
            "kills",
            f"{kills}; afterwards the same results, and no image painted twice",
            f"{first['kills']}; results {'the same' if first['same_results_after_kills'] else 'others'},"
            f" {first['images_recorded_twice']} images painted twice",
            first["kills"] >= kills and first["same_results_after_kills"] and not first["images_recorded_twice"],
        ),
    ]


def _ranking_criterion(part: Part) -> Part:
    others = [
        f"{metric} on {name}: {one['order']}"
        for name, metrics in part["sets"].items()
        for metric, one in metrics.items()
        if one["order"] != "right"
    ]
    return _criterion(
        "growing noise", "every metric gets worse with it", "; ".join(others) or "every one does", not others
    )


def _coverage_criterion(part: Part) -> Part:
    """About 95 %: no metric's intervals hold significantly seldomer; those that hold oftener are named.

    Significantly: at a level divided by the number of metrics and sides, or one of ten metrics would seem wrong in
    every third study by chance alone.
    """
    level = SIGNIFICANT / (2 * len(part["metrics"]))
    counts = {name: (one["held"], one["trials"]) for name, one in part["metrics"].items()}
    seldom = [f"{name} seldomer" for name, (held, n) in counts.items() if _chance_of_at_most(held, n) < level]
    oftener = [f"{name} oftener" for name, (held, n) in counts.items() if 1 - _chance_of_at_most(held - 1, n) < level]
    return _criterion(
        "95 % intervals",
        "hold the large-sample value in 95 % of the samples, or oftener",
        "; ".join([*seldom, *oftener]) or "every one does",
        not seldom,
    )


def _chance_of_at_most(held: int, n: int) -> float:
    """The probability that so many of n intervals hold, or fewer, if each does with that of `WANTED_SHARE`."""
    return sum(comb(n, k) * WANTED_SHARE**k * (1 - WANTED_SHARE) ** (n - k) for k in range(held + 1))


def _criterion(what: str, wanted: str, found: str, holds: bool) -> Part:
    return {"criterion": what, "wanted": wanted, "found": found, "holds": holds}
