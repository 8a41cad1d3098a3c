"""The truth is known in closed form here: reference r ~ N(0, I), candidate r + s·e with independent e ~ N(0, I)."""

import numpy as np
import pytest

from halftone.errors import InputError
from halftone.qdiffbench.distribution_intervals import (
    frechet_difference,
    frechet_interval,
    kid_difference,
    kid_interval,
    sample_kid,
)
from halftone.qdiffbench.kernel_distance import kid
from halftone.qdiffbench.moments import Moments, frechet_distance


def triple(seed, n, d, s_a, s_b):
    generator = np.random.default_rng(seed)
    reference, noise_a, noise_b = generator.normal(size=(3, n, d))
    return reference + s_a * noise_a, reference + s_b * noise_b, reference


def true_frechet(d, s):
    return d * (np.sqrt(1.0 + s**2) - 1.0) ** 2


def true_kid(d, s):
    # E (x·y/d + 1)³ = 1 + 3a²b²/d for independent N(0, a²I), N(0, b²I)
    return 3.0 * s**4 / d


def moments_of(features):
    moments = Moments(features.shape[1])
    moments.update(features)
    return moments


def test_frechet_intervals_cover_the_large_sample_value():
    # 150 repetitions: 95 % ± 2.6 standard deviations of a binomial is 90.4 to 99.6 %
    d, s_a, s_b = 4, 0.8, 0.6
    hits = np.zeros(2)
    plain, unbiased = [], []
    for seed in range(150):
        a, b, reference = triple(seed, 200, d, s_a, s_b)
        one = frechet_interval(a, reference, resamples=100, seed=seed)
        two = frechet_difference(a, b, reference, resamples=100, seed=seed)
        hits += [
            one.low <= true_frechet(d, s_a) <= one.high,
            two.low <= true_frechet(d, s_a) - true_frechet(d, s_b) <= two.high,
        ]
        plain.append(one.mean)
        unbiased.append(one.unbiased)
    assert (hits / 150 >= 0.904).all()
    assert (hits / 150 <= 0.996).all()
    error = np.std(plain) / np.sqrt(150)
    assert np.mean(plain) - true_frechet(d, s_a) > 5.0 * error
    assert abs(np.mean(unbiased) - true_frechet(d, s_a)) < 3.5 * error


def test_the_bias_of_many_features_is_taken_off():
    d, s = 48, 0.4
    a, _, reference = triple(1, 500, d, s, s)
    found = frechet_interval(a, reference, resamples=60)
    assert found.mean > 1.5 * true_frechet(d, s)
    assert found.low <= true_frechet(d, s) <= found.high
    assert found.unbiased == pytest.approx(true_frechet(d, s), rel=0.15)


def test_kid_intervals_cover_the_large_sample_value():
    d, s_a, s_b = 4, 1.0, 0.8
    hits = np.zeros(2)
    for seed in range(150):
        a, b, reference = triple(seed, 250, d, s_a, s_b)
        one = kid_interval(a, reference, resamples=200, seed=seed)
        two = kid_difference(a, b, reference, resamples=200, seed=seed)
        hits += [
            one.low <= true_kid(d, s_a) <= one.high,
            two.low <= true_kid(d, s_a) - true_kid(d, s_b) <= two.high,
        ]
    assert (hits / 150 >= 0.904).all()
    assert (hits / 150 <= 0.996).all()


def test_the_estimates_are_the_plain_metrics():
    a, b, reference = triple(2, 700, 5, 0.8, 0.5)
    assert frechet_interval(a, reference, resamples=2).mean == pytest.approx(
        frechet_distance(moments_of(a), moments_of(reference)), rel=1e-10
    )
    assert kid_interval(a, reference, resamples=2).mean == pytest.approx(kid(a, reference, paired=True), rel=1e-10)
    assert kid_difference(a, b, reference, resamples=2).difference == pytest.approx(
        kid(a, reference, paired=True) - kid(b, reference, paired=True), rel=1e-10
    )


def test_a_weighted_resample_is_the_u_statistic_of_the_rows_drawn():
    a, _, reference = triple(3, 6, 2, 0.8, 0.5)
    from halftone.qdiffbench.distribution_intervals import _pair_products, _u_statistic_bootstrap

    every = slice(0, 6)
    h = _pair_products(a, reference, every, every)
    _, resampled = _u_statistic_bootstrap(lambda i, j: h[i, j].copy(), 6, 4, seed=5)
    draws = np.random.default_rng(5).multinomial(6, np.full(6, 1 / 6), size=4)
    for counts, value in zip(draws, resampled, strict=True):
        rows = np.repeat(np.arange(6), counts)
        pairs = [h[i, j] for i in rows for j in rows if i != j]
        assert value == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("difference", [frechet_difference, kid_difference])
def test_the_nearer_candidate_wins(difference):
    a, b, reference = triple(4, 300, 4, 0.9, 0.3)
    found = difference(a, b, reference, resamples=200)
    assert found.difference > 0.0
    assert found.verdict("a", "b", higher_is_better=False) == "b better than a, p < 0.01"
    same = difference(a, a.copy(), reference, resamples=50)
    assert same.p_value == 1.0
    assert same.difference == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("difference", [frechet_difference, kid_difference])
def test_a_few_prompts_prove_nothing(difference):
    """However clear the case is: five coin flips fall alike once in 16 times."""
    reference = np.random.default_rng(0).normal(size=(5, 2))
    assert difference(reference, reference + 10.0, reference, resamples=400).p_value == 2.0**-4


def test_a_difference_is_that_of_the_distances_over_the_same_prompts():
    a, b, reference = triple(7, 60, 3, 0.9, 0.6)
    one, two = (sample_kid(x, reference, resamples=20, seed=3) for x in (a, b))
    found = kid_difference(a, b, reference, resamples=20, seed=3)
    draws = np.random.default_rng(3).multinomial(60, np.full(60, 1 / 60), size=20)
    assert (one.samples - two.samples).shape == (20,) and draws.shape == (20, 60)
    rows = [np.repeat(np.arange(60), counts) for counts in draws[:2]]
    for index, drawn in enumerate(rows):
        pairs = [(i, j) for i in drawn for j in drawn if i != j]
        left, right = (np.array(side) for side in zip(*pairs, strict=True))

        def h(x, left=left, right=right):
            k = lambda u, v: ((u * v).sum(axis=1) / 3 + 1.0) ** 3  # noqa: E731
            y = reference
            return (k(x[left], x[right]) + k(y[left], y[right]) - k(x[left], y[right]) - k(y[left], x[right])).mean()

        assert one.samples[index] - two.samples[index] == pytest.approx(h(a) - h(b))
    assert found.difference == pytest.approx(one.plain - two.plain)


def test_the_reference_against_itself_is_zero():
    _, _, reference = triple(5, 100, 4, 0.9, 0.3)
    found = frechet_interval(reference.copy(), reference, resamples=20)
    assert max(found.mean, found.low, found.high, found.unbiased) < 1e-12
    assert abs(kid_interval(reference.copy(), reference, resamples=20).high) < 1e-12


def test_memory_maps_and_progress(tmp_path):
    a, _, reference = (x.astype(np.float32) for x in triple(6, 1100, 3, 0.9, 0.3))
    for name, features in (("a", a), ("r", reference)):
        np.save(tmp_path / f"{name}.npy", features)
    mapped = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("a", "r")]
    seen = []
    found = frechet_interval(*mapped, resamples=3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert found == frechet_interval(a, reference, resamples=3)
    assert kid_interval(*mapped, resamples=3) == kid_interval(a, reference, resamples=3)


@pytest.mark.parametrize("interval", [frechet_interval, kid_interval])
def test_wrong_input_is_refused(interval):
    x = np.random.default_rng(0).normal(size=(8, 2))
    for a, b, arguments in [
        (x, x[:7], {}),
        (x, x[:, :1], {}),
        (x[:1], x[:1], {}),
        (np.full_like(x, np.nan), x, {}),
        (x, x, {"resamples": 0}),
        (x, x, {"confidence": 1.5}),
    ]:
        with pytest.raises(InputError):
            interval(a, b, **arguments)
    with pytest.raises(InputError, match="four"):
        frechet_interval(x[:3], x[:3])
