import math

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from halftone.errors import InputError
from halftone.qdiffbench.moments import Moments, frechet_distance, gaussian_distance, too_few_images


def moments_of(features):
    moments = Moments(features.shape[1])
    moments.update(features)
    return moments


def features(seed, n=300, d=8, shift=0.0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, d)) @ generator.normal(size=(d, d)) + shift


def scipy_distance(x, y):
    """The textbook formula with scipy's general matrix square root."""
    a, b = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(a @ b)
    return float(np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a + b - 2.0 * root.real))


def eigenvalue_distance(x, y):
    """As torchmetrics computes it: the roots of the product's eigenvalues."""
    a, b = np.cov(x.T), np.cov(y.T)
    roots = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
    return float(np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a) + np.trace(b) - 2.0 * roots)


def test_mean_and_covariance_by_hand():
    moments = moments_of(np.array([[0.0, 1.0], [2.0, 5.0], [4.0, 3.0]]))
    assert moments.count == 3
    assert moments.mean.tolist() == [2.0, 3.0]
    # deviations (-2, -2), (0, 2), (2, 0); sums of products 8, 4, 8, over n - 1 = 2
    assert moments.covariance().tolist() == [[4.0, 2.0], [2.0, 4.0]]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    shift=st.sampled_from([0.0, 1.0, 1e4]),
)
def test_batch_size_and_order_do_not_matter(seed, cuts, shift):
    x = features(seed, n=60, d=5, shift=shift)
    parts = np.split(np.random.default_rng(seed).permutation(x), sorted(cuts))
    streamed = Moments(5)
    for part in parts:
        streamed.update(part)
    merged = Moments(5)
    for part in reversed(parts):
        merged.merge(moments_of(part) if len(part) else Moments(5))
    whole_mean, whole_covariance = x.mean(0), np.cov(x.T)
    for moments in (streamed, merged):
        assert moments.count == 60
        np.testing.assert_allclose(moments.mean, whole_mean, rtol=1e-12, atol=1e-12 * max(1.0, shift))
        np.testing.assert_allclose(moments.covariance(), whole_covariance, rtol=0, atol=1e-12 * max(100.0, shift))


def test_a_large_offset_does_not_cancel():
    # the naive sum of squares would leave nothing of a variance of 1 beside a mean of 1e9
    x = np.array([[1e9 - 1.0], [1e9], [1e9 + 1.0]])
    moments = Moments(1)
    for row in x:
        moments.update(row[None])
    assert moments.covariance()[0, 0] == pytest.approx(1.0, abs=1e-6)


def test_any_float_type_is_taken_in_double():
    moments = moments_of(np.array([[1.0], [1.0 + 2**-10]], dtype=np.float16))
    assert moments.mean.dtype == np.float64
    assert moments.mean[0] == 1.0 + 2**-11


def test_a_merge_leaves_the_other_as_it_is():
    a, b = moments_of(features(1)), moments_of(features(2))
    before = b.count, b.mean.copy(), b.scatter.copy()
    a.merge(b)
    assert b.count == before[0] and np.array_equal(b.mean, before[1]) and np.array_equal(b.scatter, before[2])


@pytest.mark.parametrize("bad", [np.zeros(8), np.zeros((2, 7)), np.full((1, 8), np.nan), np.full((1, 8), np.inf)])
def test_other_features_are_refused(bad):
    with pytest.raises(InputError):
        Moments(8).update(bad)


def test_too_little_for_a_covariance():
    with pytest.raises(InputError, match="at least two"):
        moments_of(np.zeros((1, 3))).covariance()
    with pytest.raises(InputError):
        Moments(0)
    with pytest.raises(InputError):
        moments_of(np.zeros((2, 3))).merge(Moments(4))
    with pytest.raises(InputError):
        frechet_distance(moments_of(np.zeros((2, 3))), moments_of(np.zeros((2, 4))))


def test_distance_of_one_dimensional_gaussians():
    # (μ1 - μ2)² + (σ1 - σ2)² = 9 + 4
    one = np.ones((1, 1))
    assert gaussian_distance(np.zeros(1), 9.0 * one, np.array([3.0]), 25.0 * one) == pytest.approx(13.0)


def test_distance_of_diagonal_gaussians():
    a, b = np.array([1.0, 4.0, 0.0]), np.array([4.0, 0.25, 9.0])
    expected = np.sum((np.sqrt(a) - np.sqrt(b)) ** 2) + 4.0
    mean = np.array([2.0, 0.0, 0.0])
    assert gaussian_distance(mean, np.diag(a), np.zeros(3), np.diag(b)) == pytest.approx(expected, abs=1e-12)


def test_distance_of_rotated_commuting_covariances():
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))
    a, b = np.arange(1.0, 7.0) ** 2, np.arange(6.0, 0.0, -1.0) ** 2
    expected = np.sum((np.arange(1.0, 7.0) - np.arange(6.0, 0.0, -1.0)) ** 2)
    found = gaussian_distance(np.zeros(6), rotation * a @ rotation.T, np.zeros(6), rotation * b @ rotation.T)
    assert found == pytest.approx(expected, abs=1e-10)


def test_distance_of_two_by_two_covariances_that_do_not_commute():
    # for 2x2, Tr M^½ = sqrt(Tr M + 2 sqrt(det M)), and M = A^½ B A^½ has the trace and determinant of AB
    a, b = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[5.0, -2.0], [-2.0, 1.0]])
    root = math.sqrt(np.trace(a @ b) + 2.0 * math.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    assert gaussian_distance(np.zeros(2), a, np.zeros(2), b) == pytest.approx(5.0 + 6.0 - 2.0 * root, abs=1e-12)


def test_singular_lines_at_an_angle():
    # variances along unit vectors u and v: the root's trace is |u·v|
    u, v = np.array([1.0, 0.0, 0.0]), np.array([math.cos(1.0), math.sin(1.0), 0.0])
    found = gaussian_distance(np.zeros(3), np.outer(u, u), np.zeros(3), np.outer(v, v))
    assert found == pytest.approx(2.0 - 2.0 * math.cos(1.0), abs=1e-12)


def test_a_point_mass_has_distance_trace_plus_shift():
    covariance = np.cov(features(5).T)
    found = gaussian_distance(np.ones(8), np.zeros((8, 8)), np.zeros(8), covariance)
    assert found == pytest.approx(8.0 + np.trace(covariance))


@pytest.mark.parametrize(("n", "d"), [(300, 8), (40, 100), (5, 64)])
def test_identity_symmetry_and_translation(n, d):
    x, y = features(1, n, d), features(2, n, d)
    a, b = moments_of(x), moments_of(y)
    scale = np.trace(a.covariance())
    assert frechet_distance(a, a) <= 1e-12 * scale
    assert frechet_distance(a, moments_of(x[::-1])) <= 1e-12 * scale
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)
    moved = moments_of(x + 0.5)
    assert frechet_distance(a, moved) == pytest.approx(0.25 * d, rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(400, 16), (2000, 64), (60, 64)])
@pytest.mark.parametrize("independent", [scipy_distance, eigenvalue_distance])
def test_agreement_with_independent_implementations(n, d, independent):
    generator = np.random.default_rng(n)
    x = generator.normal(size=(n, d)) @ generator.normal(size=(d, d)) / math.sqrt(d)
    y = x + 0.3 * generator.normal(size=(n, d)) + 0.05
    ours = frechet_distance(moments_of(x.astype(np.float32)), moments_of(y.astype(np.float32)))
    assert ours == pytest.approx(independent(x, y), rel=1e-4)


def test_many_samples_approach_the_known_distance():
    generator = np.random.default_rng(9)
    x, y = generator.normal(size=(40_000, 4)), 1.5 * generator.normal(size=(40_000, 4)) + 0.5
    assert frechet_distance(moments_of(x), moments_of(y)) == pytest.approx(4 * 0.25 + 4 * 0.25, rel=0.03)


def test_the_warning_about_few_images():
    assert too_few_images(1281, 256) is None
    assert "biased upwards" in too_few_images(1000, 256)
    assert "singular" in too_few_images(256, 256)
