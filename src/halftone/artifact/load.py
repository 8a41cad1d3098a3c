"""Loads artifacts and checks them: every file's digest, the format version, no pickle, no remote code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from halftone.artifact.config import HalftoneConfig
from halftone.artifact.save import MANIFEST, MANIFEST_VERSION
from halftone.denoiser import find_denoiser
from halftone.errors import ArtifactError
from halftone.files import file_sha256
from halftone.sources import open_pipeline, resolve_folder


def load(path: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device | None = None) -> Any:
    """An ordinary diffusers pipeline with the quantized denoiser in it.

    Args:
        path: artifact folder, or hub id of one.
        dtype: of everything that is not quantized; float32 if not given.
        device: where to put the pipeline.

    Raises:
        ArtifactError: a file is missing, truncated or changed; the format is newer; it is not an artifact.
        InputError: there is no such folder or it is no pipeline.

    Example:
        >>> pipeline = halftone.load("./my-sd-w8a8")  # doctest: +SKIP
        >>> image = pipeline("a lighthouse at dusk", num_inference_steps=20).images[0]  # doctest: +SKIP
    """
    folder = resolve_folder(path)
    if (folder / MANIFEST).exists():
        check_files(folder)
    pipeline = open_pipeline(folder, dtype=dtype, device=device)
    if artifact_config(pipeline) is None:
        raise ArtifactError(
            f"{path} is a pipeline but not quantized by Halftone; quantize it with `halftone quantize`,"
            f" or load it with {DiffusionPipeline.__name__}.from_pretrained."
        )
    return pipeline


def artifact_config(pipeline: Any) -> HalftoneConfig | None:
    """The configuration of a pipeline's quantized denoiser, or None if it is not one of Halftone's."""
    config = getattr(find_denoiser(pipeline).module.config, "quantization_config", None)
    return config if isinstance(config, HalftoneConfig) else None


def read_manifest(folder: Path) -> dict[str, Any]:
    """halftone.json of an artifact.

    Raises:
        ArtifactError: it is not JSON, of a newer version, or lacks a key.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); copy the artifact again.") from error
    version = manifest.get("manifest_version") if isinstance(manifest, dict) else None
    if isinstance(version, int) and version > MANIFEST_VERSION:
        raise ArtifactError(
            f"{path} has version {version}, and this Halftone reads up to {MANIFEST_VERSION}; upgrade Halftone."
        )
    if version != MANIFEST_VERSION or not isinstance(manifest.get("files"), dict):
        raise ArtifactError(
            f"{path} is damaged: its manifest_version or file list is missing; copy the artifact again."
        )
    return dict(manifest)


def check_files(folder: Path) -> None:
    """Compares every file with the digest in halftone.json.

    Raises:
        ArtifactError: names the first file that is missing or not what was written.
    """
    for name, expected in sorted(read_manifest(folder)["files"].items()):
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{path} is missing; copy the artifact again.")
        if file_sha256(path) != expected:
            raise ArtifactError(
                f"{path} is not what was saved (truncated or changed); copy the artifact again or quantize anew."
            )
