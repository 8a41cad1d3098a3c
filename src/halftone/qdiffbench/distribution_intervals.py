"""Intervals for distances between sets of images: the prompts are drawn anew, the features stay on disk.

A prompt is drawn together with its reference image and its images by both candidates, so that the interval of a
difference knows that they share prompt and noise. Features may be memory maps: they are read in blocks of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from halftone.errors import InputError
from halftone.qdiffbench.differences import Difference, two_sided_p
from halftone.qdiffbench.intervals import Estimate, percentile_interval
from halftone.qdiffbench.kernel_distance import BLOCK, check_features, kernel
from halftone.qdiffbench.moments import Moments, frechet_distance

FloatArray = npt.NDArray[np.float64]
Features = npt.NDArray[np.floating]
Progress = Callable[[int, int], None]

DRAWN_AT_ONCE = 50  # resamples, whose counts take 8 bytes a row while they are drawn


def _silent(done: int, total: int) -> None:
    """No progress is shown."""


@dataclass(frozen=True)
class DistanceEstimate(Estimate):
    """A distance whose plain value depends on the number of images, and where it would end with many.

    ``mean`` is the plain value, comparable only with values from as many images. ``low`` and ``high`` are for the
    large-sample value, so they may lie below ``mean``.

    Attributes:
        unbiased: the plain value less its estimated bias, in the middle of the interval; not below 0.
    """

    unbiased: float


@dataclass(frozen=True)
class SampledDistance:
    """A distance and what it would be for other samples of the prompts.

    Two candidates' with the same seed and number of prompts were drawn with the same prompts, so that samples may be
    subtracted one by one: what makes a prompt easy or hard cancels.

    Attributes:
        plain: the distance of the sets as they are.
        estimate: of its large-sample value.
        samples: (resamples,) of the latter.
        n: prompts.
    """

    plain: float
    estimate: float
    samples: FloatArray
    n: int


def sample_frechet(
    candidate: Features, reference: Features, *, resamples: int = 200, seed: int = 0, progress: Progress = _silent
) -> SampledDistance:
    """What `frechet_interval` rests on; its arguments, errors, cost and limits."""
    _check_pair(candidate, reference)
    value = frechet_distance(*_moments((candidate, reference)))
    truth = 2.0 * value - _half_samples((candidate, reference), frechet_distance, resamples, seed, progress)
    return SampledDistance(value, float(truth.mean()), truth, len(reference))


def sample_kid(candidate: Features, reference: Features, *, resamples: int = 1000, seed: int = 0) -> SampledDistance:
    """What `kid_interval` rests on; its arguments, errors, cost and limits."""
    check_features(candidate, reference, paired=True)

    def products(i: slice, j: slice) -> FloatArray:
        return _pair_products(candidate, reference, i, j)

    value, resampled = _u_statistic_bootstrap(products, len(reference), resamples, seed)
    return SampledDistance(value, value, resampled, len(reference))


def frechet_estimate(sampled: SampledDistance, confidence: float = 0.95) -> DistanceEstimate:
    """The interval of a Fréchet distance, which is not below 0."""
    low, high = percentile_interval(sampled.samples, confidence)
    unbiased = max(0.0, sampled.estimate)
    return DistanceEstimate(sampled.plain, max(0.0, low), max(0.0, high), sampled.n, unbiased)


def kid_estimate(sampled: SampledDistance, confidence: float = 0.95) -> Estimate:
    """The interval of a kernel distance."""
    low, high = percentile_interval(sampled.samples, confidence)
    return Estimate(sampled.plain, low, high, sampled.n)


def distance_difference(a: SampledDistance, b: SampledDistance, confidence: float = 0.95) -> Difference:
    """Distance of A minus that of B, of the same kind, prompts and seed, in their large-sample values.

    The smallest p-value is never below 2^(1 - n), which is what n coin flips can show at best.
    """
    samples = a.samples - b.samples
    low, high = percentile_interval(samples, confidence)
    p_value = min(1.0, max(two_sided_p(samples), 2.0 ** (1 - a.n)))
    return Difference(a.estimate - b.estimate, low, high, p_value, a.n)


def frechet_interval(
    candidate: Features,
    reference: Features,
    *,
    confidence: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
    progress: Progress = _silent,
) -> DistanceEstimate:
    """Fréchet distance of a candidate to the reference, with an interval for its large-sample value.

    Random half-samples without replacement (Efron, The Jackknife, the Bootstrap and Other Resampling Plans, 1982,
    section 8.3; Politis, Romano & Wolf, Subsampling, 1999): a half-sample's deviation from the whole sample has
    the variance that the whole sample's has from the truth, and a bias of c / n likewise. So the half-samples,
    mirrored at the plain value, estimate the truth with the bias taken off. Drawing with replacement would not
    do: rows drawn twice lower the rank of the covariance.

    It holds where half the images are well more than the features and the distance is not zero (where a squared
    distance has no normal limit; the interval is then merely near zero).

    Cost: one distance per resample: 0.03 s for 2,048 images of 256 features on one core, but some 5 s at 2,048
    features. Memory: six (d, d) matrices of float64 (3 MB; 200 MB) and a block of rows.

    Args:
        candidate, reference: (n, d) features; row i of both is the same prompt and noise. n >= 4.
        progress: called with (resamples done, resamples).

    Raises:
        InputError: different shapes, fewer than four rows, a value not finite, or an argument out of its range.
    """
    sampled = sample_frechet(candidate, reference, resamples=resamples, seed=seed, progress=progress)
    return frechet_estimate(sampled, confidence)


def frechet_difference(
    a: Features,
    b: Features,
    reference: Features,
    *,
    confidence: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
    progress: Progress = _silent,
) -> Difference:
    """Fréchet distance of A minus that of B, both to the reference, without the bias of each.

    Half-samples of the prompts, as in :func:`frechet_interval`; its arguments, errors and limits hold here too,
    and it takes twice the time. The difference of the two plain values is *not* what is returned: their biases
    do not cancel, since the farther candidate has the larger one.
    """
    first = sample_frechet(a, reference, resamples=resamples, seed=seed, progress=progress)
    second = sample_frechet(b, reference, resamples=resamples, seed=seed, progress=progress)
    return distance_difference(first, second, confidence)


def kid_interval(
    candidate: Features, reference: Features, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Paired kernel distance of a candidate to the reference with a bootstrap interval.

    The weighted U-statistic leaves out pairs of a row with itself, also where a row was drawn twice (they would bias
    it). It holds where the sets differ; for equal distributions the statistic is degenerate, and the interval
    only says that zero is not excluded.

    Cost: the kernel matrices once, and n² · resamples products: about 1 s for 2,048 images of 256 features.
    Memory: n · resamples counts of 2 bytes (4 MB) and blocks of rows; the features may be memory maps.

    Raises:
        InputError: different shapes, fewer than two rows, a value not finite, or an argument out of its range.
    """
    return kid_estimate(sample_kid(candidate, reference, resamples=resamples, seed=seed), confidence)


def kid_difference(
    a: Features,
    b: Features,
    reference: Features,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Difference:
    """Paired kernel distance of A minus that of B, both to the reference; otherwise as :func:`kid_interval`."""
    first = sample_kid(a, reference, resamples=resamples, seed=seed)
    second = sample_kid(b, reference, resamples=resamples, seed=seed)
    return distance_difference(first, second, confidence)


def _check_pair(candidate: Features, reference: Features) -> None:
    check_features(candidate, reference, paired=True)
    if len(reference) < 4:
        raise InputError(f"An interval of the Fréchet distance needs at least four images, got {len(reference)}.")


def _moments(sets: tuple[Features, ...], rows: npt.NDArray[np.int64] | None = None) -> list[Moments]:
    """Moments of each set, of all its rows or of those chosen."""
    found = []
    for features in sets:
        moments = Moments(features.shape[1])
        for start in range(0, len(features) if rows is None else len(rows), BLOCK):
            block = slice(start, start + BLOCK)
            moments.update(features[block] if rows is None else features[rows[block]])
        found.append(moments)
    return found


def _half_samples(
    sets: tuple[Features, ...], statistic: Callable[..., float], resamples: int, seed: int, progress: Progress
) -> FloatArray:
    """The statistic of the sets' moments over random halves of the rows: (resamples,)."""
    _check_resamples(resamples)
    generator = np.random.default_rng(seed)
    n = len(sets[0])
    values = np.empty(resamples)
    for index in range(resamples):
        # sorted, so that a memory map is read from front to back
        rows = np.sort(generator.permutation(n)[: n // 2])
        values[index] = statistic(*_moments(sets, rows))
        progress(index + 1, resamples)
    return values


def _pair_products(candidate: Features, reference: Features, i: slice, j: slice) -> FloatArray:
    """Gretton et al. (JMLR 2012), lemma 6: h of pairs of prompts, (rows of i, rows of j)."""
    x, other_x = (np.asarray(candidate[rows], dtype=np.float64) for rows in (i, j))
    y, other_y = (np.asarray(reference[rows], dtype=np.float64) for rows in (i, j))
    return kernel(x, other_x) + kernel(y, other_y) - kernel(x, other_y) - kernel(y, other_x)


def _u_statistic_bootstrap(
    products: Callable[[slice, slice], FloatArray], n: int, resamples: int, seed: int
) -> tuple[float, FloatArray]:
    """The mean of h over pairs of different rows, and the same under ``resamples`` multinomial weights."""
    _check_resamples(resamples)
    counts = _drawn_counts(n, resamples, seed)
    sums, pairs = np.zeros(resamples + 1), np.zeros(resamples + 1)
    for start_i in range(0, n, BLOCK):
        i = slice(start_i, start_i + BLOCK)
        weights = counts[i].astype(np.float64)
        pairs -= (weights**2).sum(axis=0)
        for start_j in range(0, n, BLOCK):
            j = slice(start_j, start_j + BLOCK)
            block = products(i, j)
            if start_i == start_j:
                np.fill_diagonal(block, 0.0)
            sums += np.einsum("ir,ir->r", weights, block @ counts[j].astype(np.float64))
    pairs += float(n) ** 2
    # n draws of one and the same row have no pair; of two or three rows that can happen
    values = np.divide(sums, pairs, out=np.zeros_like(sums), where=pairs > 0.0)
    return float(values[0]), values[1:]


def _drawn_counts(n: int, resamples: int, seed: int) -> npt.NDArray[np.uint16]:
    """How often each row is in each resample: (n, resamples + 1); column 0 is the sample as it is, so that the estimate
    and its resamples are one computation."""
    generator = np.random.default_rng(seed)
    counts = np.ones((n, resamples + 1), np.uint16)
    for start in range(0, resamples, DRAWN_AT_ONCE):
        drawn = min(DRAWN_AT_ONCE, resamples - start)
        part = generator.multinomial(n, np.full(n, 1.0 / n), size=drawn)
        counts[:, 1 + start : 1 + start + drawn] = part.T
    return counts


def _check_resamples(resamples: int) -> None:
    if resamples < 1:
        raise InputError(f"At least one bootstrap sample is needed, got resamples = {resamples}.")
