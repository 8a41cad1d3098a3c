import json
import math

import numpy as np
import pytest
from pydantic import ValidationError

from halftone.errors import InputError
from halftone.report import words
from halftone.report.data import ActivationRange, ComparisonReport
from halftone.report.files import write_atomically
from halftone.report.images import contact_sheet, difference
from halftone.report.ranges import most_moving_layers, shared_range, wasted_bits


def steps(*ranges):
    return [ActivationRange(timestep=100 - i, low=low, high=high) for i, (low, high) in enumerate(ranges)]


def test_json_names_its_schema_and_round_trips(report):
    stored = json.loads(report.to_json())
    assert stored["schema"] == "halftone.comparison/1"
    assert stored["fidelity"]["psnr"].keys() == {"mean", "low", "high", "n"}
    assert ComparisonReport.from_json(report.to_json()) == report


@pytest.mark.parametrize("change", [{"schema": "halftone.comparison/2"}, {"surprise": 1}, {"title": None}])
def test_other_schemas_and_unknown_fields_are_refused(report, change):
    stored = json.loads(report.to_json()) | change
    with pytest.raises(ValidationError):
        ComparisonReport.from_json(json.dumps(stored))


def test_numbers_that_json_cannot_hold_are_refused():
    with pytest.raises(ValidationError):
        ActivationRange(timestep=1.0, low=math.nan, high=1.0)


def test_slots_without_a_width_are_refused(report):
    stored = json.loads(report.to_json())
    stored["quantization"]["slot_bits"].pop()
    with pytest.raises(ValidationError, match="5 slot timesteps but 4"):
        ComparisonReport.from_json(json.dumps(stored))


def test_the_nearest_slot_gives_the_bits(report):
    quantization = report.quantization
    assert [quantization.bits_at(t) for t in (999.0, 201.0, 102.0, 99.0, 0.0)] == [8, 8, 8, 10, 10]
    assert quantization.base_bits == 8


def test_wasted_bits_by_hand():
    # shared range 0..8: the steps use all of it, a half, a quarter: 0, 1 and 2 bits
    ranges = steps((0, 8), (0, 4), (6, 8))
    assert shared_range(ranges) == (0, 8)
    assert wasted_bits(ranges) == pytest.approx(1.0)
    assert wasted_bits(steps((1, 1), (1, 1))) == 0.0
    with pytest.raises(InputError):
        shared_range([])


def test_layers_are_ranked_by_movement():
    layers = {"still": steps((0, 1), (0, 1)), "moving": steps((0, 1), (0, 8)), "once": steps((0, 1))}
    assert [name for name, _ in most_moving_layers(layers)] == ["moving", "still"]
    assert len(most_moving_layers(layers, count=1)) == 1


def test_difference_by_hand():
    a = np.array([[[0, 100, 255]]], dtype=np.uint8)
    b = np.array([[[3, 100, 205]]], dtype=np.uint8)
    assert difference(a, b, 8).tolist() == difference(b, a, 8).tolist() == [[[24, 0, 255]]]
    with pytest.raises(InputError):
        difference(a, b, 0)


def test_contact_sheet_goes_row_by_row():
    cells = [np.full((2, 3, 3), value, dtype=np.uint8) for value in (1, 2, 3)]
    sheet = contact_sheet(cells, columns=2)
    assert sheet.shape == (4, 6, 3)
    assert sheet[::2, ::3, 0].tolist() == [[1, 2], [3, 0]]


def test_words():
    assert [words.in_bytes(n) for n in (12, 999_999, 11_420_000)] == ["12 bytes", "1 MB", "11.4 MB"]
    assert [words.in_seconds(s) for s in (0.123, 42, 203, 7500)] == ["0.12 s", "42 s", "3 min 23 s", "2 h 05 min"]
    assert [words.compared(s, 1.0) for s in (0.5, 2.0, 1.01)] == ["2.00× faster", "2.00× slower", "as fast"]
    assert words.typical_levels(48.1308) == pytest.approx(1.0, abs=1e-4)
    assert words.typical_levels(100.0) == 0.0


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
