import numpy as np
import pytest

from halftone.errors import InputError
from halftone.qdiffbench.kernel_distance import kid, kid_over_subsets


def sets(seed, m=70, n=70, d=6):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(m, d)), 1.3 * generator.normal(size=(n, d)) + 0.2


def plain_loops(x, y, paired):
    """The definition, pair by pair."""
    d = x.shape[1]
    k = lambda u, v: (sum(a * b for a, b in zip(u, v, strict=True)) / d + 1.0) ** 3  # noqa: E731
    xx = np.mean([k(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j])
    yy = np.mean([k(y[i], y[j]) for i in range(len(y)) for j in range(len(y)) if i != j])
    xy = np.mean([k(x[i], y[j]) for i in range(len(x)) for j in range(len(y)) if not (paired and i == j)])
    return xx + yy - 2.0 * xy


def matrix_formula(x, y):
    """KID as other programs compute it: whole matrices, diagonals taken off the sums, float64."""
    m = len(x)
    gram = lambda a, b: (a @ b.T / x.shape[1] + 1.0) ** 3  # noqa: E731
    xx, yy, xy = gram(x, x), gram(y, y), gram(x, y)
    within = (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (m * (m - 1))
    return within - 2.0 * xy.sum() / m**2


@pytest.mark.parametrize("paired", [True, False])
def test_the_definition(paired):
    x, y = sets(0, 12, 12)
    assert kid(x, y, paired=paired) == pytest.approx(plain_loops(x, y, paired), rel=1e-12)


def test_sets_of_unequal_size():
    x, y = sets(0, 9, 14)
    assert kid(x, y, paired=False) == pytest.approx(plain_loops(x, y, False), rel=1e-12)


def test_agreement_with_the_usual_matrix_formula():
    x, y = sets(1, 600, 600, 64)
    ours = kid(x.astype(np.float32), y.astype(np.float32), paired=False)
    assert ours == pytest.approx(matrix_formula(x, y), rel=1e-4)


def test_two_images_by_hand():
    # d = 1; k(0, 1) = 1, k(1, 2) = 27; between, other rows only: k(0, 2) = 1 and k(1, 1) = 8
    x, y = np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])
    assert kid(x, y, paired=True) == pytest.approx(1 + 27 - 2 * 4.5)
    # all four: k(0, 1) = 1, k(0, 2) = 1, k(1, 1) = 8, k(1, 2) = 27
    assert kid(x, y, paired=False) == pytest.approx(1 + 27 - 2 * 37 / 4)


@pytest.mark.parametrize("block", [1, 7, 70, 1000])
@pytest.mark.parametrize("paired", [True, False])
def test_the_block_size_does_not_matter(block, paired):
    x, y = sets(2)
    assert kid(x, y, paired=paired, block=block) == pytest.approx(kid(x, y, paired=paired), rel=1e-11)


def test_a_set_with_itself():
    x, _ = sets(3)
    assert kid(x, x.copy(), paired=True) == pytest.approx(0.0, abs=1e-12)
    assert kid(x, x.copy(), paired=False) < -0.01


def test_symmetry_and_order():
    x, y = sets(4)
    order = np.random.default_rng(0).permutation(len(x))
    assert kid(x, y, paired=True) == pytest.approx(kid(y, x, paired=True), rel=1e-12)
    assert kid(x[order], y[order], paired=True) == pytest.approx(kid(x, y, paired=True), rel=1e-11)


@pytest.mark.parametrize(("paired", "shared"), [(True, 0.95), (True, 0.0), (False, 0.0)])
def test_unbiased_around_the_known_value(paired, shared):
    # x ~ N(0, a²I), y ~ N(0, b²I), independent: E (x·y/d + 1)³ = 1 + 3a²b²/d, so MMD² = 3 (a² - b²)² / d.
    # The pairs may be as alike as they want: only different rows are compared.
    d, a, b, n = 3, 1.0, 1.2, 12
    generator = np.random.default_rng(6)
    values = []
    for _ in range(3000):
        z, w = generator.normal(size=(n, d)), generator.normal(size=(n, d))
        y = b * (shared * z + np.sqrt(1 - shared**2) * w)
        values.append(kid(a * z, y, paired=paired))
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values) - 3 * (a**2 - b**2) ** 2 / d) < 3.5 * error
    assert error < 0.05


def test_memory_maps_are_read_in_slices(tmp_path):
    x, y = sets(7)
    np.save(tmp_path / "x.npy", x.astype(np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert kid(mapped, y, paired=True, block=16) == pytest.approx(kid(x.astype(np.float32), y, paired=True), rel=1e-11)


@pytest.mark.parametrize("paired", [True, False])
def test_subsets_of_everything_are_the_whole(paired):
    x, y = sets(8)
    estimate = kid_over_subsets(x, y, paired=paired, subsets=3, size=70)
    assert estimate.mean == pytest.approx(kid(x, y, paired=paired), rel=1e-10)
    assert estimate.std == pytest.approx(0.0, abs=1e-10)


def test_subsets_scatter_around_the_whole_and_are_reproducible():
    x, y = sets(9, 200, 200)
    estimate = kid_over_subsets(x, y, paired=False, subsets=200, size=50, seed=1)
    assert estimate.mean == pytest.approx(kid(x, y, paired=False), abs=4 * estimate.std / np.sqrt(200))
    assert estimate == kid_over_subsets(x, y, paired=False, subsets=200, size=50, seed=1)
    assert estimate != kid_over_subsets(x, y, paired=False, subsets=200, size=50, seed=2)


def test_subsets_of_pairs_stay_pairs():
    x, _ = sets(10)
    estimate = kid_over_subsets(x, x.copy(), paired=True, subsets=5, size=20)
    assert estimate.mean == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("x", "y", "paired"),
    [
        (np.zeros((1, 2)), np.zeros((1, 2)), True),
        (np.zeros((3, 2)), np.zeros((4, 2)), True),
        (np.zeros((3, 2)), np.zeros((3, 4)), False),
        (np.zeros(3), np.zeros(3), False),
        (np.full((3, 2), np.nan), np.zeros((3, 2)), False),
    ],
)
def test_sets_without_a_distance_are_refused(x, y, paired):
    with pytest.raises(InputError):
        kid(x, y, paired=paired)


@pytest.mark.parametrize(("subsets", "size"), [(0, 10), (5, 1), (5, 71)])
def test_impossible_subsets_are_refused(subsets, size):
    x, y = sets(11)
    with pytest.raises(InputError, match="Subsets"):
        kid_over_subsets(x, y, paired=True, subsets=subsets, size=size)
