"""One writer at a time, also across processes, and nothing stays behind."""

import errno
import os
import subprocess
import sys
import threading

import pytest

from halftone import locks
from halftone.errors import InputError
from halftone.locks import only_writer

HOLD = "import sys; from pathlib import Path; from halftone.locks import only_writer\n" + (
    "with only_writer(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
)


def _holder(output):
    """A process that holds the lock until its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, output], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_another_process_is_refused_until_the_first_ends(tmp_path):
    process = _holder(tmp_path / "out")
    said = rf"^Another command is writing to {tmp_path}/out; let it end"
    with pytest.raises(InputError, match=said), only_writer(tmp_path / "out"):
        pytest.fail("two writers")
    with only_writer(tmp_path / "other"):
        pass
    process.communicate()
    with only_writer(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_killed_holder_locks_nobody_out(tmp_path):
    process = _holder(tmp_path / "out")
    process.kill()
    process.communicate()
    assert (tmp_path / ".out.lock").exists()
    with only_writer(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_its_holder_may_ask_again_and_another_thread_not(tmp_path):
    refused = []

    def ask():
        try:
            with only_writer(tmp_path / "out"):
                pass
        except InputError as error:
            refused.append(error)

    with only_writer(tmp_path / "out") as first, only_writer(tmp_path / "out") as second:
        assert first and second
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    assert len(refused) == 1


def test_folders_above_are_made_and_stay_only_with_something_in_them(tmp_path):
    with only_writer(tmp_path / "a" / "b" / "out"):
        (tmp_path / "a" / "kept").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "kept"]


@pytest.mark.parametrize("function", ["open", "_lock"])
def test_where_nothing_can_be_locked_work_goes_on(function, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(os if function == "open" else locks, function, refuse)
    with only_writer(tmp_path / "out") as locked:
        assert not locked


def test_a_file_that_its_holder_removed_in_between_is_no_lock(tmp_path, monkeypatch):
    real, calls = locks._lock, []

    def lock(descriptor):
        real(descriptor)
        calls.append(descriptor)
        if len(calls) == 1:
            (tmp_path / ".out.lock").unlink()

    monkeypatch.setattr(locks, "_lock", lock)
    with only_writer(tmp_path / "out"):
        assert len(calls) == 2 and (tmp_path / ".out.lock").exists()
