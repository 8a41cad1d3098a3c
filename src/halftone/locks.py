"""One writer at a time: an exclusive lock on a file, for commands that would spoil each other's output."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from halftone.errors import InputError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

# (lock file, thread that holds it) -> whether it could really be locked
_held: dict[tuple[Path, int], bool] = {}


@contextmanager
def only_writer(output: Path, lock: Path | None = None) -> Iterator[bool]:
    """Within it, no other command that asks for the same lock writes to `output`.

    Who holds the lock may ask again: a command holds it to its end and calls functions that ask for it too. The system
    lets go of it when a process ends, however that happens, so that a lock file which a kill left behind does no harm.

    Args:
        output: a file or folder, for the message.
        lock: the file to lock, removed at the end; ``.NAME.lock`` beside the output if not given. Missing folders above
            it are made, and removed if nothing has come into them.

    Yields:
        Whether others are locked out: a file system may have no locks.

    Raises:
        InputError: another command is writing there.
    """
    lock = lock or output.with_name(f".{output.name}.lock")
    holder = (Path(os.path.realpath(lock)), threading.get_ident())
    if holder in _held:
        yield _held[holder]
        return
    made = [folder for folder in lock.parents if not folder.exists()]
    descriptor = _acquired(lock, output)
    _held[holder] = descriptor is not None
    try:
        yield _held[holder]
    finally:
        del _held[holder]
        if descriptor is not None:
            _release(descriptor, lock)
        for folder in made:
            with suppress(OSError):  # something is in it
                folder.rmdir()


def _acquired(lock: Path, output: Path) -> int | None:
    """Descriptor of the locked file, or None where nothing can be locked."""
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            if lock.parent.is_dir():
                return None
            continue  # another command has just removed the folder that it had made
        except OSError:
            return None  # nothing can be written here, which what is written next says in better words
        try:
            _lock(descriptor)
        except (BlockingIOError, PermissionError) as error:
            os.close(descriptor)
            raise InputError(
                f"Another command is writing to {output}; let it end, or choose another folder for the output."
            ) from error
        except OSError:  # a file system without locks
            os.close(descriptor)
            return None
        if _is(lock, descriptor):
            return descriptor
        os.close(descriptor)  # its holder has removed it in between: what is locked has no name any more


def _is(lock: Path, descriptor: int) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.stat(lock), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _release(descriptor: int, lock: Path) -> None:
    """Removes the file while it is still locked; Windows removes no open file, nor one that another has opened."""
    if sys.platform != "win32":
        lock.unlink(missing_ok=True)
    os.close(descriptor)
    if sys.platform == "win32":
        with suppress(OSError):
            lock.unlink(missing_ok=True)
