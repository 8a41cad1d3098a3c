"""Loads the native library, once, if there is one that fits this package."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import NamedTuple

import torch

from halftone.native.build import library_path

__all__ = ["ABI_VERSION", "ENVIRONMENT_VARIABLE", "library", "unavailable"]

#: What `halftone_abi_version` has to say; counts changes of the C interface.
ABI_VERSION = 2
ENVIRONMENT_VARIABLE = "HALFTONE_NATIVE"
_REBUILD = "python -m halftone.native"


class _Loaded(NamedTuple):
    library: ctypes.CDLL | None
    reason: str | None


def library() -> ctypes.CDLL | None:
    """The loaded library, or None; see `unavailable`. Whoever calls a function declares its arguments."""
    return _load(os.environ.get(ENVIRONMENT_VARIABLE, "")).library


def unavailable() -> str | None:
    """None if the library is loaded, else the reason why not: it was not built, is stale or is switched off."""
    return _load(os.environ.get(ENVIRONMENT_VARIABLE, "")).reason


@functools.cache
def _load(switch: str) -> _Loaded:
    if switch == "0":
        return _Loaded(None, f"{ENVIRONMENT_VARIABLE}=0")
    return _open(library_path())


def _open(path: Path) -> _Loaded:
    """Loads a library and sees whether it is of this package's version."""
    if not path.exists():
        return _Loaded(None, f"the native library is not built ({_REBUILD})")
    try:
        loaded = ctypes.CDLL(str(path))
        version = loaded.halftone_abi_version()
        use_openmp = loaded.halftone_use_openmp
    except (OSError, AttributeError) as error:
        return _Loaded(None, f"the native library cannot be loaded: {error} ({_REBUILD})")
    if version != ABI_VERSION:
        return _Loaded(None, f"the native library has interface {version} instead of {ABI_VERSION} ({_REBUILD})")
    use_openmp(ctypes.c_void_p(_openmp_region()))
    return _Loaded(loaded, None)


def _openmp_region() -> int | None:
    """Address of ``GOMP_parallel`` in the OpenMP runtime that torch uses; None if there is none to be found."""
    try:
        return ctypes.cast(ctypes.CDLL(torch._C.__file__).GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None
