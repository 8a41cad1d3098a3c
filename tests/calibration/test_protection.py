"""The choice of protected layers, from numbers that are given."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halftone.calibration.protection import LayerErrors, LayerShares, most_harmful, settled


def _errors(*rows):
    """Of layers 0, 1, 2, …: (squared error, multiplications) of each."""
    return LayerErrors(
        tuple(str(layer) for layer in range(len(rows))),
        tuple(float(error) for error, _ in rows),
        tuple(multiplications for _, multiplications in rows),
    )


def test_shares_are_of_the_sums():
    errors = _errors((1, 30), (3, 10))
    assert errors.shares("1") == LayerShares(error=0.75, operations=0.25)
    assert _errors((0, 0), (0, 0)).shares("0") == (0.0, 0.0)


def test_layers_that_give_most_for_a_multiplication_are_taken():
    """The layer of the largest error would use up the budget."""
    assert most_harmful(_errors((6, 1), (6, 1), (7, 10), (0, 4), (0, 4)), 0.5) == ("0", "1")


def test_unless_fewer_large_ones_make_more_of_the_error():
    assert most_harmful(_errors((6, 1), (10, 10), (1, 5), (1, 4)), 0.5) == ("1",)


def test_what_does_not_fit_is_passed_over():
    assert most_harmful(_errors((9, 9), (4, 1), (0, 5), (0, 5)), 0.1) == ("1",)
    assert most_harmful(_errors((9, 9), (4, 1), (0, 5), (0, 5)), 0.04) == ()


def test_layers_without_more_than_their_fair_share_are_not_worth_it():
    assert most_harmful(_errors((3, 1), (1, 1), (1, 1)), 1.0) == ("0",)
    for count in range(1, 30):
        assert most_harmful(_errors(*[(0.1, 1)] * count), 1.0) == ()
    assert most_harmful(_errors((0, 1), (0, 1)), 1.0) == ()


def test_a_budget_is_kept_as_it_is_written():
    """0.29 * 100 is less than 29 in floating point."""
    rows = [(1, 1)] * 30 + [(0, 1)] * 70
    assert len(most_harmful(_errors(*rows), 0.29)) == 29


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 20)), min_size=1, max_size=7), st.floats(0.001, 1))
def test_the_budget_is_kept_and_half_of_what_is_possible_is_reached(rows, operations):
    errors = _errors(*rows)
    found = [int(name) for name in most_harmful(errors, operations)]
    assert found == sorted(found) and len(found) < len(rows)
    limit = Fraction(repr(operations)) * sum(multiplications for _, multiplications in rows)

    def cost(layers):
        return sum(rows[layer][1] for layer in layers)

    def gain(layers):
        return sum(rows[layer][0] for layer in layers)

    assert cost(found) <= limit
    fair = gain(range(len(rows))) / len(rows)
    worth = [layer for layer, (error, _) in enumerate(rows) if error > fair * (1 + 1e-9)]
    assert all(rows[layer][0] >= fair * (1 - 1e-9) for layer in found)
    choices = (choice for size in range(len(worth) + 1) for choice in itertools.combinations(worth, size))
    best = max(gain(choice) for choice in choices if cost(choice) <= limit)
    assert gain(found) >= best / 2 * (1 - 1e-9)


@pytest.mark.parametrize("value, expected", [(1 / 3, 0.333333), (0.0, 0.0), (1234567.0, 1234570.0)])
def test_six_digits_are_kept(value, expected):
    assert settled(value) == expected
