"""Is A really better than B? Differences on the same prompts, with interval, p-value and verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from halftone.errors import InputError
from halftone.qdiffbench.intervals import checked_sample, percentile_interval, resampled_means

SIGNIFICANT = (0.001, 0.01, 0.05)
"""Levels a verdict quotes, the strictest first; above the last one nothing is claimed."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """A minus B of one metric, in the metric's unit.

    Attributes:
        difference: the estimate.
        low, high: its confidence interval.
        p_value: two-sided, of the hypothesis that there is no difference.
        n: how many prompts it rests on.
    """

    difference: float
    low: float
    high: float
    p_value: float
    n: int

    def verdict(self, a: str, b: str, *, higher_is_better: bool) -> str:
        """One sentence, such as "A better than B, p < 0.01" or "A and B: not distinguishable, p = 0.31".

        Args:
            a, b: names of the two candidates.
            higher_is_better: the metric's direction; see ``directions.higher_is_better``.
        """
        level = next((level for level in SIGNIFICANT if self.p_value < level), None)
        if level is None or self.difference == 0.0:
            return f"{a} and {b}: not distinguishable, p = {self.p_value:.2f}"
        winner, loser = (a, b) if (self.difference > 0.0) == higher_is_better else (b, a)
        return f"{winner} better than {loser}, p < {level:g}"


def paired_difference(
    a: Sequence[float] | npt.NDArray[np.floating],
    b: Sequence[float] | npt.NDArray[np.floating],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Mean of A - B over prompts, by a bootstrap of the prompts (Efron & Tibshirani, 1993, chapters 13 and 15).

    Row i of both is the same prompt and noise, so that what makes a prompt easy or hard cancels. The smallest
    p-value is 2 / (resamples + 1), and never below 2^(1 - n), which is what n coin flips can show at best.

    Args:
        a, b: (n,) finite numbers; memory is about 32 MB besides.

    Raises:
        InputError: different lengths, no values, a value not finite, or an argument out of its range.
    """
    first, second = checked_sample(a), checked_sample(b)
    if len(first) != len(second):
        raise InputError(f"Two candidates must have the same prompts, and they have {len(first)} and {len(second)}.")
    differences = first - second
    resampled = resampled_means(differences, resamples, seed)
    low, high = percentile_interval(resampled, confidence)
    p_value = max(two_sided_p(resampled), 2.0 ** (1 - len(differences)))
    return Difference(float(differences.mean()), low, high, min(1.0, p_value), len(differences))


def two_sided_p(resampled: FloatArray) -> float:
    """Twice the share of resampled differences beyond zero: the level at which the percentile interval touches zero.

    The observed difference counts as one more sample (Davison & Hinkley, 1997, equation 4.11), so it is never 0.
    """
    below = int(np.sum(resampled <= 0.0))
    above = int(np.sum(resampled >= 0.0))
    return min(1.0, 2.0 * (min(below, above) + 1) / (len(resampled) + 1))
