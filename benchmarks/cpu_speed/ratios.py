"""Medians and ratios of what was timed in rounds.

A ratio is taken round by round, so that what else the machine did falls on both sides. Two that were never in one
group are compared by way of a third that was in both.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence

#: Seconds of a turn by contestant; of some a turn may be missing.
Round = Mapping[str, float]
Numbers = dict[str, float]


def timing(values: Sequence[float]) -> Numbers:
    """Median, quartiles and least, in seconds."""
    return {**{f"{name}_s": value for name, value in _spread(values).items()}, "least_s": min(values)}


def values_of(groups: Sequence[Sequence[Round]], name: str) -> list[float]:
    """All turns of a contestant."""
    return [times[name] for group in groups for times in group if name in times]


def ratio(groups: Sequence[Sequence[Round]], over: str, under: str, via: str) -> dict[str, float | str] | None:
    """Median and quartiles of one contestant's time over another's.

    Args:
        groups: rounds of each group.
        over, under: contestants.
        via: contestant by way of which they are compared where no group has both.

    Returns:
        None if they cannot be compared; with the key ``via`` if it took that way.
    """
    direct = _by_round(groups, over, under)
    if direct:
        return {**_spread(direct)}
    first, second = _by_round(groups, over, via), _by_round(groups, via, under)
    if not first or not second:
        return None
    return {**_spread([a * b for a, b in itertools.product(first, second)]), "via": via}


def _by_round(groups: Sequence[Sequence[Round]], over: str, under: str) -> list[float]:
    return [times[over] / times[under] for group in groups for times in group if over in times and under in times]


def _spread(values: Sequence[float]) -> Numbers:
    """Median and quartiles, the latter between values that were seen, however few there are."""
    several = values if len(values) > 1 else [*values, *values]
    low, median, high = statistics.quantiles(several, n=4, method="inclusive")
    return {"median": median, "lower_quartile": low, "upper_quartile": high}
