"""`halftone.quantize`: layers chosen, calibrated in lockstep, attached; the one call behind the command."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from halftone.artifact.attach import attach
from halftone.artifact.config import HalftoneConfig, quantized_digest
from halftone.artifact.load import artifact_config
from halftone.artifact.save import save
from halftone.calibration import CalibrationResult, CalibrationSettings, calibrate
from halftone.calibration.checkpoint import Checkpoint, digest
from halftone.calibration.run import Progress, make_slots
from halftone.calibration.trace import Trace, trace_calls
from halftone.denoiser import Denoiser, choose_layers, find_denoiser
from halftone.errors import InputError
from halftone.prompts import check_prompts
from halftone.recipe import Recipe
from halftone.sources import pipeline_facts
from halftone.timesteps import SlotClock


@dataclass(frozen=True)
class QuantizationResult:
    """A quantized pipeline and how it came about.

    Attributes:
        pipeline: the pipeline that was given, its denoiser now quantized in place.
        config: what is stored with the denoiser: recipe, slots and bits, layers and why others were left out, record.
        calibration: counted passes, observed ranges, wall time.
    """

    pipeline: Any
    config: HalftoneConfig
    calibration: CalibrationResult

    @property
    def average_activation_bits(self) -> float:
        """Mean over the denoiser calls of the calibrated trajectory."""
        bits = [self.config.slots.num_bits[self.config.slots.slot_of(t)] for t in self.calibration.timesteps]
        return sum(bits) / len(bits)

    def save(self, path: str | Path) -> Path:
        """Writes the artifact atomically; see `halftone.artifact.save.save`."""
        return save(self.pipeline, path, self.config.calibration)


def quantize(
    pipeline: Any,
    recipe: str | Path | Recipe,
    prompts: Sequence[str],
    *,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    seed: int = 0,
    batch_size: int = 4,
    checkpoint_folder: str | Path | None = None,
    progress: Progress = lambda done, total: None,
    **call_kwargs: Any,
) -> QuantizationResult:
    """Quantizes the denoiser of a diffusers pipeline, in place.

    Args:
        pipeline: any diffusers pipeline with a UNet or transformer denoiser.
        recipe: preset name, path of a recipe file, or a Recipe.
        prompts: calibration prompts; their order and number are part of the result.
        num_inference_steps: sampler steps to calibrate, one slot each.
        guidance_scale: None for the pipeline's default.
        seed: prompt i starts from noise seeded with ``seed + i``.
        batch_size: prompts in the denoiser at a time.
        checkpoint_folder: where finished steps are kept, to go on after an interruption; None keeps none.
        progress: called with (finished denoiser calls, all calls).
        call_kwargs: further arguments of the pipeline's call.

    Raises:
        RecipeError, InputError: wrong arguments, in one sentence.
        NonFiniteError: NaN or infinity in weights or activations; says layer and step.

    Example:
        >>> pipe = StableDiffusionPipeline.from_pretrained("./my-sd")  # doctest: +SKIP
        >>> result = halftone.quantize(pipe, "pcr-w8a8", prompts, num_inference_steps=20)  # doctest: +SKIP
        >>> result.save("./my-sd-w8a8")  # doctest: +SKIP
    """
    recipe = Recipe.load(recipe)
    settings = CalibrationSettings(
        prompts=check_prompts(prompts),
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        seed=seed,
        batch_size=batch_size,
        call_kwargs=call_kwargs,
    )
    _check_settings(settings)
    denoiser = find_denoiser(pipeline)
    if artifact_config(pipeline) is not None:
        raise InputError("This pipeline is quantized already; start from the full-precision one.")
    choice = choose_layers(denoiser.module, recipe.exclude)
    trace = trace_calls(pipeline, denoiser, settings)
    slots = make_slots(recipe, trace)
    checkpoint = Checkpoint(
        Path(checkpoint_folder) if checkpoint_folder is not None else None,
        fingerprint(pipeline, denoiser, recipe, settings) if checkpoint_folder is not None else {},
    )
    result = calibrate(
        pipeline, denoiser, choice.chosen, recipe, settings, trace, SlotClock(slots), checkpoint, progress
    )
    config = HalftoneConfig(
        recipe=recipe,
        slots=slots,
        layers=tuple(choice.chosen),
        left_out=choice.left_out,
        calibration=_record(pipeline, denoiser, settings, trace, result),
        digest=quantized_digest(denoiser.module),
    )
    attach(denoiser.module, config)
    return QuantizationResult(pipeline, config, result)


def fingerprint(pipeline: Any, denoiser: Denoiser, recipe: Recipe, settings: CalibrationSettings) -> dict[str, Any]:
    """Everything that determines the result, to tell whether unfinished work belongs to this command."""
    weights = [f"{name}:{digest(tensor)}" for name, tensor in sorted(denoiser.module.state_dict().items())]
    joined = torch.frombuffer(bytearray("".join(weights).encode()), dtype=torch.uint8)
    return {
        "recipe": recipe.to_dict(),
        **settings.to_dict(),
        **pipeline_facts(pipeline),
        "scheduler_config": {key: repr(value) for key, value in sorted(pipeline.scheduler.config.items())},
        "weights_sha256": digest(joined),
        "dtype": str(next(denoiser.module.parameters()).dtype),
        "threads": torch.get_num_threads(),
        "versions": _versions(),
    }


def _check_settings(settings: CalibrationSettings) -> None:
    for name in ("num_inference_steps", "batch_size"):
        value = getattr(settings, name)
        if value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1.")


def _record(
    pipeline: Any, denoiser: Denoiser, settings: CalibrationSettings, trace: Trace, result: CalibrationResult
) -> dict[str, Any]:
    """What halftone.json says of the calibration. No times: the same command must give the same bytes."""
    return {
        **settings.to_dict(),
        **pipeline_facts(pipeline),
        "denoiser": denoiser.name,
        "dtype": str(next(iter(denoiser.module.state_dict().values())).dtype).removeprefix("torch."),
        "timesteps": list(trace.timesteps),
        "denoiser_passes_per_prompt": result.denoiser_passes_per_prompt,
        "threads": torch.get_num_threads(),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    names = ("halftone", "torch", "diffusers", "transformers")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
