"""Child processes as the driver sees them: started, asked, watched for memory and time, and ended for certain."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from benchmarks.cpu_speed.jobs import Job

#: Memory of the machine that has to stay free (GiB): a child that takes more is ended before the system ends another.
RESERVE_GIB = 1.0
_GIB = 2**30
_LOOK_EVERY = 0.5  # s
_ENDING = 5.0  # s that a child gets to end by itself
_ROOT = Path(__file__).parents[2]


class ChildFailed(Exception):
    """A child could not do what it was asked to; says why, in a sentence."""


class Child:
    """One child process; a context, at whose end the process has ended too.

    Args:
        task: "stage" or "peer".
        name: of that.
        job: model, threads, folder.
        log: file that gets what the process and its libraries print.
        time_limit: seconds that an answer may take.
        environment: variables besides those of this process.
    """

    def __init__(
        self,
        task: str,
        name: str,
        job: Job,
        log: Path,
        time_limit: float,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.time_limit = name, time_limit
        self.started = time.perf_counter()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.cpu_speed.worker", task, name, job.to_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=_ROOT,
                env={**os.environ, **child_environment(job), **(environment or {})},
                start_new_session=True,  # Ctrl-C reaches the driver, which ends its children
            )
        self._watched = psutil.Process(self._process.pid)

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(at_once=kind is not None)

    def ask(self, request: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The answer to a request, or the one that the child gives of itself.

        Raises:
            ChildFailed: it says so, has ended, takes too long or too much memory.
        """
        if request is not None:
            self._send(request)
        answer: dict[str, Any] = json.loads(self._line())
        if "failed" in answer:
            self.end()
            raise ChildFailed(answer["failed"])
        return answer

    def cpu_seconds(self) -> float:
        """Processor time of the process and those that it started."""
        try:
            family = [self._watched, *self._watched.children(recursive=True)]
            times = [one.cpu_times() for one in family]
        except psutil.Error:  # one has ended in the meantime
            return 0.0
        return sum(one.user + one.system for one in times)

    def end(self, at_once: bool = False) -> None:
        """Ends the process and all that it started."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        if not at_once:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_ENDING)
        with suppress(ProcessLookupError, PermissionError):  # all of them have ended
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _send(self, request: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise ChildFailed(self._how_it_ended()) from None

    def _line(self) -> bytes:
        """The next line of its output, watching meanwhile."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + self.time_limit
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not selector.select(_LOOK_EVERY):
                self._check(deadline)
        line = self._process.stdout.readline()
        if not line:
            raise ChildFailed(self._how_it_ended())
        return line

    def _check(self, deadline: float) -> None:
        free = psutil.virtual_memory().available / _GIB
        if free < RESERVE_GIB:
            taken = self._watched.memory_info().rss / _GIB
            self.end(at_once=True)
            raise ChildFailed(f"it took {taken:.1f} GiB and left the machine less than {RESERVE_GIB:g} GiB")
        if time.monotonic() > deadline:
            self.end(at_once=True)
            raise ChildFailed(f"it took more than {self.time_limit / 60:.0f} minutes")

    def _how_it_ended(self) -> str:
        self.end()
        status = self._process.returncode
        if status == -signal.SIGKILL:
            return "it was killed, most likely by the system for want of memory"
        return f"its process ended with status {status}"


def child_environment(job: Job) -> dict[str, str]:
    """How many threads libraries take; no downloads and no reports."""
    return {
        "OMP_NUM_THREADS": str(job.threads),
        "MKL_NUM_THREADS": str(job.threads),
        # LLVM's OpenMP spins for 200 ms after a parallel region unless told otherwise, GNU's for some milliseconds
        "KMP_BLOCKTIME": "20",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
        "NNCF_TELEMETRY_DISABLED": "1",
        "CI": "1",  # OpenVINO's packages send no telemetry then
    }
