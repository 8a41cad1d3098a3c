"""Quantizes in forked children and kills them. Run by test_resume.py: ``python crashes.py FOLDER``.

First it kills before the 1st, 2nd, 3rd … change of the file system, lets the same command run again and compares the
bytes with those of an undisturbed run; then it kills at random calls of modules and opened files, and compares again.
Prints one JSON line with the number of kills, or says what went wrong and exits with 1.

A helper of its own because forking is safe only in a process with a single thread, and so that the libraries are
imported once for all children.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from diffusers.utils import logging as diffusers_logging
from pipelines import tiny_sd
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers.utils import logging as transformers_logging

import halftone
from halftone.locks import only_writer
from halftone.quantization import check_target

diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
COMPLETE, KILLED = 0, -signal.SIGKILL


def command(folder: Path, steps: int) -> None:
    """What `halftone quantize` does, into folder/out with finished steps in folder/steps."""
    with only_writer(folder / "out"):
        check_target(folder / "out", folder / "steps")
        result = halftone.quantize(
            tiny_sd(scheduler="pndm" if steps > 2 else "ddim"),
            "pcr-w8a8",
            ["a red cube", "a blue ball", "x"][: steps - 1],
            num_inference_steps=steps,
            checkpoint_folder=folder / "steps",
        )
        result.save(folder / "out")


def fork(work: Callable[[], None]) -> int:
    """Process id of a child that does `work` and exits with 0."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except halftone.HalftoneError as error:
            print(error, file=sys.stderr)
            os._exit(1)
        os._exit(COMPLETE)
    return child


def outcome(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def die_before_change(number: int, folder: Path) -> None:
    """Makes this process kill itself before the change with this number, counted from 1, below a folder.

    Changes in the parts of a half-written artifact are left out: to whoever comes later they all look the same.
    """
    count = 0

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        path = str(arguments[0])
        inside = path.startswith(str(folder)) and path.count("/", len(str(folder))) <= 2
        if inside and (writes or event in CHANGES):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)


def count_events(folder: Path, act: Callable[[int], None] = lambda number: None) -> Callable[[], int]:
    """From now on counts, in this process, modules that are called and files below a folder that are opened.

    A process that is killed at one of these is killed at the same moment of its work however fast the machine is.

    Args:
        act: called with the number of each, from 1.

    Returns:
        How many there were.
    """
    count = 0

    def happened(*_: object) -> None:
        nonlocal count
        count += 1
        act(count)

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and str(arguments[0]).startswith(str(folder)):
            happened()

    sys.addaudithook(audit)
    register_module_forward_pre_hook(happened)
    return lambda: count


def strike_at(number: int, blow: int = signal.SIGKILL) -> Callable[[int], None]:
    """For `count_events`: this process sends itself a signal."""
    return lambda count: os.kill(os.getpid(), blow) if count == number else None


def check_after_kill(folder: Path, expected: dict[str, str]) -> None:
    """A folder that exists is whole, also right after a kill."""
    if (folder / "out").exists() and contents(folder / "out") != expected:
        raise SystemExit("a kill left half an artifact")


def at_every_write(root: Path, expected: dict[str, str], steps: int) -> int:
    number = 0
    while True:
        number += 1
        folder = root / f"write-{number}"
        folder.mkdir()

        def first(folder: Path = folder, number: int = number) -> None:
            die_before_change(number, folder)
            command(folder, steps)

        status = outcome(fork(first))
        if status == COMPLETE:
            return number - 1
        check_after_kill(folder, expected)
        finish(folder, expected, steps)
        shutil.rmtree(folder)


def at_random_moments(root: Path, expected: dict[str, str], steps: int, events: int) -> int:
    """Kills so early that no number of kills gets through: what is finished is never done again, and nothing else is
    left out."""
    chance, kills, times = random.Random(0), 0, 6
    for trial in range(2):
        folder = root / f"moment-{trial}"
        folder.mkdir()
        for _ in range(times):
            number = chance.randint(1, events // times)

            def killed(folder: Path = folder, number: int = number) -> None:
                count_events(folder, strike_at(number))
                command(folder, steps)

            if outcome(fork(killed)) != KILLED:
                raise SystemExit(f"{folder.name} ended before event {number}")
            check_after_kill(folder, expected)
            kills += 1
        finish(folder, expected, steps)
    return kills


def finish(folder: Path, expected: dict[str, str], steps: int) -> None:
    """Runs the command again. It may refuse only if the kill came after all was done, bar removing an empty folder and
    the lock."""
    left = {name: digest for name, digest in contents(folder).items() if name != ".out.lock"}
    done = left == {f"out/{name}": digest for name, digest in expected.items()}
    if outcome(fork(lambda: command(folder, steps))) != COMPLETE and not done:
        raise SystemExit(f"{folder.name} could not be continued")
    if contents(folder) != {f"out/{name}": digest for name, digest in expected.items()}:
        raise SystemExit(f"{folder.name} ended in other bytes, or left something behind")


def undisturbed(root: Path, steps: int) -> tuple[dict[str, str], int]:
    """What a run that nobody kills writes, and how many events it has."""
    folder, counted = root / f"undisturbed-{steps}", root / "events"
    folder.mkdir()

    def run() -> None:
        events = count_events(folder)
        command(folder, steps)
        counted.write_text(str(events()))

    if outcome(fork(run)) != COMPLETE:
        raise SystemExit("the undisturbed run failed")
    return contents(folder / "out"), int(counted.read_text())


def main(root: Path) -> None:
    torch.set_num_threads(1)
    expected, _ = undisturbed(root, 2)
    writes = at_every_write(root, expected, 2)
    expected, events = undisturbed(root, 6)
    print(json.dumps({"writes": writes, "moments": at_random_moments(root, expected, 6, events)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
