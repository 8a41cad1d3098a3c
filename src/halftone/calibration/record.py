"""What determines a calibration, to tell whether unfinished work is this command's, and what is written down of it."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import torch

from halftone.attention import running_attention
from halftone.calibration.checkpoint import digest
from halftone.calibration.protection_scan import ProtectedLayers
from halftone.calibration.relaxation_scan import RelaxedSteps
from halftone.calibration.settings import CalibrationResult, CalibrationSettings
from halftone.calibration.trace import Trace
from halftone.calibration.weights import RoundedWeights
from halftone.denoiser import Denoiser, output_correction
from halftone.kernels import select
from halftone.layers import LayerForm
from halftone.recipe import Recipe
from halftone.schedulers import scheduler_config

__all__ = ["circumstances", "fingerprint", "make_record"]


def fingerprint(pipeline: Any, denoiser: Denoiser, recipe: Recipe, settings: CalibrationSettings) -> dict[str, Any]:
    """Everything that determines the result, to tell whether unfinished work belongs to this command."""
    weights = [f"{name}:{digest(tensor)}" for name, tensor in sorted(denoiser.module.state_dict().items())]
    joined = torch.frombuffer(bytearray("".join(weights).encode()), dtype=torch.uint8)
    return {
        "recipe": recipe.to_dict(),
        **settings.to_dict(),
        **circumstances(pipeline, denoiser, recipe),
        "scheduler_config": scheduler_config(pipeline),
        "weights_sha256": digest(joined),
        "device": next(denoiser.module.parameters()).device.type,
    }


def _kernels(denoiser: Denoiser, recipe: Recipe) -> dict[str, str]:
    """What runs the layers here: two kernels differ in last bits, and a run must not change over to another halfway.

    Raises:
        InputError: nothing runs them on this device.
    """
    device = next(denoiser.module.parameters()).device.type
    widths = {recipe.activations.num_bits, *([recipe.relax.bits] if recipe.relax is not None else [])}
    features = LayerForm.of(recipe).features(recipe.weights.num_bits)
    return {
        f"{operation}, {bits} bits": select(operation, device, bits, features).name
        for operation in ("linear", "conv2d")
        for bits in sorted(widths)
    }


def _dtype(denoiser: Denoiser) -> str:
    """Floating-point type of the denoiser before it is quantized."""
    return str(next(denoiser.module.parameters()).dtype).removeprefix("torch.")


def make_record(
    denoiser: Denoiser,
    known: Mapping[str, Any],
    settings: CalibrationSettings,
    trace: Trace,
    result: CalibrationResult,
    rounding: RoundedWeights,
    protected: ProtectedLayers | None,
    relaxed: RelaxedSteps | None,
) -> dict[str, Any]:
    """What halftone.json says of the calibration. No times: the same command must give the same bytes.

    Args:
        known: its `circumstances`, from before the denoiser was quantized.
    """
    correction = output_correction(denoiser.module)
    scanned = 0 if relaxed is None else relaxed.passes * relaxed.prompts
    scanned += 0 if protected is None else protected.passes * protected.prompts
    passes = result.denoiser_passes_per_prompt + rounding.passes_per_prompt + scanned / len(settings.prompts)
    return {
        **settings.to_dict(),
        **known,
        "denoiser": denoiser.name,
        "timesteps": list(trace.timesteps),
        "denoiser_passes_per_prompt": passes,
        "rounding_passes_per_prompt": rounding.passes_per_prompt,
        **({} if protected is None else {"protected": protected.to_dict()}),
        **({} if relaxed is None else {"relaxed": relaxed.to_dict()}),
        **({} if correction is None else {"correction": correction.extremes()}),
    }


def circumstances(pipeline: Any, denoiser: Denoiser, recipe: Recipe) -> dict[str, Any]:
    """What the result depends on besides the settings, as far as the record tells it; of a denoiser that is not
    quantized yet."""
    return {
        "pipeline": type(pipeline).__name__,
        "scheduler": type(pipeline.scheduler).__name__,
        "dtype": _dtype(denoiser),
        "device": pipeline.device.type,
        "threads": torch.get_num_threads(),
        "kernels": _kernels(denoiser, recipe),
        "attention": running_attention(denoiser.module),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    names = ("halftone", "torch", "diffusers", "transformers")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
