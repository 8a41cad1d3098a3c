"""Clocks that go on where an earlier run's stopped."""

import pytest

from halftone.study import kept_time
from halftone.study.kept_time import KeptTime, kept_seconds


@pytest.fixture
def now(monkeypatch):
    """A clock that stands until it is set."""

    class Now:
        seconds = 100.0

    monkeypatch.setattr(kept_time.time, "monotonic", lambda: Now.seconds)
    return Now


def test_times_of_all_runs_add_up_and_an_error_loses_none(tmp_path, now):
    path = tmp_path / "a" / "time.json"
    assert kept_seconds(path) is None
    with pytest.raises(ValueError), KeptTime(path).running():
        now.seconds += 5.0
        raise ValueError
    assert kept_seconds(path) == 5.0
    now.seconds += 1000.0  # between the runs
    with KeptTime(path).running():
        now.seconds += 2.5
    assert kept_seconds(path) == 7.5


def test_it_is_noted_every_few_seconds_for_a_kill(tmp_path, now):
    path = tmp_path / "time.json"
    clock = KeptTime(path)
    now.seconds += 1.0
    clock.look()
    assert kept_seconds(path) is None
    now.seconds += 1.5
    clock.look()
    assert kept_seconds(path) == 2.5
    now.seconds += 1.0
    clock.look()
    assert kept_seconds(path) == 2.5 and clock.seconds == 3.5


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"seconds": "x"}', '{"seconds": -1}'])
def test_a_damaged_note_is_none(text, tmp_path):
    path = tmp_path / "time.json"
    path.write_text(text)
    assert kept_seconds(path) is None
