"""Runs commands in forked children and kills them. Run by test_interruptions.py: ``python crashes.py FOLDER``.

`halftone generate` is killed before its 1st, 2nd, 3rd … change of the file system, `halftone quantize` four times (and
interrupted four times) and `halftone bench` ten times at random events; after each the same command goes on.
Prints one JSON line with what was counted, or says what went wrong and exits with 1.

A helper of its own because forking is safe only in a process with a single thread, and so that the libraries are
imported once for all children.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "calibration"))

import crashes as calibration
import torch
from judges import tiny_clip
from pipelines import save_folder, tiny_sd

import halftone.qdiffbench.bench
import halftone.report.outcome  # noqa: F401
from halftone.cli.app import app
from halftone.cli.console import run_guarded

Check = Callable[[], None]


def fork(words: list[str], log: Path, before: Callable[[], Any] = lambda: None) -> int:
    """Process id of a child that runs a command, its output going to a file, and exits with its code.

    Args:
        before: called in the child first; the number that a function given back by it gives at the end goes to the file
            beside the output.
    """
    child = os.fork()
    if child == 0:
        with open(log, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)  # replaces the pool that forking broke, before loading threads race to do that
        events = before()
        code = run_guarded(lambda: app(words, standalone_mode=False), debug=False)
        if events is not None:
            log.with_suffix(".events").write_text(str(events()))
        sys.stderr.flush()
        os._exit(code)
    return child


def finish(words: list[str], log: Path, before: Callable[[], Any] = lambda: None) -> None:
    """Runs the command to its end."""
    code = calibration.outcome(fork(words, log, before))
    if code != 0:
        raise SystemExit(f"{' '.join(words)}: exit code {code}: {log.read_text()}")


def events_of(words: list[str], log: Path, root: Path) -> int:
    """Runs the command to its end; how many events it has (see `calibration.count_events`)."""
    finish(words, log, lambda: calibration.count_events(root))
    return int(log.with_suffix(".events").read_text())


def at_random_moments(
    words: list[str], root: Path, events: int, check: Check, times: int, blow: int = signal.SIGKILL
) -> int:
    """Kills the command so many times, each so early that it cannot have come to its end, then lets it; counts."""
    chance, log = random.Random(0), root / "log"
    expected = -signal.SIGKILL if blow == signal.SIGKILL else 130
    for _ in range(times):
        strike = calibration.strike_at(chance.randint(1, events // times), blow)
        code = calibration.outcome(fork(words, log, lambda strike=strike: calibration.count_events(root, strike)))
        check()
        if code != expected:
            raise SystemExit(f"{' '.join(words)}: exit code {code}: {log.read_text()}")
        if blow == signal.SIGINT and ("Traceback" in log.read_text() or "Interrupted" not in log.read_text()):
            raise SystemExit(f"Ctrl-C was not told: {log.read_text()}")
    finish(words, log)
    check()
    return times


class Watch:
    """Whatever is finished stays as it is: no image that has its record is painted again."""

    def __init__(self, *roots: Path) -> None:
        self.roots, self.seen = roots, dict[Path, int]()

    def __call__(self) -> None:
        for path, changed in self._finished().items():
            if self.seen.setdefault(path, changed) != changed:
                raise SystemExit(f"{path} was painted twice")
        for path in self.seen:
            if not path.exists():
                raise SystemExit(f"{path} was lost")

    def _finished(self) -> dict[Path, int]:
        found = {}
        for records in (path for root in self.roots for path in root.rglob("records-*.jsonl")):
            for line in records.read_text().splitlines():
                if line.endswith("}"):
                    image = records.parent / f"{json.loads(line)['index']:05d}.png"
                    found[image] = image.stat().st_mtime_ns
        return found


def quantize(root: Path) -> dict[str, int]:
    words = ["quantize", str(root / "sd"), "--prompts", str(root / "prompts.txt"), "--steps", "8", "--out"]
    events = events_of([*words, str(root / "whole")], root / "log", root)
    expected = calibration.contents(root / "whole")
    counts = {}
    for name, blow in (("kill", signal.SIGKILL), ("interrupt", signal.SIGINT)):
        out = root / f"quantized-{name}"

        def check(out: Path = out) -> None:
            if out.exists() and calibration.contents(out) != expected:
                raise SystemExit("half an artifact, or other bytes")

        counts[name] = at_random_moments([*words, str(out)], root, events, check, 4, blow)
        if not out.exists():
            raise SystemExit("no artifact")
        if out.with_name(out.name + ".unfinished").exists():
            raise SystemExit("finished steps were left behind")
    return counts


def generate(root: Path) -> int:
    """Before every single change of the file system."""
    words = ["generate", str(root / "sd"), "--prompts", str(root / "prompts.txt"), "--steps", "1", "--out"]
    finish([*words, str(root / "images")], root / "log")
    expected, number = calibration.contents(root / "images"), 0
    while True:
        number += 1
        out = root / "painted"
        before = lambda number=number: calibration.die_before_change(number, root)  # noqa: E731
        if calibration.outcome(fork([*words, str(out)], root / "log", before)) == 0:
            return number - 1
        listed = [json.loads(line)["file"] for line in _lines(out / "manifest.jsonl")]
        times = {name: (out / name).stat().st_mtime_ns for name in listed}
        finish([*words, str(out)], root / "log")
        if calibration.contents(out) != expected:
            raise SystemExit(f"killed before change {number}, the images are others")
        if any((out / name).stat().st_mtime_ns != changed for name, changed in times.items()):
            raise SystemExit(f"killed before change {number}, a finished image was painted again")
        shutil.rmtree(out)


def bench(root: Path) -> dict[str, int]:
    def words(name: str) -> list[str]:
        sets = ["--prompts", f"one={root / 'set.txt'}", "--num-images", "5", "--noise-images", "4", "--steps", "3"]
        where = ["--out", str(root / name), "--cache", str(root / f"{name}-cache"), "--clip", str(root / "clip")]
        return ["bench", str(root / "sd"), f"ours={root / 'whole'}", str(root / "sd"), *sets, *where]

    events = events_of(words("undisturbed"), root / "log", root)
    watch = Watch(root / "bench", root / "bench-cache")
    kills = at_random_moments(words("bench"), root, events, watch, 10)
    first, second = (_stable(root / name / "results.json") for name in ("undisturbed", "bench"))
    if first != second:
        raise SystemExit(f"other results:\n{first}\n{second}")
    for folder in {records.parent for records in root.glob("bench*/**/records-*.jsonl")}:
        indices = [json.loads(line)["index"] for one in folder.glob("records-*.jsonl") for line in _lines(one)]
        if sorted(indices) != list(range(len(indices))):
            raise SystemExit(f"{folder} has the images {indices}")
    if left := [*root.glob("bench*/**/*.part")]:
        raise SystemExit(f"left behind: {left}")
    return {"kills": kills, "images": len(watch.seen)}


VOLATILE = {"seconds_per_image", "seconds_per_step", "peak_memory_bytes", "created", "commands", "warnings"}


def _stable(path: Path) -> str:
    """results.json without what differs from run to run."""

    def strip(value: object) -> object:
        if isinstance(value, dict):
            return {key: strip(one) for key, one in value.items() if key not in VOLATILE}
        return [strip(one) for one in value] if isinstance(value, list) else value

    return json.dumps(strip(json.loads(path.read_text(encoding="utf-8"))), indent=1)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def main(root: Path) -> None:
    torch.set_num_threads(1)
    save_folder(tiny_sd(), root / "sd")
    tiny_clip(root / "clip")
    (root / "prompts.txt").write_text("a red cube\na blue ball\n")
    (root / "set.txt").write_text("".join(f"a red cube {letter}\n" for letter in "abcdefg"))
    counts = {"quantize": quantize(root), "generate": generate(root), "bench": bench(root)}
    print(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
