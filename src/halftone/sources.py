"""Opens a SOURCE: a local diffusers folder, a hub id, or bundled:NAME. Safetensors only, no remote code."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError

from halftone.artifact.manifest import MANIFEST
from halftone.errors import InputError, suggest
from halftone.files import file_sha256, parse_json
from halftone.source_weights import choose_variant, noting_missing_tensors, opened_files

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
BUNDLED = Path(__file__).parent / "bundled"


def resolve_folder(source: str | Path) -> Path:
    """The local folder of a source; a hub id is downloaded (configuration and safetensors only).

    Raises:
        InputError: no such bundled model, folder or hub id.
    """
    text = str(source)
    if text.startswith(BUNDLED_PREFIX):
        return bundled_folder(text.removeprefix(BUNDLED_PREFIX), _INDEX)
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

    Where a component has its weights as a variant alone (fp16), that is opened.

    Args:
        progress_bar: False switches diffusers' own bar off, for commands that show their progress themselves.

    Raises:
        InputError: it cannot be opened; says why.
    """
    folder = resolve_folder(source)
    variant = choose_variant(_components(folder))
    try:
        with warnings.catch_warnings(), noting_missing_tensors() as missing:
            # diffusers 0.42 renames the argument; its old name is the one that every supported release knows.
            warnings.filterwarnings("ignore", message="`torch_dtype` is deprecated")
            pipeline = DiffusionPipeline.from_pretrained(
                folder,
                torch_dtype=dtype or torch.float32,
                use_safetensors=True,
                local_files_only=True,
                variant=variant,
            )
        _check_whole(source, missing)
        if device is not None:
            pipeline.to(device)
    except _OPENING_ERRORS as error:
        first = " ".join(str(error).split())[:300]
        raise InputError(f"{source} could not be opened as a diffusers pipeline: {first}") from error
    if not progress_bar:
        pipeline.set_progress_bar_config(disable=True)
    return pipeline


def weight_bytes(folder: Path, component: str) -> int:
    """Size of the files with a component's weights, of a pipeline's folder, that `open_pipeline` opens."""
    files = opened_files(folder / component, choose_variant(_components(folder)))
    return sum(path.stat().st_size for path in files)


def _check_whole(source: str | Path, missing: Mapping[str, Sequence[str]]) -> None:
    for component, names in sorted(missing.items()):
        raise InputError(
            f"{source} is incomplete: the files of its {component} lack {len(names)} tensors, the first of them"
            f" {names[0]}; download or convert the model again."
        )


def bundled_names(index: str = _INDEX) -> tuple[str, ...]:
    """Names of the pipelines that ship with the package, or of what else has an ``index`` file."""
    return tuple(sorted(path.parent.name for path in BUNDLED.glob(f"*/{index}")))


def bundled_folder(name: str, index: str) -> Path:
    """The folder of ``bundled:NAME``.

    Args:
        index: the file that makes a folder one of the wanted kind: model_index.json, or a single model's config.json.

    Raises:
        InputError: none of that name and kind ships with the package.
    """
    known = bundled_names(index)
    if name not in known:
        raise InputError(f"There is no bundled model {name!r}; {suggest(name, known)}")
    return BUNDLED / name


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files in a model's folder that make its images, by their names there."""
    found = [path for component in _components(folder) for path in component.iterdir()]
    names = sorted(path for path in found if path.suffix in _WHAT_MAKES_IMAGES and path.is_file())
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in (folder / _INDEX, *names)}


def _components(folder: Path) -> Iterator[Path]:
    """The folders of the components that a pipeline is made of; others in its folder, an --out say, are none of it."""
    index: Mapping[str, Any] = parse_json((folder / _INDEX).read_text(encoding="utf-8"))
    for name, value in sorted(index.items()):
        if isinstance(value, list) and all(value) and (folder / name).is_dir():
            yield folder / name


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


def _check_index(folder: Path) -> None:
    try:
        index = parse_json((folder / _INDEX).read_text(encoding="utf-8"))
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


def _downloaded(hub_id: str) -> Path:
    try:
        try:
            return Path(DiffusionPipeline.download(hub_id, use_safetensors=True))
        except OSError as error:  # of a repository that has its weights as a variant alone
            if "`safetensors`" not in str(error):
                raise
            return Path(DiffusionPipeline.download(hub_id, use_safetensors=True, variant="fp16"))
    except Exception as error:  # the hub client raises many unrelated types; all mean the same here
        first = " ".join(str(error).split())[:300]
        raise InputError(
            f"There is no folder {hub_id} here; taken for a hub id, it could not be had from the hub either: {first}"
        ) from error
