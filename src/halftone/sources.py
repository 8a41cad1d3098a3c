"""Opens a SOURCE: a local diffusers folder, a hub id, or bundled:NAME. Safetensors only, no remote code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from halftone.errors import InputError, suggest

BUNDLED_PREFIX = "bundled:"
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
        if not (path / "model_index.json").is_file():
            raise InputError(f"{path} is not a diffusers pipeline: it has no model_index.json.")
        return path
    if path.exists():
        raise InputError(f"{path} is a file; a diffusers folder is needed (single-file checkpoints must be converted).")
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise InputError(f"{text} is neither a folder, nor a hub id of the form owner/name, nor bundled:NAME.")
    return _downloaded(text)


def open_pipeline(
    source: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device | None = None
) -> Any:
    """The pipeline of a source, on `device`, floating-point parts in `dtype` (float32 if not given).

    Raises:
        InputError: it cannot be opened; says why.
    """
    folder = resolve_folder(source)
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            folder, torch_dtype=dtype or torch.float32, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        first = " ".join(str(error).split())[:300]
        raise InputError(f"{source} could not be opened as a diffusers pipeline: {first}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device) if device is not None else pipeline


def bundled_names() -> tuple[str, ...]:
    """Names of the models that ship with the package."""
    return tuple(sorted(path.name for path in _BUNDLED.iterdir() if path.is_dir())) if _BUNDLED.is_dir() else ()


def pipeline_facts(pipeline: Any) -> Mapping[str, Any]:
    """Names that identify what ran: pipeline and scheduler class."""
    return {"pipeline": type(pipeline).__name__, "scheduler": type(pipeline.scheduler).__name__}


def _bundled_folder(name: str) -> Path:
    if name not in bundled_names():
        raise InputError(f"There is no bundled model {name!r}; {suggest(name, bundled_names())}.")
    return _BUNDLED / name


def _downloaded(hub_id: str) -> Path:
    try:
        return Path(DiffusionPipeline.download(hub_id, use_safetensors=True))
    except Exception as error:  # the hub client raises many unrelated types; all mean the same here
        first = " ".join(str(error).split())[:300]
        raise InputError(f"{hub_id} is no folder here and could not be had from the hub: {first}") from error
