"""Writing files so that they are whole or absent, hashing them, reading JSON."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from halftone.errors import InputError, OutputError

_SHARED_PART = re.compile(r"\.(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}\.part$")
_PATIENCE = 3600.0  # s; writing a file takes less than one


def output_folder(path: str | Path) -> Path:
    """Where an output that is named by `path` really lies: absolute, links followed, so that what is made beside it and
    moved into its place is on the same file system.

    Raises:
        InputError: it is the root of a file system.
    """
    folder = Path(os.path.realpath(path))
    if not folder.name:
        raise InputError(f"{folder} is no place for an output; choose a folder in it.")
    return folder


def write_atomically(path: Path, data: bytes | str, *, shared: bool = False) -> None:
    """Writes a file that is either whole or as it was before, also after a power cut.

    Args:
        shared: whether other processes may write it at the same time: each then has a temporary file of its own.
    """
    owner = f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"
    part = path.with_name(f"{path.name}.{owner}.part" if shared else f"{path.name}.part")
    try:
        with open(part, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_folder(path.parent)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def remove_stale_parts(folder: Path) -> None:
    """Removes what `write_atomically` of killed processes has left in or below a folder that processes share.

    A file stays while its writer may be alive: while there is such a process on this machine, or, if another machine
    wrote it, for an hour.
    """
    for part in folder.rglob("*.part"):
        if _is_stale(part):
            part.unlink(missing_ok=True)


def _is_stale(part: Path) -> bool:
    import psutil

    found = _SHARED_PART.search(part.name)
    if found is None:
        return False
    if found["machine"] == _machine():
        return not psutil.pid_exists(int(found["pid"]))
    try:
        return time.time() - part.stat().st_mtime > _PATIENCE
    except FileNotFoundError:
        return False  # its writer has just finished


def _machine() -> str:
    """Tells this machine from others that see the same folder."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


@contextmanager
def output_errors(what: str) -> Iterator[None]:
    """Turns what the system says when it cannot write into one sentence.

    Args:
        what: what is being written, to begin the sentence with ("The image 00003.png").

    Raises:
        OutputError: an OSError was raised within the context.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"{what} could not be written: {reason_of(error)}.") from error


def reason_of(error: Exception) -> str:
    """Why reading or writing failed, for a message; the libraries in Rust tell of a full disk in their text only."""
    if getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC})" in str(error):
        return "no space is left on the device"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split())


def parse_json(text: str) -> Any:
    """What JSON holds.

    Raises:
        ValueError: it is no JSON, or nested deeper than Python can read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def sync_tree(folder: Path) -> None:
    """Makes the system write a folder with all below it to the disk, the names as well as the contents."""
    for path in (*folder.rglob("*"), folder):
        if os.name == "nt" and path.is_dir():
            continue  # Windows opens no folders, and writes their entries by itself
        descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # nor does it sync what is read only
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Makes the system write a folder's own entries to the disk: until then a power cut may undo a rename in it, or do
    it after what came later. Where the system or the file system has no such thing, nothing is done.

    Raises:
        OSError: the disk failed.
    """
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that may be written to and not be read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
