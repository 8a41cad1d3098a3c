"""Slots by value, and the clock that the layers share."""

import math

import pytest
import torch

from halftone.errors import ArtifactError, CalibrationError, InputError
from halftone.timesteps import SlotClock, TimestepSlots

SLOTS = TimestepSlots((901.0, 601.0, 301.0, 1.0), (8, 8, 8, 10))


def test_length():
    assert len(SLOTS) == 4


@pytest.mark.parametrize("value, slot", [(999, 0), (901, 0), (752, 0), (751, 0), (750, 1), (1, 3), (-5, 3)])
def test_nearest_slot_and_ties_go_to_the_earlier(value, slot):
    assert SLOTS.slot_of(value) == slot


def test_dict_round_trip():
    assert TimestepSlots.from_dict(SLOTS.to_dict()) == SLOTS


@pytest.mark.parametrize(
    "timesteps, bits, message",
    [
        ((), (), "at least one"),
        ((1.0, 1.0), (8, 8), "distinct"),
        ((1.0, math.nan), (8, 8), "finite"),
        ((1.0,), (8, 8), "1 timesteps have 2"),
        ((1.0,), (17,), "2 to 16"),
    ],
)
def test_bad_slots_are_refused(timesteps, bits, message):
    with pytest.raises(InputError, match=message):
        TimestepSlots(timesteps, bits)


@pytest.mark.parametrize(
    "data",
    [
        {},
        [],
        {"timesteps": [1.0], "num_bits": [8], "more": 1},
        {"timesteps": ["1"], "num_bits": [8]},
        {"timesteps": [1.0], "num_bits": [8.0]},
        {"timesteps": [1.0], "num_bits": [True]},
        {"timesteps": [1.0, 1.0], "num_bits": [8, 8]},
    ],
)
def test_damaged_stored_slots_are_refused(data):
    with pytest.raises(ArtifactError, match="slots"):
        TimestepSlots.from_dict(data)


@pytest.mark.parametrize("timestep", [600, 600.0, torch.tensor(600), torch.tensor([600.0, 600.0])])
def test_clock_takes_numbers_and_tensors(timestep):
    clock = SlotClock(SLOTS)
    assert clock.set_timestep(timestep) == 1 and clock.current == 1


def test_clock_refuses_mixed_empty_and_non_finite_timesteps():
    clock = SlotClock(SLOTS)
    with pytest.raises(InputError, match="mixes timesteps"):
        clock.set_timestep(torch.tensor([1.0, 2.0]))
    with pytest.raises(InputError, match="empty"):
        clock.set_timestep(torch.tensor([]))
    with pytest.raises(InputError, match="not a finite"):
        clock.set_timestep(torch.tensor(math.nan))


def test_clock_without_a_timestep_says_so():
    with pytest.raises(CalibrationError, match="before any timestep"):
        _ = SlotClock(SLOTS).current


def test_clock_can_be_set_to_a_slot():
    clock = SlotClock(SLOTS)
    clock.set_slot(3)
    assert clock.current == 3
    with pytest.raises(InputError, match="slot 4 does not exist"):
        clock.set_slot(4)
