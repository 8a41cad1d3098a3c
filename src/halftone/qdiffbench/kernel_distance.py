"""Kernel distance (KID): the squared maximum mean discrepancy of two sets of features under a cubic kernel.

Unlike the Fréchet distance it has no bias that depends on the number of images. The kernel matrix is walked in
blocks; the features may be memory-mapped files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from halftone.errors import InputError

BLOCK = 512
"""Rows of the kernel matrix at a side of a block: 2 MB of float64."""

FloatArray = npt.NDArray[np.float64]
Features = npt.NDArray[np.floating]


@dataclass(frozen=True)
class SubsetEstimate:
    """Mean and standard deviation of the kernel distance over random subsets; both may be negative or zero.

    Attributes:
        mean, std: over the subsets; the deviation is that of one subset's value, not of the mean.
        subsets, size: how many subsets of how many images.
    """

    mean: float
    std: float
    subsets: int
    size: int


def kernel(x: FloatArray, y: FloatArray) -> FloatArray:
    """(x·y / d + 1)³ for all pairs: Binkowski et al., "Demystifying MMD GANs" (ICLR 2018), equation 3.

    Args:
        x, y: (m, d) and (n, d).

    Returns:
        (m, n).
    """
    return np.asarray((x @ y.T / x.shape[1] + 1.0) ** 3)


def kid(x: Features, y: Features, *, paired: bool, block: int = BLOCK) -> float:
    """Unbiased squared MMD: Gretton et al., "A Kernel Two-Sample Test" (JMLR 2012), equation 3 and lemma 6.

    Both terms within a set leave out every image's product with itself. What is unbiased between the sets depends
    on how they were drawn:

    * ``paired=False``, the sets are independent: the mean over all m·n products. This is what other programs call
      KID. Of a set with itself it is *negative*, since the set is then anything but independent.
    * ``paired=True``, row i of both sets is the same prompt and noise: the mean over the n·(n - 1) products of
      different rows, since the one of a pair with itself says how alike the two images are, not the two
      distributions. Of a set with itself it is zero (to rounding).

    Args:
        x, y: (m, d) and (n, d) features, computed in float64. They are only sliced, so memory maps will do.
        paired: see above; needs m = n.
        block: rows at a time; memory is about 3 · block² · 8 bytes beside two blocks of features.

    Returns:
        A number without unit, around zero for equal distributions; it may be negative.

    Raises:
        InputError: fewer than two rows, different dimensions, unequal numbers of a pair, or a value not finite.
    """
    check_features(x, y, paired=paired)
    m, n = len(x), len(y)
    between = _sum(x, y, block, skip_same_row=paired) / (m * (n - 1 if paired else n))
    within_x = _sum(x, x, block, skip_same_row=True) / (m * (m - 1))
    within_y = _sum(y, y, block, skip_same_row=True) / (n * (n - 1))
    return within_x + within_y - 2.0 * between


def kid_over_subsets(
    x: Features, y: Features, *, paired: bool, subsets: int = 100, size: int = 1000, seed: int = 0
) -> SubsetEstimate:
    """Mean and deviation of :func:`kid` over random subsets, as KID is usually printed.

    Each subset is drawn without replacement; for pairs both sides take the same rows. The deviation describes
    subsets of this size and is no confidence interval of the mean.

    Raises:
        InputError: as :func:`kid`, or a subset would be larger than a set or smaller than two.
    """
    check_features(x, y, paired=paired)
    if subsets < 1 or not 2 <= size <= min(len(x), len(y)):
        raise InputError(
            f"Subsets must hold from 2 to {min(len(x), len(y))} images and be at least one, got {subsets} of {size}."
        )
    generator = np.random.default_rng(seed)
    values = np.empty(subsets)
    for index in range(subsets):
        rows_x = generator.permutation(len(x))[:size]
        rows_y = rows_x if paired else generator.permutation(len(y))[:size]
        values[index] = kid(x[rows_x], y[rows_y], paired=paired)
    return SubsetEstimate(float(values.mean()), float(values.std()), subsets, size)


def check_features(x: Features, y: Features, *, paired: bool) -> None:
    """Refuses sets that have no kernel distance.

    Raises:
        InputError: fewer than two rows, different dimensions, unequal numbers of a pair, or a value not finite.
    """
    for features in (x, y):
        if features.ndim != 2 or features.shape[1] < 1:
            raise InputError(f"Features must have the shape (n, d), got {features.shape}.")
        if len(features) < 2:
            raise InputError(f"A kernel distance needs at least two images in each set, and one has {len(features)}.")
        if not all(np.isfinite(features[i : i + BLOCK]).all() for i in range(0, len(features), BLOCK)):
            raise InputError("Features must be finite; a set of them holds NaN or infinity.")
    if x.shape[1] != y.shape[1]:
        raise InputError(f"Features of {x.shape[1]} and of {y.shape[1]} dimensions cannot be compared.")
    if paired and len(x) != len(y):
        raise InputError(f"Paired sets must be of one size, and they have {len(x)} and {len(y)} images.")


def _sum(x: Features, y: Features, block: int, *, skip_same_row: bool) -> float:
    """Sum of the kernel over all pairs of rows, without pairs (i, i) if so asked."""
    total = 0.0
    for i in range(0, len(x), block):
        rows = np.asarray(x[i : i + block], dtype=np.float64)
        for j in range(0, len(y), block):
            products = kernel(rows, np.asarray(y[j : j + block], dtype=np.float64))
            if skip_same_row and i == j:
                np.fill_diagonal(products, 0.0)
            total += float(products.sum())
    return total
