import numpy as np
import pytest
import scipy.stats

from halftone.errors import InputError
from halftone.qdiffbench.differences import Difference, paired_difference
from halftone.qdiffbench.directions import higher_is_better, metric_names


def pair(seed, difference, n=60, hardness=5.0, noise=0.5):
    """Two candidates on prompts that differ far more than the candidates do."""
    generator = np.random.default_rng(seed)
    prompts = generator.normal(30.0, hardness, n)
    return prompts + difference + noise * generator.normal(size=n), prompts


def test_it_agrees_with_the_paired_t_test_for_normal_differences():
    a, b = pair(0, 0.12, n=400, noise=1.0)
    found = paired_difference(a, b)
    theirs = scipy.stats.ttest_rel(a, b)
    interval = theirs.confidence_interval(0.95)
    width = interval.high - interval.low
    assert found.difference == pytest.approx(np.mean(a - b))
    assert found.low == pytest.approx(interval.low, abs=0.05 * width)
    assert found.high == pytest.approx(interval.high, abs=0.05 * width)
    assert found.p_value == pytest.approx(theirs.pvalue, abs=0.02)


def test_the_interval_covers_and_the_p_value_is_level():
    # 400 repetitions: 95 % ± 2.6 standard deviations of a binomial is 92.2 to 97.8 %
    covered = rejected = 0
    for seed in range(400):
        a, b = pair(seed, 0.3)
        found = paired_difference(a, b, resamples=400, seed=seed)
        covered += found.low <= 0.3 <= found.high
        null = paired_difference(a - 0.3, b, resamples=400, seed=seed)
        rejected += null.p_value < 0.05
    assert 0.922 <= covered / 400 <= 0.978
    assert 0.022 <= rejected / 400 <= 0.078


def test_p_value_and_interval_tell_the_same():
    for seed in range(40):
        found = paired_difference(*pair(seed, 0.13), resamples=2000, seed=seed)
        if not 0.045 < found.p_value < 0.055:
            assert (found.p_value < 0.05) == (not found.low <= 0.0 <= found.high)


def test_swapping_the_candidates_mirrors_everything():
    a, b = pair(1, 0.2)
    one, other = paired_difference(a, b), paired_difference(b, a)
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))
    assert one.p_value == pytest.approx(other.p_value)


def test_no_difference_at_all():
    assert paired_difference([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == Difference(0.0, 0.0, 0.0, 1.0, 3)


@pytest.mark.parametrize(("n", "smallest"), [(1, 1.0), (2, 0.5), (5, 0.0625), (40, 2 / 10_001)])
def test_few_prompts_prove_little(n, smallest):
    # a constant difference: n coins that all fall on one side
    found = paired_difference(np.ones(n), np.zeros(n))
    assert found.p_value == pytest.approx(smallest)


@pytest.mark.parametrize(
    ("difference", "p_value", "higher", "expected"),
    [
        (1.0, 0.0005, True, "x better than y, p < 0.001"),
        (1.0, 0.005, False, "y better than x, p < 0.01"),
        (-1.0, 0.03, True, "y better than x, p < 0.05"),
        (-1.0, 0.03, False, "x better than y, p < 0.05"),
        (-1.0, 0.31, False, "x and y: not distinguishable, p = 0.31"),
        (0.0, 0.001, True, "x and y: not distinguishable, p = 0.00"),
    ],
)
def test_verdicts(difference, p_value, higher, expected):
    assert Difference(difference, -1.0, 1.0, p_value, 50).verdict("x", "y", higher_is_better=higher) == expected


def test_the_direction_of_every_metric():
    up = {name for name in metric_names() if higher_is_better(name)}
    assert up == {"psnr", "ssim", "ms_ssim", "clip_score", "attribute_accuracy"}
    with pytest.raises(InputError, match="did you mean 'psnr'"):
        higher_is_better("pnsr")


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0, 2.0]), ([], []), ([np.nan], [1.0])])
def test_values_without_a_difference_are_refused(a, b):
    with pytest.raises(InputError):
        paired_difference(a, b)


def test_arguments_out_of_range_are_refused():
    with pytest.raises(InputError):
        paired_difference([1.0, 2.0], [1.0, 3.0], confidence=1.0)
    with pytest.raises(InputError):
        paired_difference([1.0, 2.0], [1.0, 3.0], resamples=0)
