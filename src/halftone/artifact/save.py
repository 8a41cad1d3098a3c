"""Writes an artifact: a diffusers folder with halftone.json at its root, atomically."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halftone.artifact.manifest import MANIFEST, MANIFEST_VERSION, check_files
from halftone.errors import ArtifactError, InputError
from halftone.files import file_sha256, reason_of, sync_tree, write_atomically


def save(pipeline: Any, path: str | Path, record: Mapping[str, Any]) -> Path:
    """Saves a quantized pipeline; the folder appears whole or not at all.

    Saving the same artifact again changes nothing, so that a run which was killed between this and its own end can
    simply be repeated.

    Args:
        pipeline: with an attached quantized denoiser.
        path: a folder that does not exist or is empty, or holds this very artifact.
        record: the calibration record for halftone.json.

    Raises:
        InputError: the folder holds something else.
        ArtifactError: it could not be written (no space left, no permission).
    """
    target = Path(os.path.abspath(path))
    if not (target / MANIFEST).is_file():
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
        if _same(part, target):
            return target
        check_free(target)
        sync_tree(part)
        if target.exists():
            target.rmdir()
        os.replace(part, target)
    except InputError:
        raise
    except Exception as error:  # safetensors and tokenizers have exceptions of their own for a full disk
        raise ArtifactError(
            f"The artifact could not be written to {target}: {reason_of(error)}; nothing was left behind."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
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


def _same(part: Path, target: Path) -> bool:
    """Whether the target holds, undamaged, what was just written beside it."""
    if not (target / MANIFEST).is_file() or (target / MANIFEST).read_bytes() != (part / MANIFEST).read_bytes():
        return False
    check_files(target)
    return True


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
