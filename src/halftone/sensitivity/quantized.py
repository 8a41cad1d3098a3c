"""The quantized model of the second experiment, kept in the output: made once, resumably."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from halftone.artifact.inspection import inspect_artifact
from halftone.artifact.manifest import MANIFEST
from halftone.calibration.checkpoint import is_unfinished
from halftone.calibration.settings import DEFAULT_MEMORY_BUDGET
from halftone.errors import InputError
from halftone.files import output_folder
from halftone.qdiffbench.contestants import Contestant
from halftone.qdiffbench.request import ProgressBar
from halftone.quantization import check_target, find_made, quantize
from halftone.recipe import Recipe
from halftone.schedulers import use_scheduler
from halftone.sensitivity.request import CALIBRATION_SEED, SensitivityRequest
from halftone.sensitivity.results import QuantizedModel
from halftone.sources import content_sha256, open_pipeline

__all__ = ["MODEL", "describe_quantized", "kept_model"]

MODEL = "model"
_CHECKPOINT = "model.unfinished"


def kept_model(
    request: SensitivityRequest,
    source: Contestant,
    progress: ProgressBar,
    announce: Callable[[str], None] | None = None,
) -> Path:
    """The folder of the quantized model, made as far as it is missing.

    Raises:
        InputError: what is there was made with other settings.
    """
    target, checkpoint = output_folder(request.out / MODEL), output_folder(request.out / _CHECKPOINT)
    pipeline, recipe = _open(request, source), Recipe.load(request.recipe)
    arguments = _arguments(request, source)
    if (target / MANIFEST).is_file() and not is_unfinished(checkpoint):
        if find_made(target, pipeline, recipe, request.texts(), **arguments) is None:
            raise InputError(
                f"{target} was made with other settings or from another model; choose another --out, or delete that"
                " folder."
            )
        with suppress(OSError):  # there is none, unless a kill came just before it was removed, empty
            checkpoint.rmdir()
        return target
    check_target(target, checkpoint)
    with progress("calibrating") as advance:
        arguments |= {"checkpoint_folder": checkpoint, "progress": advance, "announce": announce}
        result = quantize(pipeline, recipe, request.texts(), **arguments)
    return result.save(target)


def describe_quantized(artifact: Path) -> QuantizedModel:
    """The record of the quantized model."""
    facts = inspect_artifact(artifact)
    return QuantizedModel(
        recipe=facts["recipe"]["name"],
        weight_bits=facts["weight_bits"],
        average_activation_bits=facts["average_activation_bits"],
        layers=len(facts["layers"]),
        calibration_prompts=facts["calibration"]["prompts"],
    )


def _open(request: SensitivityRequest, source: Contestant) -> Any:
    pipeline = open_pipeline(source.model_source, dtype=request.dtype, device=request.device, progress_bar=False)
    if request.scheduler is not None:
        use_scheduler(pipeline, request.scheduler)
    return pipeline


def _arguments(request: SensitivityRequest, source: Contestant) -> dict[str, Any]:
    """Of the calibration, besides recipe and prompts."""
    settings = request.settings
    sides = {name: side for name, side in (("height", settings.height), ("width", settings.width)) if side is not None}
    return {
        "num_inference_steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        "seed": settings.seed + CALIBRATION_SEED,
        "batch_size": request.batch_size,
        "memory_budget": DEFAULT_MEMORY_BUDGET,
        "source_sha256": content_sha256(source.model_source),
        **sides,
    }
