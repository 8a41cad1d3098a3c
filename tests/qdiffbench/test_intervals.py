import math

import numpy as np
import pytest

from halftone.errors import InputError
from halftone.qdiffbench import intervals
from halftone.qdiffbench.intervals import Estimate, bootstrap_mean, summarize


@pytest.mark.parametrize(("confidence", "quantile"), [(0.95, 1.959964), (0.8, 1.281552)])
def test_it_equals_the_normal_interval_for_many_normal_values(confidence, quantile):
    values = np.random.default_rng(1).normal(40.0, 3.0, 500)
    estimate = bootstrap_mean(values, confidence=confidence, resamples=4000)
    half_width = quantile * values.std() / math.sqrt(len(values))
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half_width, abs=0.07 * half_width)
    assert estimate.high == pytest.approx(values.mean() + half_width, abs=0.07 * half_width)
    assert estimate.n == 500


def test_it_covers_the_true_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(2)
    hits = 0
    for seed in range(300):
        estimate = bootstrap_mean(generator.normal(0.0, 1.0, 40), resamples=400, seed=seed)
        hits += estimate.low <= 0.0 <= estimate.high
    assert 0.90 <= hits / 300 <= 0.98


def test_two_values_by_hand():
    # means of pairs from {0, 1}: 0, 0.5, 1 with probability 1/4, 1/2, 1/4
    assert bootstrap_mean([0.0, 1.0]) == Estimate(mean=0.5, low=0.0, high=1.0, n=2)


def test_a_constant_has_no_width():
    assert bootstrap_mean([7.0] * 5) == Estimate(7.0, 7.0, 7.0, 5)
    assert bootstrap_mean([7.0]) == Estimate(7.0, 7.0, 7.0, 1)


def test_it_is_reproducible_and_depends_on_the_seed():
    values = np.random.default_rng(3).normal(size=30)
    assert bootstrap_mean(values, seed=4) == bootstrap_mean(values, seed=4)
    assert bootstrap_mean(values, seed=4) != bootstrap_mean(values, seed=5)


def test_large_samples_are_resampled_in_blocks(monkeypatch):
    monkeypatch.setattr(intervals, "_BLOCK_VALUES", 70)
    estimate = bootstrap_mean(np.arange(30.0), resamples=101)
    assert estimate.low < 14.5 < estimate.high


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]], [1.0, math.nan], [math.inf]])
def test_values_without_a_mean_are_refused(values):
    with pytest.raises(InputError):
        bootstrap_mean(values)


@pytest.mark.parametrize("arguments", [{"confidence": 0.0}, {"confidence": 1.0}, {"resamples": 0}])
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(InputError):
        bootstrap_mean([1.0, 2.0], **arguments)


@pytest.mark.parametrize(("higher", "worst"), [(True, 1.0), (False, 9.0)])
def test_summary_of_a_ladder_by_hand(higher, worst):
    summary = summarize(np.arange(11.0), higher_is_better=higher)
    assert (summary.mean, summary.median, summary.worst_decile, summary.n) == (5.0, 5.0, worst, 11)
    estimate = bootstrap_mean(np.arange(11.0))
    assert (summary.low, summary.high) == (estimate.low, estimate.high)


def test_a_summary_needs_values():
    with pytest.raises(InputError):
        summarize([], higher_is_better=True)
