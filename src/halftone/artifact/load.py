"""Loads artifacts, strictly: every file as it was saved, no newer format, no pickle, no remote code."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from halftone.artifact.config import HalftoneConfig
from halftone.artifact.inspection import quantized_component
from halftone.artifact.manifest import MANIFEST, check_files
from halftone.attention import Attention, kept_words, use_attention
from halftone.denoiser import find_denoiser
from halftone.errors import ArtifactError
from halftone.kernels import check_device
from halftone.sources import open_pipeline, resolve_folder

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    attention: Attention = "auto",
) -> Any:
    """An ordinary diffusers pipeline with the quantized denoiser in it.

    Args:
        path: artifact folder, or hub id of one.
        dtype: of everything that is not quantized; that of the calibration if not given.
        device: where to put the pipeline.
        attention: "float" has torch compute it; "bfloat16" and "int8" take the native kernel, which is faster and
            rounds queries and keys to that (a warning tells of modules that keep diffusers' own); "auto" takes it where
            torch rounds as much: for bfloat16 on a CPU.

    Raises:
        ArtifactError: a file is missing, truncated or changed; the format is newer; it is not an artifact.
        InputError: there is no such folder, it is no pipeline, or the attention asked for cannot run: on this machine,
            in this dtype, or for this denoiser.

    Example:
        >>> pipeline = halftone.load("./my-sd-w8a8")  # doctest: +SKIP
        >>> image = pipeline("a lighthouse at dusk", num_inference_steps=20).images[0]  # doctest: +SKIP
    """
    if device is not None:
        check_device(str(device).partition(":")[0])
    folder = resolve_folder(path)
    if (folder / MANIFEST).exists():
        check_files(folder)
    pipeline = open_pipeline(folder, dtype=recorded_dtype(folder) if dtype is None else dtype, device=device)
    if artifact_config(pipeline) is None:
        raise ArtifactError(
            f"{path} is a pipeline but not quantized by Halftone; quantize it with `halftone quantize`,"
            f" or load it with {DiffusionPipeline.__name__}.from_pretrained."
        )
    kept = use_attention(find_denoiser(pipeline).module, attention)
    if words := kept_words(attention, kept):
        warnings.warn(words, stacklevel=2)
    return pipeline


def recorded_dtype(folder: Path) -> torch.dtype | None:
    """The dtype that an artifact was calibrated in, and in which it paints as it did then; None for other folders."""
    try:
        _, config = quantized_component(folder)
    except ArtifactError:  # no artifact, or a damaged one, of which opening it says more
        return None
    return _DTYPES.get(str(config.calibration.get("dtype")))


def artifact_config(pipeline: Any) -> HalftoneConfig | None:
    """The configuration of a pipeline's quantized denoiser, or None if it is not one of Halftone's."""
    config = getattr(find_denoiser(pipeline).module.config, "quantization_config", None)
    return config if isinstance(config, HalftoneConfig) else None
