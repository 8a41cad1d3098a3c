"""Opens a SOURCE: a local diffusers folder, a hub id, or bundled:NAME. Safetensors only, no remote code."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError

from halftone.artifact.manifest import MANIFEST
from halftone.errors import InputError, suggest
from halftone.files import file_sha256

BUNDLED_PREFIX = "bundled:"
# What diffusers, transformers and safetensors raise on a folder that is not what they expect.
_OPENING_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    ImportError,
    RuntimeError,
    TypeError,
    AttributeError,
    SafetensorError,
)
_INDEX = "model_index.json"
_WHAT_MAKES_IMAGES = (".json", ".safetensors", ".txt", ".model")
_BUNDLED = Path(__file__).parent / "bundled"


def resolve_folder(source: str | Path) -> Path:
    """The local folder of a source; a hub id is downloaded (configuration and safetensors only).

    Raises:
        InputError: no such bundled model, folder or hub id.
    """
    text = str(source)
    if text.startswith(BUNDLED_PREFIX):
        return _bundled_folder(text.removeprefix(BUNDLED_PREFIX))
    path = Path(source)
    if path.is_dir():
        _check_index(path)
        return path
    if path.exists():
        raise InputError(f"{path} is a file; a diffusers folder is needed (single-file checkpoints must be converted).")
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise InputError(f"{text} is neither a folder, nor a hub id of the form owner/name, nor bundled:NAME.")
    return _downloaded(text)


def open_pipeline(
    source: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    progress_bar: bool = True,
) -> Any:
    """The pipeline of a source, on `device`, floating-point parts in `dtype` (float32 if not given).

    Args:
        progress_bar: False switches diffusers' own bar off, for commands that show their progress themselves.

    Raises:
        InputError: it cannot be opened; says why.
    """
    folder = resolve_folder(source)
    try:
        with warnings.catch_warnings():
            # diffusers 0.42 renames the argument; its old name is the one that every supported release knows.
            warnings.filterwarnings("ignore", message="`torch_dtype` is deprecated")
            pipeline = DiffusionPipeline.from_pretrained(
                folder, torch_dtype=dtype or torch.float32, use_safetensors=True, local_files_only=True
            )
    except _OPENING_ERRORS as error:
        first = " ".join(str(error).split())[:300]
        raise InputError(f"{source} could not be opened as a diffusers pipeline: {first}") from error
    if not progress_bar:
        pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device) if device is not None else pipeline


def bundled_names() -> tuple[str, ...]:
    """Names of the pipelines that ship with the package."""
    return tuple(sorted(path.parent.name for path in _BUNDLED.glob(f"*/{_INDEX}")))


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files in a model's folder that make its images, by their names there."""
    names = sorted(path for path in folder.rglob("*") if path.suffix in _WHAT_MAKES_IMAGES)
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in names}


def content_sha256(source: str | Path) -> str:
    """What tells a source's content, wherever it lies: of an artifact the SHA-256 of its halftone.json, which holds
    all files' digests, and else of the digests of the files that make images.

    Raises:
        InputError: no such bundled model, folder or hub id.
    """
    folder = resolve_folder(source)
    if (folder / MANIFEST).is_file():
        return file_sha256(folder / MANIFEST)
    return hashlib.sha256(json.dumps(file_digests(folder), sort_keys=True).encode()).hexdigest()


def pipeline_facts(pipeline: Any) -> Mapping[str, Any]:
    """Names that identify what ran: pipeline and scheduler class."""
    return {"pipeline": type(pipeline).__name__, "scheduler": type(pipeline.scheduler).__name__}


def _check_index(folder: Path) -> None:
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{folder} is not a diffusers pipeline: it has no {_INDEX}.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / _INDEX} cannot be read as JSON: {error}") from error
    if not isinstance(index, dict) or "_class_name" not in index:
        raise InputError(f"{folder} is not a diffusers pipeline: its {_INDEX} names no pipeline class.")
    # older releases of diffusers run what a local folder names here without being asked
    for name, value in index.items():
        module = value[0] if isinstance(value, list) and value else None
        if name == "_class_name" and not isinstance(value, str):
            raise InputError(f"{folder} names a pipeline class of its own, {value!r}; Halftone runs no model's code.")
        if isinstance(module, str) and (folder / name / f"{module}.py").exists():
            raise InputError(f"{folder / name / module}.py is code that came with the model; Halftone runs none.")


def _bundled_folder(name: str) -> Path:
    if name not in bundled_names():
        raise InputError(f"There is no bundled model {name!r}; {suggest(name, bundled_names())}.")
    return _BUNDLED / name


def _downloaded(hub_id: str) -> Path:
    try:
        return Path(DiffusionPipeline.download(hub_id, use_safetensors=True))
    except Exception as error:  # the hub client raises many unrelated types; all mean the same here
        first = " ".join(str(error).split())[:300]
        raise InputError(
            f"There is no folder {hub_id} here; taken for a hub id, it could not be had from the hub either: {first}"
        ) from error
