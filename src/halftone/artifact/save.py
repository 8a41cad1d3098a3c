"""Writes an artifact: a diffusers folder with halftone.json at its root, atomically."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halftone.errors import ArtifactError, InputError
from halftone.files import file_sha256, write_atomically

MANIFEST = "halftone.json"
MANIFEST_VERSION = 1


def save(pipeline: Any, path: str | Path, record: Mapping[str, Any]) -> Path:
    """Saves a quantized pipeline; the folder appears whole or not at all.

    Args:
        pipeline: with an attached quantized denoiser.
        path: a folder that does not exist or is empty.
        record: the calibration record for halftone.json.

    Raises:
        InputError: the folder holds something.
        ArtifactError: it could not be written (no space left, no permission).
    """
    target = Path(path)
    check_free(target)
    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        pipeline.save_pretrained(part, safe_serialization=True)
        manifest = {
            "manifest_version": MANIFEST_VERSION,
            "files": {name: file_sha256(part / name) for name in _files(part)},
            "calibration": record,
        }
        write_atomically(part / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n")
        _sync(part)
        if target.exists():
            target.rmdir()
        os.replace(part, target)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        reason = "no space is left on the device" if error.errno == errno.ENOSPC else str(error)
        raise ArtifactError(
            f"The artifact could not be written to {target}: {reason}; nothing was left behind."
        ) from error
    return target


def check_free(target: Path) -> None:
    """Refuses a target that holds something.

    Raises:
        InputError: the path is a file or a non-empty folder.
    """
    if target.is_file():
        raise InputError(f"{target} is a file; choose another folder for the output.")
    if target.exists() and any(target.iterdir()):
        raise InputError(f"{target} is not empty; choose another folder for the output or empty this one.")


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
