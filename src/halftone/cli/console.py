"""What all commands share: progress on stderr, results on stdout, errors in one sentence."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from halftone.cli import interruption

WRONG_INPUT = 2
INTERRUPTED = 130
_SECONDS_BETWEEN_LINES = 2.0

Progress = Callable[[int, int], None]


def run_guarded(command: Callable[[], Any], *, debug: bool) -> int:
    """Runs a command; returns its exit code.

    Wrong input is one sentence and 2, Ctrl-C is 130, a fault of Halftone itself is 1 with what to report.
    """
    import typer

    from halftone.errors import HalftoneError, is_out_of_memory
    from halftone.files import reason_of

    # Typer has brought its own copy of click since 0.26; whichever it is, this is the base of its usage errors.
    usage_error: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
    try:
        result = interruption.unmasked(command)
        sys.stdout.flush()  # here a reader that has gone, or a full disk, can still be told of
        if result == INTERRUPTED:  # typer turns Ctrl-C into the exit code, or into Abort, depending on its release
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except HalftoneError as error:
        return _failed(str(error), WRONG_INPUT, debug)
    except usage_error as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            say(error.format_message())
            return WRONG_INPUT
        complain(f"{error.format_message()} (halftone COMMAND --help lists the options)")
        return WRONG_INPUT
    except (KeyboardInterrupt, typer.Abort):
        return tell_interrupted()
    except BrokenPipeError:  # the reader of our output has gone, as in `halftone inspect … | head`
        _forget_stdout()
        return 0
    except OSError as error:  # whatever the system refuses where nobody had a better sentence
        _forget_stdout()
        return _failed(f"The system refuses to go on: {reason_of(error)}.", WRONG_INPUT, debug)
    except Exception as error:
        if is_out_of_memory(error):
            first = " ".join(str(error).split())[:200]
            return _failed(f"Out of memory; a smaller size or --batch-size needs less ({first}).", WRONG_INPUT, debug)
        return _failed(f"{type(error).__name__}: {error} (a fault of Halftone itself; --debug shows where)", 1, debug)


def _forget_stdout() -> None:
    """Lets what is still buffered go nowhere, or Python would try again at its end and complain itself."""
    try:
        sys.stdout.flush()
    except OSError:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def tell_interrupted() -> int:
    """Says so; returns the exit code."""
    complain("Interrupted; what is finished is kept, and the same command goes on from there.")
    return INTERRUPTED


def _failed(sentence: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    complain(sentence)
    return code


def complain(sentence: str) -> None:
    """One line on stderr, whatever characters are in it."""
    line = f"halftone: {' '.join(sentence.split())}\n"
    encoding = sys.stderr.encoding or "utf-8"
    sys.stderr.write(line.encode(encoding, "backslashreplace").decode(encoding))


def say(text: str) -> None:
    """A line for people, on stderr, so that stdout is the result's alone."""
    print(text, file=sys.stderr, flush=True)


def emit(data: Mapping[str, Any]) -> None:
    """The result for machines: one JSON object on stdout, in ASCII, whatever encoding stdout has."""
    print(json.dumps(data, indent=2))


@contextmanager
def progress(what: str) -> Iterator[Progress]:
    """A bar with remaining time on stderr; yields a function of (done, total). Where stderr is no terminal, a
    line at every tenth. Also with --json, since stdout is the result's alone: 2>/dev/null silences it."""
    if sys.stderr.isatty():
        with _bar(what) as advance:
            yield _interruptible(advance)
    else:
        yield _interruptible(_tenths(what))


def _interruptible(advance: Progress) -> Progress:
    """Between two steps even a Ctrl-C is heard that a library has swallowed."""

    def advance_or_stop(done: int, total: int) -> None:
        interruption.check()
        advance(done, total)

    return advance_or_stop


@contextmanager
def _bar(what: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _tenths(what: str) -> Progress:
    shown, started, last = -1, time.monotonic(), float("-inf")

    def advance(done: int, total: int) -> None:
        nonlocal shown, last
        tenth, now = 10 * done // max(1, total), time.monotonic()
        if tenth > shown and (now - last >= _SECONDS_BETWEEN_LINES or done == total):
            shown, last = tenth, now
            left = f", about {(now - started) / done * (total - done):.0f} s left" if 0 < done < total else ""
            say(f"{what}: {done} of {total}{left}")

    return advance


def quiet_libraries() -> None:
    """Keeps the chatter of diffusers and transformers away from people who did not ask for it."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"(diffusers|transformers|torch|huggingface_hub)(\..*)?")


def show_kernels() -> None:
    """With --debug: which kernel runs what, and why not a faster one."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("halftone").setLevel(logging.INFO)
