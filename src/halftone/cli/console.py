"""What all commands share: progress on stderr, results on stdout, errors in one sentence."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from halftone.cli import interruption
from halftone.quantities import time_text

if TYPE_CHECKING:
    from halftone.calibration.stages import Advance

WRONG_INPUT = 2
INTERRUPTED = 130
_SECONDS_BETWEEN_LINES = 2.0
_FOUND_ON_DISK = 20  # times faster than the slowest is what was not computed, where nothing else tells

Progress = Callable[[int, int], None]
Line = Callable[[int, int, float | None], None]  # of (done, total, seconds left)


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
    with _display() as show:
        line, clock, before = show(what), Clock(_FOUND_ON_DISK), 0

        def advance(done: int, total: int) -> None:
            nonlocal before
            clock.note(done - before)
            before = done
            line(done, total, clock.left(total - done))

        yield _interruptible(advance)


@contextmanager
def stages() -> Iterator[Callable[[Advance], None]]:
    """The same for a calibration: a bar, or lines, for each of its stages; yields what `halftone.quantize` is to call
    after every piece."""
    with _display() as show:
        lines: dict[str, Line] = {}
        clocks: dict[str, Clock] = {}
        now = time.monotonic()

        def follow(advance: Advance) -> None:
            nonlocal now
            interruption.check()
            before, now = now, time.monotonic()
            clock = clocks.setdefault(advance.stage, Clock())
            if not advance.replayed:
                clock.add(now - before, advance.work)
            line = lines.get(advance.stage) or lines.setdefault(advance.stage, show(advance.stage))
            line(advance.done, advance.total, clock.left(advance.left))

        yield follow


class Clock:
    """Remaining time, from that of the pieces so far.

    Args:
        slack: pieces that were so many times faster than the slowest do not count: they were found on disk.
    """

    def __init__(self, slack: float = math.inf) -> None:
        self._slack = slack
        self._began = time.monotonic()
        self._pieces: list[tuple[float, float]] = []

    def note(self, work: float) -> None:
        """A piece has just been done; it began when the piece before it was done."""
        now = time.monotonic()
        self.add(now - self._began, work)
        self._began = now

    def add(self, seconds: float, work: float) -> None:
        """A piece took so long."""
        if work > 0:
            self._pieces.append((seconds, work))

    def left(self, work: float) -> float | None:
        """Seconds for so much more work; None if not known."""
        slowest = max((seconds / work for seconds, work in self._pieces), default=0.0)
        done = [(seconds, work) for seconds, work in self._pieces if seconds / work >= slowest / self._slack]
        return sum(seconds for seconds, _ in done) / sum(work for _, work in done) * work if done else None


def _interruptible(advance: Progress) -> Progress:
    """Between two steps even a Ctrl-C is heard that a library has swallowed."""

    def advance_or_stop(done: int, total: int) -> None:
        interruption.check()
        advance(done, total)

    return advance_or_stop


@contextmanager
def _display() -> Iterator[Callable[[str], Line]]:
    """Yields what makes a bar, or lines where stderr is no terminal, with a title."""
    if sys.stderr.isatty():
        with _bars() as show:
            yield show
    else:
        yield _tenths


@contextmanager
def _bars() -> Iterator[Callable[[str], Line]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.text import Text

    class Left(ProgressColumn):
        """Remaining time; rich's own looks back for 30 s only, which is less than a step may take."""

        def render(self, task: Task) -> Text:
            end = task.fields["end"]
            return Text("" if end is None else f"about {time_text(max(0.0, end - time.monotonic()))} left")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        Left(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:

        def show(what: str) -> Line:
            task = bars.add_task(what, total=None, end=None)

            def line(done: int, total: int, left: float | None) -> None:
                end = None if left is None or done == total else time.monotonic() + left
                bars.update(task, completed=done, total=total, end=end)

            return line

        yield show


def _tenths(what: str) -> Line:
    shown, last, untold = -1, float("-inf"), True

    def line(done: int, total: int, left: float | None) -> None:
        nonlocal shown, last, untold
        tenth, now = 10 * done // max(1, total), time.monotonic()
        due = now - last >= _SECONDS_BETWEEN_LINES or done == total
        if due and (tenth > shown or (untold and left is not None)):
            shown, last, untold = tenth, now, untold and left is None
            rest = f", about {time_text(left)} left" if left is not None and 0 < done < total else ""
            say(f"{what}: {done} of {total}{rest}")

    return line


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
