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


@dataclass(frozen=True)
class Summary(Estimate):
    """What is reported of a value measured on every prompt, all in the unit of the values.

    Attributes:
        median: half of the prompts are better.
        worst_decile: nine tenths of the prompts are better (interpolated between neighbours).
    """

    median: float
    worst_decile: float


def summarize(
    values: Sequence[float] | npt.NDArray[np.floating],
    *,
    higher_is_better: bool,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Summary:
    """Mean with its interval, median and worst decile; arguments and errors are those of :func:`bootstrap_mean`.

    Args:
        higher_is_better: which end the worst decile is at; see ``directions.higher_is_better``.
    """
    estimate = bootstrap_mean(values, confidence, resamples, seed)
    median, worst = np.quantile(np.asarray(values, dtype=np.float64), [0.5, 0.1 if higher_is_better else 0.9])
    return Summary(estimate.mean, estimate.low, estimate.high, estimate.n, float(median), float(worst))


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
    sample = checked_sample(values)
    low, high = percentile_interval(resampled_means(sample, resamples, seed), confidence)
    return Estimate(float(sample.mean()), low, high, int(sample.size))


def checked_sample(values: Sequence[float] | npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """The values as (n,) float64.

    Raises:
        InputError: none, not flat, or a value that is not finite.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0:
        raise InputError(f"An interval needs a flat, non-empty list of values, got shape {sample.shape}.")
    if not np.isfinite(sample).all():
        raise InputError("An interval needs finite values; cap or drop NaN and infinity first.")
    return sample


def percentile_interval(resampled: npt.NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """The middle part of the resampled statistics that holds ``confidence`` of them.

    Raises:
        InputError: the confidence is not between 0 and 1.
    """
    if not 0.0 < confidence < 1.0:
        raise InputError(f"The confidence must lie between 0 and 1, got {confidence}.")
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(resampled, [tail, 1.0 - tail])
    return float(low), float(high)


def resampled_means(sample: npt.NDArray[np.float64], resamples: int, seed: int) -> npt.NDArray[np.float64]:
    """Means of ``resamples`` samples drawn with replacement: (n,) -> (resamples,).

    Raises:
        InputError: ``resamples`` is below 1.
    """
    if resamples < 1:
        raise InputError(f"At least one bootstrap sample is needed, got resamples = {resamples}.")
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK_VALUES // sample.size)
    means = []
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        picks = generator.integers(0, sample.size, size=(count, sample.size))
        means.append(sample[picks].mean(axis=1))
    return np.concatenate(means)
