"""What the benchmarks of single calls share: interleaved rounds need how often to call, means and spreads."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from torch import Tensor

Timing = dict[str, float]


def repeats_for(call: Callable[[], Tensor], least: float) -> int:
    """How many calls last ``least`` seconds; the first call, which may prepare something, is not counted."""
    call()
    return max(1, int(least / max(1e-9, seconds(call, 1))))


def seconds(call: Callable[[], Tensor], repeats: int) -> float:
    """Mean time of a call."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def summary(values: list[float]) -> Timing:
    """Median, quartiles and least, in milliseconds."""
    low, median, high = (1e3 * value for value in statistics.quantiles(values, n=4))
    return {"median_ms": median, "lower_quartile_ms": low, "upper_quartile_ms": high, "least_ms": 1e3 * min(values)}


def spread_percent(timing: Timing) -> float:
    """Half the width of the middle half of the rounds, in percent of the median."""
    return 50 * (timing["upper_quartile_ms"] - timing["lower_quartile_ms"]) / timing["median_ms"]
