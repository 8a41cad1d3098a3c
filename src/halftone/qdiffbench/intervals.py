"""A mean is a claim; its interval says how much of a claim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from halftone.errors import InputError

_BLOCK_VALUES = 2_000_000  # resampled values held at once, which bounds memory at about 32 MB


@dataclass(frozen=True)
class Estimate:
    """A mean and its confidence interval, all in the unit of the values.

    Attributes:
        mean: the sample mean.
        low, high: ends of the interval.
        n: how many values it rests on.
    """

    mean: float
    low: float
    high: float
    n: int


def bootstrap_mean(
    values: Sequence[float] | npt.NDArray[np.floating],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Mean with a percentile-bootstrap interval (Efron & Tibshirani, An Introduction to the Bootstrap, 13.3).

    The values must be independent draws (one per prompt, not one per pixel). With fewer than about 20
    of them the percentile interval is somewhat too narrow; a single value gives an interval of width zero.

    Args:
        values: (n,) finite numbers, n >= 1.
        confidence: coverage of the interval, between 0 and 1.
        resamples: how many bootstrap samples, at least 1.
        seed: of the resampling; the same arguments give the same interval.

    Raises:
        InputError: no values, a value that is not finite, or an argument out of its range.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0:
        raise InputError(f"bootstrap_mean needs a flat, non-empty list of values, got shape {sample.shape}")
    if not np.isfinite(sample).all():
        raise InputError("bootstrap_mean needs finite values; cap or drop NaN and infinity first")
    if not 0.0 < confidence < 1.0 or resamples < 1:
        raise InputError(f"confidence must lie in (0, 1) and resamples be >= 1: {confidence}, {resamples}")
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(_resampled_means(sample, resamples, seed), [tail, 1.0 - tail])
    return Estimate(float(sample.mean()), float(low), float(high), int(sample.size))


def _resampled_means(sample: npt.NDArray[np.float64], resamples: int, seed: int) -> npt.NDArray[np.float64]:
    """Means of ``resamples`` samples drawn with replacement: (n,) -> (resamples,)."""
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK_VALUES // sample.size)
    means = []
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        picks = generator.integers(0, sample.size, size=(count, sample.size))
        means.append(sample[picks].mean(axis=1))
    return np.concatenate(means)
