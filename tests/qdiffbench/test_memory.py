"""Memory is looked at while painting, also of pipelines that do not call back."""

import threading

import pytest
import torch

from halftone.qdiffbench import memory
from halftone.qdiffbench.memory import MemoryWatch, forget_peak
from halftone.qdiffbench.model_facts import cost
from halftone.qdiffbench.records import ImageRecord, records_name


def test_a_peak_between_the_steps_is_seen(monkeypatch):
    used, seen = {"bytes": 5}, threading.Event()

    def memory_in_use(device):
        if used["bytes"] == 9:
            seen.set()
        return used["bytes"]

    monkeypatch.setattr(memory, "memory_in_use", memory_in_use)
    with MemoryWatch(torch.device("cpu")) as watch:
        used["bytes"] = 9
        assert seen.wait(60)
        used["bytes"] = 6
    assert watch.peak == 9


def test_without_a_step_callback_it_is_that_after_painting():
    with MemoryWatch(torch.device("cpu")) as watch:
        pass
    assert watch.peak > 1e6


def test_unknown_is_none():
    with MemoryWatch(torch.device("meta")) as watch:
        watch.look()
    assert watch.peak is None
    assert cost([ImageRecord(0, 1.0, 1.0, None)])["peak_memory_bytes"] is None
    assert cost([ImageRecord(0, 1.0, 1.0, 0)])["peak_memory_bytes"] is None  # as records once said it


def test_cuda_peak_starts_anew(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", calls.append)
    forget_peak("cpu")
    forget_peak("cuda")
    assert calls == ["cuda"]


def test_processes_have_records_of_their_own(monkeypatch):
    names = set()
    for process in (1, 2):
        monkeypatch.setattr("os.getpid", lambda process=process: process)
        names.add(records_name(0))
    assert len(names) == 2


@pytest.mark.parametrize("failing", [False, True])
def test_the_thread_ends(failing):
    watch = MemoryWatch(torch.device("cpu"))
    try:
        with watch:
            if failing:
                raise ValueError
    except ValueError:
        pass
    assert not watch._thread.is_alive()
