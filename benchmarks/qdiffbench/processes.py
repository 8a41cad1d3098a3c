"""Runs a command as users run it, over one or several processes, measures what it takes, and kills it if so asked."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from halftone.errors import InputError

ROOT = Path(__file__).parents[2]
EVERY = 0.1  # s


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        killed: whether it was killed here; else it succeeded.
        seconds: of wall time.
        peak_memory_bytes: most resident memory of each process, added up.
    """

    killed: bool
    seconds: float
    peak_memory_bytes: int


def run(command: Sequence[str], processes: int, log: Path, kill_when: Callable[[], bool] = lambda: False) -> Ended:
    """Runs it to its end, or until ``kill_when``; its processes share the work as under torchrun, each on one thread.

    Raises:
        InputError: it failed; with the last line it said.
    """
    started = time.perf_counter()
    running = _start(command, processes, log)
    peaks, codes, killed = dict.fromkeys(running, 0), dict[int, int](), False
    try:
        while len(codes) < len(running):
            for pid in running.keys() - codes.keys():
                found, status, usage = os.wait4(pid, os.WNOHANG)
                if found:
                    codes[pid], peaks[pid] = os.waitstatus_to_exitcode(status), _peak_bytes(usage.ru_maxrss)
            if not killed and any(codes.values()):
                break
            if not killed and len(codes) < len(running) and kill_when():
                killed = True
                _kill(running.keys() - codes.keys())
            time.sleep(EVERY)
    finally:
        _kill(running.keys() - codes.keys())
        for pid, process in running.items():  # they were waited for here, and not by their objects
            process.returncode = codes.get(pid, -signal.SIGKILL)
    if not killed and any(codes.values()):
        raise InputError(f"{' '.join(command)} failed: {_last_line(log)}")
    return Ended(killed, time.perf_counter() - started, sum(peaks.values()))


def _start(command: Sequence[str], processes: int, log: Path) -> dict[int, subprocess.Popen[bytes]]:
    shared = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        shared.pop(name, None)
    rooms = [shared] if processes == 1 else [{**shared, **_rank(rank, processes)} for rank in range(processes)]
    port = _free_port()
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        started = [
            subprocess.Popen(command, cwd=ROOT, env={**room, "MASTER_PORT": port}, stdout=file, stderr=file)
            for room in rooms
        ]
    return {process.pid: process for process in started}


def _rank(rank: int, processes: int) -> Mapping[str, str]:
    """What torchrun tells a process."""
    number = str(rank)
    return {"WORLD_SIZE": str(processes), "RANK": number, "LOCAL_RANK": number, "MASTER_ADDR": "127.0.0.1"}


def _free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def _kill(pids: set[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)  # a child that has not been waited for keeps its number


def _peak_bytes(maxrss: int) -> int:
    return maxrss if sys.platform == "darwin" else 1024 * maxrss


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
