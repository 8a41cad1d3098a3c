"""The choice of relaxed steps, from numbers that are given."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halftone.calibration.relaxation import StepErrors, interpolated_gains, most_helpful, probed_calls


def test_a_slots_benefit_is_the_sum_over_its_calls():
    errors = StepErrors(
        slots=(0, 1, 1, 2), narrow=(2.0, 1.0, 3.0, 1.0), wide=(1.0, 0.0, 1.0, 1.0), gains=(1, 2, 0.5, 9)
    )
    assert errors.benefits() == {0: 3.0, 1: 4.0 + 2.0, 2: 0.0}
    assert most_helpful(errors, 1) == (1,)
    assert most_helpful(errors, 2) == (0, 1)


def test_of_equal_slots_those_near_the_image_are_relaxed():
    errors = StepErrors((0, 1, 2), (1.0,) * 3, (0.5,) * 3, (1.0,) * 3)
    assert most_helpful(errors, 2) == (1, 2)


@given(st.lists(st.tuples(*[st.floats(0, 10)] * 3), min_size=1, max_size=7), st.data())
def test_no_other_choice_of_as_many_leaves_less_error(rows, data):
    narrow, wide, gains = ([max(a, b) for a, b, _ in rows], [min(a, b) for a, b, _ in rows], [g for *_, g in rows])
    count = data.draw(st.integers(0, len(rows)))
    slots = range(len(rows))

    def left(relaxed):
        return sum((gains[i] * (wide[i] if i in relaxed else narrow[i])) ** 2 for i in slots)

    found = most_helpful(StepErrors(tuple(slots), tuple(narrow), tuple(wide), tuple(gains)), count)
    assert len(found) == count and list(found) == sorted(found)
    least = min(left(choice) for choice in itertools.combinations(slots, count))
    assert left(found) == pytest.approx(least, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("calls, most, expected", [(3, 5, (0, 1, 2)), (5, 5, (0, 1, 2, 3, 4)), (9, 3, (0, 4, 8))])
def test_probes_are_at_even_distances_and_at_both_ends(calls, most, expected):
    assert probed_calls(calls, most) == expected


def test_gains_between_probes_change_by_the_same_factor():
    assert interpolated_gains((0, 3, 4), (8.0, 1.0, 5.0), 5) == pytest.approx((8.0, 4.0, 2.0, 1.0, 5.0))


def test_a_gain_of_zero_is_no_logarithm():
    gains = interpolated_gains((0, 2), (1.0, 0.0), 3)
    assert gains[0] == 1.0 and gains[2] == 0.0 and 0 < gains[1] < 1e-100
