"""Writes an artifact: a diffusers folder with halftone.json at its root, atomically."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import nn

from halftone.artifact.load import artifact_config
from halftone.artifact.manifest import MANIFEST, MANIFEST_VERSION, check_files
from halftone.artifact.packed_weights import packed_state_dict
from halftone.denoiser import find_denoiser
from halftone.errors import ArtifactError, InputError
from halftone.files import (
    file_sha256,
    output_errors,
    output_folder,
    reason_of,
    sync_folder,
    sync_tree,
    write_atomically,
)
from halftone.locks import only_writer

_ORIGINS = {"_name_or_path", "name_or_path"}


def save(pipeline: Any, path: str | Path, record: Mapping[str, Any]) -> Path:
    """Saves a quantized pipeline; the folder appears whole or not at all.

    Saving the same artifact again changes nothing, so that a run which was killed between this and its own end can
    simply be repeated.

    Args:
        pipeline: with an attached quantized denoiser.
        path: a folder that does not exist or is empty, or holds this very artifact; links are followed.
        record: the calibration record for halftone.json.

    Raises:
        InputError: the folder holds something else, cannot be replaced, or another command is writing to it.
        ArtifactError: it could not be written (no space left, no permission).
    """
    target = output_folder(path)
    with only_writer(target) as locked:
        if locked:  # or what is there may be another's work
            _remove_stale_parts(target)
        _save(pipeline, target, record)
        with output_errors(f"The folder {target.parent}"):
            sync_folder(
                target.parent
            )  # whoever removes the finished steps now may not do it before the artifact is there
        return target


def _save(pipeline: Any, target: Path, record: Mapping[str, Any]) -> None:
    if not (target / MANIFEST).is_file():
        check_free(target)
    # a name of its own, for file systems on which nobody can be locked out
    part = target.with_name(f".{target.name}.{secrets.token_hex(2)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with packed_state_dict(find_denoiser(pipeline).module, artifact_config(pipeline)), _written_here(pipeline):
            pipeline.save_pretrained(part, safe_serialization=True)
        _check_whole(pipeline, part)
        _forget_origin(part)
        manifest = {
            "manifest_version": MANIFEST_VERSION,
            "files": {name: file_sha256(part / name) for name in _files(part)},
            "calibration": record,
        }
        write_atomically(part / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n")
        if _same(part, target):
            return
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


def check_free(target: Path) -> None:
    """Refuses a target that holds something, or that no finished folder can be moved into the place of.

    Raises:
        InputError: the path is a file, a non-empty folder, a mount point or the current folder.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError(f"{target} is a file; choose another folder for the output.")
    if any(target.iterdir()):
        raise InputError(f"{target} is not empty; choose another folder for the output or empty this one.")
    if target.is_mount():
        raise InputError(f"{target} is a mount point, which nothing can replace; choose a folder in it for the output.")
    if _is_current(target):  # whoever is in it would be left in a folder that is no more
        raise InputError(f"{target} is the current folder, which is kept; choose a folder in it for the output.")


def _is_current(folder: Path) -> bool:
    with suppress(FileNotFoundError):  # the current folder has been removed
        return folder.samefile(os.curdir)
    return False


@contextmanager
def _written_here(pipeline: Any) -> Iterator[None]:
    """Within the context every process writes what it saves. Of several processes of a group transformers lets only the
    first one write, for models that all of them share; here each makes artifacts of its own."""
    models = [part for part in pipeline.components.values() if hasattr(part, "should_save_on_this_rank")]
    for model in models:
        model.__dict__["should_save_on_this_rank"] = lambda is_main_process: is_main_process
    try:
        yield
    finally:
        for model in models:
            model.__dict__.pop("should_save_on_this_rank", None)


def _check_whole(pipeline: Any, part: Path) -> None:
    """Libraries have reasons of their own not to write something; none of them is one for half an artifact.

    Raises:
        ArtifactError: a component with weights has no file of them.
    """
    for name, component in pipeline.components.items():
        has_weights = isinstance(component, nn.Module) and next(component.parameters(), None) is not None
        if has_weights and not any((part / name).glob("*.safetensors")):
            raise ArtifactError(f"the weights of the {name} were not written")


def _remove_stale_parts(target: Path) -> None:
    """Removes what killed runs have left beside the target."""
    own = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{4}}\.part")
    for path in target.parent.iterdir():
        if own.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _forget_origin(part: Path) -> None:
    """Takes out where the components were opened from, which diffusers and transformers note in their configurations:
    it tells nothing of the model, and something of whoever made the artifact."""
    for path in (part / "model_index.json", *part.glob("*/*config.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        found = _ORIGINS & config.keys() if isinstance(config, dict) else ()
        if found:
            kept = {key: value for key, value in config.items() if key not in found}
            path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _same(part: Path, target: Path) -> bool:
    """Whether the target holds, undamaged, what was just written beside it."""
    if not (target / MANIFEST).is_file() or (target / MANIFEST).read_bytes() != (part / MANIFEST).read_bytes():
        return False
    check_files(target)
    return True


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
