"""Gains and biases by hand: exact lines, noise in either variable, what is not defined."""

import pytest
import torch

from halftone.calibration import affine
from halftone.calibration.affine import Moments


def _fit(seen, wanted, signal=None, rule="unbiased", max_gain=10.0):
    columns = [torch.tensor(values, dtype=torch.float32)[:, None] for values in (seen, wanted, signal or wanted)]
    moments = Moments(1)
    moments.add(*columns)
    gain, bias = moments.fit(rule, max_gain)
    return pytest.approx(gain.item(), abs=1e-12), pytest.approx(bias.item(), abs=1e-12)


@pytest.mark.parametrize("rule, line", [("none", (1, 3)), ("least_squares", (2, 1)), ("unbiased", (2, 1))])
def test_points_on_a_line(rule, line):
    assert _fit([1, 2, 3], [3, 5, 7], rule=rule) == line


# Signal, and noise that is not correlated with it; each of variance 1.
SIGNAL, NOISE, OTHER_NOISE = [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]


def _sum(*terms):
    return [sum(values) for values in zip(*terms, strict=True)]


def test_least_squares_shrinks_by_the_noise_and_the_unbiased_gain_does_not():
    seen = _sum(SIGNAL, NOISE)
    assert _fit(seen, SIGNAL, rule="least_squares") == (0.5, 0)
    assert _fit(seen, SIGNAL) == (1, 0)


def test_prediction_that_is_too_large_is_reduced_whatever_the_noise():
    seen = _sum(SIGNAL, SIGNAL, NOISE, [5] * 4)  # 2 s + n + 5
    assert _fit(seen, SIGNAL) == (0.5, -2.5)
    assert _fit(seen, SIGNAL, rule="least_squares") == (0.4, -2)  # 2 / (4 + 1)


def test_noise_in_what_is_wanted_drops_out_too():
    seen, wanted = _sum(SIGNAL, NOISE), _sum(SIGNAL, SIGNAL, OTHER_NOISE)
    assert _fit(seen, wanted, SIGNAL) == (2, 0)
    assert _fit(seen, wanted, rule="unbiased") == (2.5, 0)  # with the noisy one as the signal: (4 + 1) / 2


def test_of_a_prediction_that_points_elsewhere_the_unbiased_gain_makes_too_much():
    """e = 0.8 s + 0.6 n has the size of s. Least squares: cov(e, s) / var(e) = 0.8; unbiased: var(s) / cov(e, s)."""
    seen = [0.8 * s + 0.6 * n for s, n in zip(SIGNAL, NOISE, strict=True)]
    assert _fit(seen, SIGNAL, rule="least_squares")[0].expected == pytest.approx(0.8, abs=1e-6)
    assert _fit(seen, SIGNAL)[0].expected == pytest.approx(1.25, abs=1e-6)


@pytest.mark.parametrize("rule", ["unbiased", "least_squares"])
@pytest.mark.parametrize("seen, wanted", [([3.3] * 3, [1, 2, 3]), ([1, 2, 3], [3, 2, 1]), ([0] * 3, [0] * 3)])
def test_gain_that_is_not_defined_is_1_and_means_still_meet(seen, wanted, rule):
    bias = sum(wanted) / 3 - sum(seen) / 3
    gain, found = _fit(seen, wanted, rule=rule)
    assert gain == 1 and abs(found.expected - bias) < 1e-6


@pytest.mark.parametrize("slope, gain", [(50, 10), (0.01, 0.1)])
def test_gain_is_held_within_bounds_and_means_still_meet(slope, gain):
    seen = [1, 2, 3]
    assert _fit(seen, [slope * value for value in seen]) == (gain, pytest.approx(2 * slope - 2 * gain, abs=1e-6))


def test_pixels_may_come_in_pieces_and_go_through_a_checkpoint():
    generator = torch.Generator().manual_seed(0)
    e, w, s = (torch.randn(6, 3, 2, 4, generator=generator) for _ in range(3))
    whole, pieces = Moments(4), Moments(4)
    whole.add(e, w, s)
    pieces.add(e[:1], w[:1], s[:1])
    stored = {**pieces.state_dict(), "layer|lo": torch.zeros(1)}
    pieces = Moments(4)
    assert set(pieces.load_state(stored)) == {"layer|lo"}
    pieces.add(e[1:], w[1:], s[1:])
    for rule in ("none", "unbiased", "least_squares"):
        for one, other in zip(whole.fit(rule, 2.0), pieces.fit(rule, 2.0), strict=True):
            torch.testing.assert_close(one, other)


def test_sums_do_not_depend_on_how_many_pixels_are_summed_at_once(monkeypatch):
    e, w, s = torch.randn(3, 5, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    whole, pieces = Moments(4), Moments(4)
    whole.add(e, w, s, 0.3)
    monkeypatch.setattr(affine, "_PIXELS_AT_ONCE", 7)
    pieces.add(e, w, s, 0.3)
    torch.testing.assert_close(whole.sums, pieces.sums)
