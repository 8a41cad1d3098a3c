"""The slot table and the cache of derived values."""

import copy

import pytest
import torch

from halftone.errors import CalibrationError, InputError
from halftone.layers import QuantizedLinear, SlotRow
from halftone.layers.table import DerivedCache
from halftone.numerics import range_to_qparams
from halftone.timesteps import SlotClock, TimestepSlots


def _layer(num_slots: int) -> QuantizedLinear:
    return QuantizedLinear(4, 3, num_bits=8, num_slots=num_slots, layer_name="down.0.proj")


def test_rows_follow_the_clock():
    layer = _layer(2)
    layer.clock = SlotClock(TimestepSlots((10.0, 0.0), (8, 10)))
    layer.set_row(0, range_to_qparams(-1.0, 3.0, 8))
    layer.set_row(1, range_to_qparams(0.0, 2.0, 10))
    layer.clock.set_timestep(9)
    assert layer.current_row() == SlotRow(layer.input_scale[0].item(), 64, 8)
    layer.clock.set_timestep(0)
    assert layer.current_row() == SlotRow(layer.input_scale[1].item(), 0, 10)


def test_one_row_serves_all_slots_without_a_clock():
    layer = _layer(1)
    layer.set_row(0, range_to_qparams(-1.0, 1.0, 8))
    assert layer.current_row().num_bits == 8


def test_uncalibrated_row_names_the_layer():
    layer = _layer(1)
    assert not layer.is_calibrated(0)
    with pytest.raises(CalibrationError, match=r"'down\.0\.proj' was never calibrated for slot 0"):
        layer.current_row()


def test_missing_clock_and_wrong_slots_are_errors():
    layer = _layer(2)
    with pytest.raises(CalibrationError, match="no clock"):
        layer.current_row()
    layer.clock = SlotClock(TimestepSlots((2.0, 1.0, 0.0), (8, 8, 8)))
    layer.clock.set_slot(2)
    with pytest.raises(CalibrationError, match="has 2 slots, but slot 2"):
        layer.current_row()
    with pytest.raises(InputError, match="none with index 2"):
        layer.set_row(2, range_to_qparams(0.0, 1.0, 8))
    with pytest.raises(InputError, match="at least one slot"):
        _layer(0)


def test_loading_a_state_dict_is_noticed():
    source, target = _layer(1), _layer(1)
    source.set_row(0, range_to_qparams(0.0, 1.0, 8))
    target.set_row(0, range_to_qparams(0.0, 2.0, 8))
    before = target.current_row()
    target.load_state_dict(source.state_dict())
    assert target.current_row() == source.current_row() != before


def test_cache_notices_writes_and_replacements_and_is_not_copied():
    cache: DerivedCache[float] = DerivedCache()
    tensor = torch.ones(1)
    assert cache.get("x", [tensor], tensor.item) == 1.0
    assert cache.get("x", [tensor], lambda: -1.0) == 1.0
    tensor.add_(1)
    assert cache.get("x", [tensor], tensor.item) == 2.0
    tensor.data = torch.full((1,), 3.0)
    assert cache.get("x", [tensor], tensor.item) == 3.0
    other = torch.full((1,), 4.0)
    assert cache.get("x", [other], other.item) == 4.0
    assert copy.deepcopy(cache).get("x", [other], lambda: 5.0) == 5.0
