"""A child process: makes a stage, or builds one peer and then runs a call whenever it is told to.

Messages are lines of JSON: requests on stdin, answers on stdout. Between calls it waits for the next line; threads of
the libraries may spin for some milliseconds after a call, which the driver waits out and checks.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import psutil

from benchmarks.cpu_speed.reasons import reason_of, without_paths

Answer = dict[str, Any]
#: Calls that are shorter (s) are preceded by one that is not timed in every turn: caches are cold after others' calls.
_SHORT = 0.25


def main() -> None:
    """Command line: the task (stage or peer), its name, the job as JSON."""
    task, name, job = sys.argv[1:4]
    answers = _claim_stdout()
    _end_with_parent()
    try:
        (_make_stage if task == "stage" else _serve)(name, job, _sender(answers))
    except BaseException as error:
        traceback.print_exc()
        _sender(answers)({"failed": reason_of(error)})
        sys.exit(1)


def _claim_stdout() -> TextIO:
    """The pipe to the parent; what libraries print goes to the log instead."""
    private = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return private


def _sender(answers: TextIO) -> Callable[[Answer], None]:
    def send(answer: Answer) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    return send


def _end_with_parent() -> None:
    """Nobody would read what a worker computes after its driver was killed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _make_stage(name: str, job_text: str, send: Callable[[Answer], None]) -> None:
    import torch

    from benchmarks.cpu_speed.jobs import Job
    from benchmarks.cpu_speed.peers import stages_of
    from benchmarks.cpu_speed.stages import run

    job = Job.from_json(job_text)
    torch.set_num_threads(job.threads)
    run(stages_of(job.of)[name], job)
    send({"made": name, "peak_gib": peak_gib()})


def _serve(name: str, job_text: str, send: Callable[[Answer], None]) -> None:
    """Builds a peer and answers requests until there are no more."""
    from benchmarks.cpu_speed.operators import record_native_calls

    profiled = os.environ.get("HALFTONE_CPU_SPEED_PROFILE") == "1"
    if profiled:
        record_native_calls()
    import torch

    from benchmarks.cpu_speed.jobs import Job
    from benchmarks.cpu_speed.peers import peer_named

    job = Job.from_json(job_text)
    torch.set_num_threads(job.threads)
    built = peer_named(name, job.of).build(job)
    loaded = _resident_gib()
    calls = {variant: _Timed(call) for variant, call in built.calls.items()}
    variants: dict[str, Answer] = {}
    started = 0.0
    for variant, timed in list(calls.items()):
        try:
            variants[variant] = timed.begin(_error_against_reference(job))
            started = started or timed.first_done
        except Exception as error:  # of any library; the other variants may well run
            traceback.print_exc()
            built.failures[variant] = reason_of(error)
            del calls[variant]
    send({
        "ready": variants,
        "start_s": started,
        "failures": {variant: without_paths(reason) for variant, reason in built.failures.items()},
        "loaded_gib": loaded,
        "peak_gib": peak_gib(),
        "notes": built.notes(),
    })  # fmt: skip
    for line in sys.stdin:
        request = json.loads(line)
        if "turn" in request:
            send({"seconds": calls[request["turn"]].turn(request["least"]), "peak_gib": peak_gib()})
        elif "profile" in request:
            from benchmarks.cpu_speed.operators import profile

            call = calls[request["profile"]].call
            call.prepare()
            send({"profile": profile(call.run)})


class _Timed:
    """A call and how long it takes.

    Attributes:
        pace: seconds of the latest one.
        first_done: seconds from the start of the process to the end of the first call.
    """

    def __init__(self, call: Any) -> None:
        self.call = call
        self.pace = self.first_done = 0.0

    def begin(self, error_of: Callable[[Any, int | None], float | None]) -> Answer:
        """The first calls, which may compile and pack; compares the output with the reference."""
        self.call.prepare()
        first, output = _clocked(self.call.run)
        self.first_done = time.time() - psutil.Process().create_time()
        error = error_of(output, self.call.timestep)
        self.pace, _ = _clocked(self.call.run)
        return {"first_s": first, "second_s": self.pace, "error": error, "operations": self.call.operations}

    def turn(self, least: float) -> float:
        """Mean seconds of as many calls as last ``least``, but of one at least."""
        self.call.prepare()
        if self.pace < _SHORT:
            self.call.run()
        times: list[float] = []
        while sum(times) < least or not times:
            times.append(_clocked(self.call.run)[0])
        self.pace = statistics.fmean(times)
        return self.pace


def _clocked(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    output = run()
    return time.perf_counter() - start, output


def _error_against_reference(job: Any) -> Callable[[Any, int | None], float | None]:
    """Tells how far an output is from full precision's: the norm of the difference over the norm."""
    import numpy as np

    from benchmarks.cpu_speed.unets import as_array, reference_file

    def error(output: Any, timestep: int | None) -> float | None:
        if timestep is None:
            return None
        exact = np.load(reference_file(job.folder("reference", of_weights=False), timestep)).astype(np.float64)
        found = as_array(output).astype(np.float64)
        if found.shape != exact.shape:
            raise ValueError(f"its output has shape {found.shape} instead of {exact.shape}")
        return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))

    return error


def peak_gib() -> float:
    """The most memory that this process has occupied, files that are mapped included."""
    status = _status()
    if "VmHWM" in status:
        return status["VmHWM"] / 2**20
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**30 if sys.platform == "darwin" else 2**20)


def _resident_gib() -> float:
    return float(psutil.Process().memory_info().rss) / 2**30


def _status() -> Mapping[str, int]:
    """Linux's numbers of kilobytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {}
    parts = [line.split() for line in lines]
    return {words[0].rstrip(":"): int(words[1]) for words in parts if len(words) == 3 and words[2] == "kB"}


if __name__ == "__main__":
    main()
