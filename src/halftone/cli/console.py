"""What all commands share: progress on stderr, results on stdout, errors in one sentence."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

WRONG_INPUT = 2
INTERRUPTED = 130
_SECONDS_BETWEEN_LINES = 2.0

Progress = Callable[[int, int], None]


def run_guarded(command: Callable[[], Any], *, debug: bool) -> int:
    """Runs a command; returns its exit code.

    Wrong input is one sentence and 2, Ctrl-C is 130, a fault of Halftone itself is 1 with what to report.
    """
    import typer

    from halftone.errors import HalftoneError

    # Typer has brought its own copy of click since 0.26; whichever it is, this is the base of its usage errors.
    usage_error: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
    try:
        result = command()
        return result if isinstance(result, int) else 0
    except HalftoneError as error:
        return _failed(str(error), WRONG_INPUT, debug)
    except usage_error as error:
        complain(f"{error.format_message()} (halftone COMMAND --help lists the options)")
        return WRONG_INPUT
    except (KeyboardInterrupt, typer.Abort):
        return _failed(
            "Interrupted; what is finished is kept, and the same command goes on from there.", INTERRUPTED, debug
        )
    except BrokenPipeError:  # the reader of our output has gone, as in `halftone inspect … | head`
        sys.stderr.close()
        return 0
    except MemoryError as error:
        return _failed(f"Out of memory ({error}); a smaller --batch-size needs less.", WRONG_INPUT, debug)
    except Exception as error:
        return _failed(f"{type(error).__name__}: {error} (a fault of Halftone itself; --debug shows where)", 1, debug)


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
    """The result for machines: one JSON object on stdout."""
    print(json.dumps(data, indent=2, ensure_ascii=False))


@contextmanager
def progress(what: str, quiet: bool = False) -> Iterator[Progress]:
    """A bar with remaining time on stderr; yields a function of (done, total). Silent where stderr is no terminal,
    but for a line at every tenth."""
    if quiet:
        yield lambda done, total: None
    elif sys.stderr.isatty():
        with _bar(what) as advance:
            yield advance
    else:
        yield _tenths(what)


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
