"""What a calibration will take, in a sentence or two, told before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from halftone.calibration.checkpoint import Checkpoint
from halftone.calibration.correction_plan import CorrectionPlan
from halftone.calibration.cost import estimate_cost
from halftone.calibration.protection_scan import protection_sentence
from halftone.calibration.relaxation_scan import needs_scan, scan_sentence
from halftone.calibration.rounding_cost import estimate_rounding
from halftone.calibration.settings import CalibrationSettings
from halftone.calibration.trace import Trace
from halftone.calibration.weights import count_units
from halftone.denoiser import Denoiser
from halftone.layers import split_convolutions
from halftone.recipe import Recipe

__all__ = ["announcement"]


def announcement(
    pipeline: Any,
    denoiser: Denoiser,
    names: Sequence[str],
    recipe: Recipe,
    settings: CalibrationSettings,
    trace: Trace,
    plan: CorrectionPlan | None,
    checkpoint: Checkpoint,
) -> str:
    """What it will take, in a sentence or two; of an interrupted run, what is left of it."""
    module, units = denoiser.module, count_units(denoiser.module, names, recipe)
    passes = {"progressive": 2, "full_precision": 1, "none": 0}[recipe.calibration]
    passes += plan is not None and plan.needs_floats
    done = passes * checkpoint.count()
    if plan is not None and not plan.needs_floats and not units:  # a trajectory of the correction's own
        passes, done = passes + 1, done + checkpoint.part("trajectory").count()
    kept = 0 if plan is None else plan.memory_bytes(module, trace, len(settings.prompts))
    cost = estimate_cost(pipeline, module, settings, trace, passes, kept, done)
    text = cost.sentence()
    if recipe.protect is not None:
        found = checkpoint.part("protecting").count()
        text += f" {protection_sentence(settings, trace, len(names), found, cost.pass_seconds)}"
    if needs_scan(recipe, trace):
        text += f" {scan_sentence(settings, trace, cost.pass_seconds)}"
    if recipe.split_shortcuts and next(split_convolutions(module), None) is None:
        text += f" {type(module).__name__} joins no skip connections: split_shortcuts changes nothing."
    if not units:
        return text
    rounding = estimate_rounding(module, names, recipe, settings, trace, checkpoint, cost.pass_seconds)
    return f"{text} {rounding.sentence('Before it' if passes else 'Of the weights')}"
