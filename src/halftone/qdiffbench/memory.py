"""The most memory that painting an image takes, looked at from beside it."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil
import torch

EVERY = 0.05  # s


def forget_peak(device: torch.device | str) -> None:
    """Lets an accelerator's peak start anew, so that it is not that of a model before."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


class MemoryWatch:
    """Within the context it looks at the memory in use every 50 ms; the pipeline need not call back.

    Attributes:
        peak: bytes; on CUDA the most that torch has allocated since `forget_peak`, on a CPU the most that the process
            occupied; None on devices of which it is not known.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak: int | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="halftone-memory", daemon=True)

    def __enter__(self) -> MemoryWatch:
        if self.device.type == "cpu":
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        if kind is None:
            self.look()

    def look(self) -> None:
        """Notes what is in use now."""
        found = memory_in_use(self.device)
        if found is not None:
            self.peak = max(self.peak or 0, found)

    def _sample(self) -> None:
        while not self._done.wait(EVERY):
            self.look()


def memory_in_use(device: torch.device) -> int | None:
    """Bytes: on CUDA the most that torch has allocated, on a CPU what the process occupies; None elsewhere."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss) if device.type == "cpu" else None
