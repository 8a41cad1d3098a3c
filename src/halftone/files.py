"""Writing files so that they are whole or absent, and hashing them."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from halftone.errors import OutputError


def write_atomically(path: Path, data: bytes | str, *, shared: bool = False) -> None:
    """Writes a file that is either whole or as it was before, also after a power cut.

    Args:
        shared: whether other processes may write it at the same time: each then has a temporary file of its own.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part" if shared else f"{path.name}.part")
    try:
        with open(part, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


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
    """Why writing failed, for a message; the libraries in Rust tell of a full disk in their text only."""
    if getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC})" in str(error):
        return "no space is left on the device"
    return " ".join(str(error).split())


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


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
