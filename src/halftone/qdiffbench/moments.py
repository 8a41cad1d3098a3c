"""Mean and covariance of features as they stream by, and the Fréchet distance between two such summaries.

Memory is one (d, d) matrix of float64 however many images there are: 0.5 MB for 256 features, 34 MB for 2,048.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from halftone.errors import InputError

IMAGES_PER_FEATURE = 5
"""Below this many images for each feature the covariance, and with it the Fréchet distance, is unstable."""

FloatArray = npt.NDArray[np.float64]
Features = npt.NDArray[np.floating]


class Moments:
    """Count, mean and covariance of feature vectors, in float64, without keeping them.

    Two halves that are merged equal the whole to rounding (about 1e-12 of the features' scale), in any order
    and cut anywhere. For the same bits in every run, feed the same blocks in the same order.

    Attributes:
        count: how many vectors were seen.
        mean: (d,) float64.
        scatter: (d, d) float64, the sum of (x - mean)(x - mean)ᵀ.
    """

    def __init__(self, dimension: int) -> None:
        if dimension < 1:
            raise InputError(f"Moments need at least one feature, got a dimension of {dimension}.")
        self.count = 0
        self.mean: FloatArray = np.zeros(dimension)
        self.scatter: FloatArray = np.zeros((dimension, dimension))

    @property
    def dimension(self) -> int:
        """How many features a vector has."""
        return int(self.mean.size)

    def update(self, features: Features) -> None:
        """Adds a block of vectors.

        Args:
            features: (n, d) finite numbers of any float type, n >= 0.

        Raises:
            InputError: another shape, or a value that is not finite.
        """
        block = np.asarray(features, dtype=np.float64)
        if block.ndim != 2 or block.shape[1] != self.dimension:
            raise InputError(f"Features must have the shape (n, {self.dimension}), got {block.shape}.")
        if not np.isfinite(block).all():
            raise InputError("Features must be finite; a block of them holds NaN or infinity.")
        if len(block) == 0:
            return
        mean = block.mean(axis=0)
        centred = block - mean
        self._join(len(block), mean, centred.T @ centred)

    def merge(self, other: Moments) -> None:
        """Adds everything another summary has seen; the other one stays as it is.

        Raises:
            InputError: it has another dimension.
        """
        if other.dimension != self.dimension:
            raise InputError(f"Moments of {self.dimension} and of {other.dimension} features cannot be merged.")
        if other.count:
            self._join(other.count, other.mean, other.scatter)

    def covariance(self) -> FloatArray:
        """The unbiased covariance, (d, d) float64: the scatter over count - 1.

        Raises:
            InputError: fewer than two vectors were seen.
        """
        if self.count < 2:
            raise InputError(f"A covariance needs at least two images, and there are {self.count}.")
        return self.scatter / (self.count - 1)

    def _join(self, count: int, mean: FloatArray, scatter: FloatArray) -> None:
        """Chan, Golub & LeVeque, "Updating Formulae and a Pairwise Algorithm" (1979), equation 2.1."""
        total = self.count + count
        shift = mean - self.mean
        self.scatter = self.scatter + scatter + np.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Fréchet (Wasserstein-2) distance of two Gaussians: Dowson & Landau, J. Multivariate Analysis (1982).

    ‖μa - μb‖² + Tr A + Tr B - 2 Tr (A^½ B A^½)^½, which is what the literature calls FID (Heusel et al., 2017).
    The last trace is the sum of the singular values of A^½ B^½. Those are found to rounding times the largest,
    also for singular covariances, whereas the eigenvalues of A^½ B A^½ would have to be rooted, which turns a
    rounding of 1e-16 into 1e-8, for each of the directions that fewer images than features leave empty.

    Returns:
        A non-negative number in squared units of the features; 0 for equal moments.

    Raises:
        InputError: different dimensions, or fewer than two vectors in one of them.
    """
    if a.dimension != b.dimension:
        raise InputError(f"Features of {a.dimension} and of {b.dimension} dimensions cannot be compared.")
    return gaussian_distance(a.mean, a.covariance(), b.mean, b.covariance())


def gaussian_distance(mean_a: FloatArray, cov_a: FloatArray, mean_b: FloatArray, cov_b: FloatArray) -> float:
    """:func:`frechet_distance` of Gaussians given by means (d,) and covariances (d, d), float64."""
    overlap = np.linalg.svd(_root(cov_a).T @ _root(cov_b), compute_uv=False).sum()
    apart = float(np.sum((mean_a - mean_b) ** 2))
    # not below zero, which rounding could otherwise bring about for equal moments
    return max(0.0, apart + float(np.trace(cov_a) + np.trace(cov_b) - 2.0 * overlap))


def too_few_images(n: int, dimension: int) -> str | None:
    """A warning, if ``n`` images of a set are too few for a stable covariance of ``dimension`` features."""
    if n > IMAGES_PER_FEATURE * dimension:
        return None
    if n <= dimension:
        what = "the covariance is singular and the Fréchet distance strongly biased upwards"
    else:
        what = "the Fréchet distance is biased upwards"
    return (
        f"{n} images are few for {dimension} features: {what}; compare it only with values from as many images, "
        f"or take more than {IMAGES_PER_FEATURE * dimension} (KID has no such bias)."
    )


def _root(covariance: FloatArray) -> FloatArray:
    """R with R Rᵀ = covariance, (d, rank): directions without variance beyond rounding are left out."""
    values, vectors = np.linalg.eigh(covariance)
    keep = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return np.asarray(vectors[:, keep] * np.sqrt(values[keep]))
