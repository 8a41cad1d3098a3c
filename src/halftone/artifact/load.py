"""Loads artifacts, strictly: every file as it was saved, no newer format, no pickle, no remote code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from halftone.artifact.config import HalftoneConfig
from halftone.artifact.manifest import MANIFEST, check_files
from halftone.denoiser import find_denoiser
from halftone.errors import ArtifactError
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
