"""Ctrl-C, told as one also where a library makes another error of it or swallows it.

While libraries are imported and models are read, the KeyboardInterrupt may come out as an ImportError or as damaged
weights. So the handler notes it, and whoever sees an error asks here first what it came from.

Imports nothing of Halftone: it is there before anything else is.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

_Result = TypeVar("_Result")
_noticed = False


class Interruption(KeyboardInterrupt):
    """Ctrl-C. A kind of its own, because Python ends by the signal, whatever the exit code, once a plain
    KeyboardInterrupt has left a text that was run by `exec`, as dataclasses do."""


def watch() -> None:
    """From here on Ctrl-C is noted and raised, unless whoever started the process has it ignored."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _note)


def ignore() -> None:
    """For the end of the process, when its result is known and there is nothing left to interrupt."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def noticed() -> bool:
    """Whether there was a Ctrl-C."""
    return _noticed


def check() -> None:
    """Raises a Ctrl-C that was swallowed; asked for between the steps of long work."""
    if _noticed:
        raise Interruption


def unmasked(command: Callable[[], _Result]) -> _Result:
    """Runs a command; after a Ctrl-C all its errors are that Ctrl-C."""
    try:
        return command()
    except BaseException as error:
        if _noticed:
            raise Interruption from error
        raise


def _note(number: int, frame: FrameType | None) -> None:
    global _noticed
    _noticed = True
    raise Interruption
