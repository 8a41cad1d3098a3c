"""Where a benchmark ran, for the record."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
from contextlib import suppress
from pathlib import Path

import torch

from halftone.qdiffbench.results import Environment

_LIBRARIES = ("halftone", "torch", "diffusers", "transformers")
#: What measures, and what a candidate may have been quantized with; named where it is installed.
_OTHERS = ("numpy", "pillow", "torch-fidelity", "lpips", "torchao", "optimum-quanto")


def library_versions() -> dict[str, str]:
    """Versions of Halftone and of the libraries that compute images."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def _installed(names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def describe_environment(device: str) -> Environment:
    """This machine, now."""
    accelerator = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else None
    return Environment(
        versions={"python": platform.python_version(), **library_versions(), **_installed(_OTHERS)},
        platform=f"{platform.system()} {platform.machine()}",
        processor=processor_name(),
        accelerator=accelerator,
        threads=torch.get_num_threads(),
        git_hash=_git_hash(),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def processor_name() -> str:
    """Of the CPU, as the system calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux; the platform module's word is what there is
    return platform.processor() or platform.machine()


def _git_hash() -> str | None:
    """Of the checkout that this package lies in, if it is Halftone's own."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
