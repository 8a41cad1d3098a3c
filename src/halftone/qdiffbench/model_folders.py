"""Where a metric's model lies: a local folder, ``bundled:NAME`` or a hub id; safetensors only, no remote code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError

from halftone.errors import InputError
from halftone.files import file_sha256
from halftone.sources import BUNDLED_PREFIX, bundled_folder

_CONFIG = "config.json"
_WANTED = ["*.json", "*.safetensors", "merges.txt", "vocab.txt"]
# what belongs to the tokenizer or to other programs, and what a run may write beside the weights
_WHAT_MAKES_FEATURES = (_CONFIG, "preprocessor_config.json", "processor_config.json")

Loaded = TypeVar("Loaded")


def resolve_model(source: str) -> Path:
    """The local folder of a model; a hub id is downloaded (configuration, tokenizer and safetensors).

    Raises:
        InputError: there is no such model, or it has no configuration or no safetensors.
    """
    if source.startswith(BUNDLED_PREFIX):
        folder = bundled_folder(source.removeprefix(BUNDLED_PREFIX), _CONFIG)
    elif Path(source).is_dir():
        folder = Path(source)
    elif source.count("/") == 1 and not source.startswith((".", "/", "~")) and not Path(source).exists():
        folder = _downloaded(source)
    else:
        raise InputError(f"{source} is neither a folder, nor a hub id of the form owner/name, nor bundled:NAME.")
    for pattern in (_CONFIG, "*.safetensors"):
        if not any(folder.glob(pattern)):
            raise InputError(f"{source} is not a model folder with safetensors: it has no {pattern}.")
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """The model's ``config.json``.

    Raises:
        InputError: it is not a JSON object.
    """
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / _CONFIG} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{folder / _CONFIG} does not hold a JSON object.")
    return config


def folder_sha256(folder: Path) -> str:
    """SHA-256 over names and contents of what makes features: weights, model and image processor configuration."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors" or path.name in _WHAT_MAKES_FEATURES:
            digest.update(f"{path.name}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def load_part(make: Callable[..., Loaded], folder: Path, what: str, **arguments: Any) -> Loaded:
    """``make(folder, …)`` with the many errors of a model library turned into one sentence.

    Raises:
        InputError: it failed; says why.
    """
    try:
        return make(folder, local_files_only=True, **arguments)
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError) as error:
        first = " ".join(str(error).split())[:300]
        raise InputError(f"The {what} in {folder} could not be loaded: {first}") from error


def load_model(make: Callable[..., Any], folder: Path, what: str) -> Any:
    """:func:`load_part` of a model, all of whose weights must be there: the library would draw missing ones at random.

    Raises:
        InputError: it failed, or a weight is missing; says which.
    """
    # an explicit dtype, since half-precision weights are kept by default
    model, report = load_part(
        make, folder, what, use_safetensors=True, torch_dtype=torch.float32, output_loading_info=True
    )
    missing = sorted(report["missing_keys"])
    if missing:
        raise InputError(f"The {what} in {folder} lacks {len(missing)} of its weights, such as {missing[0]}.")
    return model


def _downloaded(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_WANTED))
    except Exception as error:  # the hub client raises many unrelated types; all mean the same here
        first = " ".join(str(error).split())[:300]
        raise InputError(f"{hub_id} is no folder here and could not be had from the hub: {first}") from error
