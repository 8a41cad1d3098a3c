"""Files that are whole or absent."""

import errno
import hashlib
import os
import stat
from contextlib import nullcontext

import pytest

from halftone.errors import OutputError
from halftone.files import (
    file_sha256,
    output_errors,
    reason_of,
    remove_stale_parts,
    sync_folder,
    sync_tree,
    write_atomically,
)


def test_text_and_bytes_replace_what_was_there(tmp_path):
    path = tmp_path / "x.json"
    write_atomically(path, "é")
    assert path.read_bytes() == "é".encode()
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_failed_write_leaves_the_old_file_and_no_rest(broken, tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    path.write_text("old")

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OutputError) as caught, output_errors("The file x.json"):
        write_atomically(path, "new")
    assert str(caught.value) == "The file x.json could not be written: no space is left on the device."
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_new_file_is_not_seen_before_it_is_whole_and_its_name_is_on_the_disk_at_last(tmp_path, monkeypatch):
    path = tmp_path / "x"
    seen = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: seen.append((path.exists(), stat.S_ISDIR(os.fstat(descriptor).st_mode)))
    )
    write_atomically(path, "text")
    assert seen == [(False, False), (True, True)]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_folder_that_cannot_be_synced_is_no_error_and_a_broken_disk_is_one(number, tmp_path, monkeypatch):
    def fail(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with nullcontext() if number != errno.EIO else pytest.raises(OSError):
        sync_folder(tmp_path)


def test_reasons():
    assert reason_of(OSError(errno.EACCES, "Permission denied")) == "Permission denied"
    rust = Exception("Error while serializing: I/O error: No space left on device (os error 28)")
    assert reason_of(rust) == "no space is left on the device"
    assert reason_of(Exception("two\nlines")) == "two lines"


def test_sync_reaches_every_file_and_folder(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, flags: opened.append(path) or real(path, flags))
    sync_tree(tmp_path)
    assert {*opened} == {tmp_path, tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "file"}


def test_sha256_of_a_file_longer_than_a_chunk(tmp_path):
    data = os.urandom(3_000_001)
    (tmp_path / "x").write_bytes(data)
    assert file_sha256(tmp_path / "x") == hashlib.sha256(data).hexdigest()


def test_two_processes_write_one_file_through_temporary_files_of_their_own(tmp_path, monkeypatch):
    path, parts = tmp_path / "x", []
    monkeypatch.setattr(os, "fsync", lambda _: parts.extend(tmp_path.glob("x.*.part")))
    write_atomically(path, "one", shared=True)
    write_atomically(path, "two", shared=True)
    assert len(set(parts)) == 2 and path.read_text() == "two" and list(tmp_path.iterdir()) == [path]


def test_what_killed_writers_left_is_removed_and_what_living_ones_write_is_not(tmp_path, monkeypatch):
    import subprocess
    import sys

    script = (
        "import os, sys\nfrom pathlib import Path\nfrom halftone.files import write_atomically\n"
        "os.replace = lambda *_: os._exit(9)\n"  # as if killed between writing and renaming
        "write_atomically(Path(sys.argv[1]), 'text', shared=True)\n"
    )
    (tmp_path / "below").mkdir()
    for name in ("a.png", "below/b.npy"):
        assert subprocess.run([sys.executable, "-c", script, tmp_path / name], timeout=60).returncode == 9
    seen = []
    monkeypatch.setattr(os, "replace", lambda part, path: seen.append(part))
    write_atomically(tmp_path / "mine.png", "text", shared=True)  # of this process, which lives
    left = sorted(tmp_path.rglob("*.part"))
    assert len(left) == 3
    foreign = [tmp_path / f"{name}.0123abcd-1-0123abcd.part" for name in ("old", "new")]
    for path in (*foreign, tmp_path / "users-own.part"):
        path.touch()
    os.utime(foreign[0], (0, 0))
    remove_stale_parts(tmp_path)
    assert sorted(tmp_path.rglob("*.part")) == sorted([*seen, foreign[1], tmp_path / "users-own.part"])
    remove_stale_parts(tmp_path / "nowhere")
