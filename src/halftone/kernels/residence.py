"""Weights that a kernel has packed for itself need not stay in memory a second time."""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

__all__ = ["release"]

_MAPS = Path("/proc/self/maps")
#: Linux's number of "take these pages out of memory now"; Python's mmap module does not name it.
_MADV_PAGEOUT = 21


def release(tensor: Tensor) -> None:
    """Lets the operating system take a tensor out of memory, if it lies in a mapped file.

    Nothing changes for who uses the tensor: what is read again comes from the file, and pages that were written to are
    kept. So a layer's weights still are what they are for a state dict, an adapter or a copy, but after a model was
    loaded and run once, only what the kernels packed is resident. Elsewhere than on Linux, and for a tensor in memory
    that belongs to no file, nothing is done.
    """
    advise = _madvise()
    if advise is None or not tensor.is_cpu or not tensor.is_contiguous() or not _is_mapped_file(tensor.data_ptr()):
        return
    start, stop = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    first, last = -(-start // mmap.PAGESIZE), stop // mmap.PAGESIZE  # whole pages: the others are not its alone
    if first < last:
        # A kernel that is too old or does not want to says so, and the pages stay.
        advise(first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE, _MADV_PAGEOUT)


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """The system call, where there is one that knows this advice."""
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


def _is_mapped_file(address: int) -> bool:
    """Whether an address lies in a mapping that has a file behind it."""
    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        span, *rest = line.split(maxsplit=5)
        start, stop = (int(bound, 16) for bound in span.split("-"))
        if start <= address < stop:
            return len(rest) == 5 and rest[4].startswith("/")
    return False
