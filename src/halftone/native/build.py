"""Builds the native library from ``src/*.cpp`` with a C++ compiler; needs nothing but Python's standard library.

The install runs it (hatch_build.py); after a change of a source, or once there is a compiler, so does::

    python -m halftone.native

Every file is compiled with the same flags for any CPU of the architecture: what needs more has
``__attribute__((target(...)))`` and is chosen at run time. HALFTONE_NATIVE_BUILD=0 leaves the library out.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

__all__ = ["BUILD_VARIABLE", "build", "compiler", "library_path", "source_digest"]

BUILD_VARIABLE = "HALFTONE_NATIVE_BUILD"
FOLDER = Path(__file__).parent
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-pthread")
_COMPILERS = ("c++", "g++", "clang++")
_SUFFIXES = {"darwin": ".dylib", "win32": ".dll"}
_SECONDS = 600


def library_path(folder: Path = FOLDER) -> Path:
    """Where the library is put: in the package, beside this file."""
    return folder / f"libhalftone_native{_SUFFIXES.get(sys.platform, '.so')}"


def source_digest(folder: Path = FOLDER) -> str:
    """Of all sources and headers; the library carries the one that it was built from."""
    digest = hashlib.sha256()
    for path in sorted((folder / "src").iterdir()):
        if path.suffix in (".cpp", ".h"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()[:16]


def compiler(environment: Mapping[str, str] = os.environ) -> list[str] | None:
    """The command that compiles C++: $CXX, else the first of the usual names that exists; None if there is none."""
    named = environment.get("CXX", "").strip()
    if named:
        return shlex.split(named)
    found = (shutil.which(name, path=environment.get("PATH")) for name in _COMPILERS)
    return next(([path] for path in found if path), None)


def build(folder: Path = FOLDER, environment: Mapping[str, str] = os.environ) -> str | None:
    """Builds the library; never raises for want of a compiler, because of one, or because the folder is read-only.

    A library from before is removed, where that can be, if it is not to be built, or cannot be.

    Returns:
        None if it was built, else the reason why not, in a few words.
    """
    reason = _build(folder, environment)
    if reason is not None:
        with suppress(OSError):
            library_path(folder).unlink(missing_ok=True)
    return reason


def _build(folder: Path, environment: Mapping[str, str]) -> str | None:
    if environment.get(BUILD_VARIABLE) == "0":
        return f"{BUILD_VARIABLE}=0"
    try:
        command = compiler(environment)
    except ValueError as error:
        return f"$CXX cannot be read: {error}"
    if command is None:
        return f"there is no C++ compiler ($CXX, {', '.join(_COMPILERS)})"
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as scratch:
            return _build_in(Path(scratch), command, folder)
    except OSError as error:
        return f"{folder} cannot be written to: {_explained(error)}"


def _build_in(scratch: Path, command: Sequence[str], folder: Path) -> str | None:
    target = library_path(folder)
    try:
        _compile(command, folder, scratch / target.name)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{command[0]} failed: {_explained(error)}"
    # Replaced, not written to: a process that has the old one mapped keeps it.
    os.replace(scratch / target.name, target)
    return None


def _compile(command: Sequence[str], folder: Path, target: Path) -> None:
    """Compiles the sources side by side, and links them."""
    digest = f'-DHALFTONE_SOURCE_DIGEST="{source_digest(folder)}"'
    sources = sorted((folder / "src").glob("*.cpp"))
    objects = [target.with_name(f"{source.stem}.o") for source in sources]

    def compile_one(source: Path, compiled: Path) -> None:
        _run([*command, *FLAGS, digest, "-c", str(source), "-o", str(compiled)])

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(compile_one, sources, objects))
    _run([*command, *FLAGS, "-shared", *map(str, objects), "-o", str(target)])


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=_SECONDS)


def _explained(error: Exception) -> str:
    """The first line of what went wrong that says "error", or else the last one."""
    if isinstance(error, subprocess.CalledProcessError):
        lines = ((error.stderr or "").strip() or f"exit status {error.returncode}").splitlines()
    else:
        lines = str(error).splitlines() or [type(error).__name__]
    return next((line for line in lines if "error" in line), lines[-1]).strip()
