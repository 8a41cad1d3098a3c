"""What the numbers depend on: the machine and the versions."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil

from benchmarks.cpu_speed.stages import version_of

_PACKAGES = ("halftone", "torch", "diffusers", "torchao", "openvino", "nncf", "onnx", "onnxruntime")
#: Features of which kernels depend, as Linux names them.
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16", "asimddp", "i8mm")


def describe_machine() -> dict[str, Any]:
    """Processor, its features, memory, system."""
    from halftone.qdiffbench.environment import processor_name

    return {
        "processor": processor_name(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "features": [name for name in _FEATURES if name in _flags()],
        "caches": _caches(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "virtual": "hypervisor" in _flags(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Of the packages that are installed."""
    return {name: version for name in _PACKAGES if (version := version_of(name)) is not None}


def commit() -> str | None:
    """Of the checkout that is measured, with "+" if it has changes; None if it is none."""
    root = Path(__file__).parents[2]
    try:
        found = [
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=30, check=True)
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return found[0].stdout.strip() + ("+" if found[1].stdout.strip() else "")


def _flags() -> set[str]:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def _caches() -> dict[str, str]:
    """Sizes by level, of the first processor's data caches."""
    sizes = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if _read(folder / "type").strip() != "Instruction":
            sizes[f"L{_read(folder / 'level').strip()}"] = _read(folder / "size").strip()
    return sizes


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
