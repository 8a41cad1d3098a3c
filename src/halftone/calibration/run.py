"""Calibration: one call of the unmodified pipeline, in lockstep over all prompts.

Progressive calibration (Tang et al., ECCV 2024, section 3.2): every denoiser call is first observed on the input
that the already quantized steps produced, then its parameters are fixed, then it runs again, quantized, and only that
output goes back to the pipeline. The full-precision variant of the baselines observes the float model's own
trajectory and fixes all parameters afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from halftone.calibration.checkpoint import Checkpoint
from halftone.calibration.corrected import corrected_lockstep
from halftone.calibration.correction_plan import CorrectionPlan, FullPrecisionPath
from halftone.calibration.lockstep import FullPrecisionLockstep, Lockstep, ProgressiveLockstep
from halftone.calibration.pipeline_call import call_pipeline
from halftone.calibration.settings import CalibrationResult, CalibrationSettings
from halftone.calibration.stages import CallDone
from halftone.calibration.trace import Trace
from halftone.denoiser import Denoiser, set_submodule
from halftone.errors import NonFiniteError
from halftone.layers import LayerForm, QuantizedLayer, quantize_layer
from halftone.microbatch import replaced_forward
from halftone.numerics import range_to_qparams
from halftone.recipe import Recipe, WeightScheme
from halftone.rounding import weight_grid
from halftone.timesteps import SlotClock, TimestepSlots
from halftone.weight_grid import WeightGrid

Integers = tuple[Tensor, ...]  # a layer's int8 weights, float32 scales and, of asymmetric grids, int8 zero points
QuantizedLayers = dict[str, QuantizedLayer]


def calibrate(
    pipeline: Any,
    denoiser: Denoiser,
    names: Sequence[str],
    recipe: Recipe,
    settings: CalibrationSettings,
    trace: Trace,
    clock: SlotClock,
    checkpoint: Checkpoint | None = None,
    progress: CallDone = lambda done, total, replayed: None,
    integers: dict[str, Integers] | None = None,
    plan: CorrectionPlan | None = None,
) -> CalibrationResult:
    """Quantizes layers of the pipeline's denoiser in place and fixes their parameters for every slot.

    Args:
        names: of the layers to quantize, as `choose_layers` gives them. (Not the layers: whoever holds them keeps the
            float weights in memory beside the integers.)
        trace: the calls that the pipeline will make, from `trace_calls`.
        clock: shared by the new layers; its slots are those of `trace`.
        checkpoint: finished calls; None keeps none.
        progress: called with (finished calls, all calls, whether this one was on disk).
        integers: weights that a rule has rounded already; used up. Those of other layers are rounded to nearest.
        plan: for the correction that the recipe asks for, the full-precision path recorded; None for recipes without.

    Raises:
        NonFiniteError: a weight or an activation is NaN or infinite; says which layer, and which step.
    """
    started = time.perf_counter()
    check_weights(denoiser.module)
    integers = {} if integers is None else integers
    if recipe.calibration == "none":
        return _without_calibration(denoiser.module, names, recipe, trace, clock, integers)
    checkpoint = checkpoint or Checkpoint(None, {})
    bits = clock.slots.num_bits
    rows = settings.batch_size * max(1, trace.rows)
    lockstep: Lockstep
    if recipe.calibration == "progressive":
        floats = {name: denoiser.module.get_submodule(name) for name in names} if plan and plan.needs_floats else {}
        quantized = quantize_layers(denoiser.module, names, recipe, clock, integers)
        common = (denoiser, quantized, recipe, trace, clock, rows, checkpoint, progress)
        lockstep = ProgressiveLockstep(*common) if plan is None else corrected_lockstep(common, plan, floats)
        with lockstep.watching(pipeline.scheduler):
            run_pipeline(pipeline, denoiser, settings, lockstep)
    else:
        layers = {name: denoiser.module.get_submodule(name) for name in names}
        lockstep = FullPrecisionLockstep(denoiser, layers, recipe, trace, clock, rows, checkpoint, progress)
        run_pipeline(pipeline, denoiser, settings, lockstep)
        layers.clear()
        quantized = quantize_layers(denoiser.module, names, recipe, clock, integers)
        for name, layer in quantized.items():
            for row, (lo, hi) in enumerate(lockstep.final_ranges(name)):
                layer.set_row(row, range_to_qparams(lo, hi, bits[row], recipe.activations.symmetric))
    path = FullPrecisionPath(()) if plan is None or plan.path is None else plan.path
    return CalibrationResult(
        timesteps=trace.timesteps,
        denoiser_passes_per_prompt=lockstep.passes_per_prompt + path.passes_per_prompt,
        ranges={name: lockstep.final_ranges(name) for name in names},
        seconds=time.perf_counter() - started + path.seconds,
        resumed_calls=lockstep.resumed_calls + path.resumed_calls,
    )


def _without_calibration(
    module: nn.Module,
    names: Sequence[str],
    recipe: Recipe,
    trace: Trace,
    clock: SlotClock,
    integers: dict[str, Integers],
) -> CalibrationResult:
    """Layers that measure the ranges of their inputs at inference: nothing is observed, and no prompt goes through."""
    started = time.perf_counter()
    for layer in quantize_layers(module, names, recipe, clock, integers).values():
        layer.set_measured_bits(recipe.activations.num_bits)
    return CalibrationResult(
        timesteps=trace.timesteps,
        denoiser_passes_per_prompt=0.0,
        ranges={},
        seconds=time.perf_counter() - started,
        resumed_calls=0,
    )


def quantize_layers(
    module: nn.Module,
    names: Iterable[str],
    recipe: Recipe,
    clock: SlotClock,
    integers: dict[str, Integers] | None = None,
) -> QuantizedLayers:
    """Replaces each layer by its quantized form, one by one, so that no second copy of the model is ever held.

    Args:
        integers: weights rounded already, by layer; taken out as they are used. Others are rounded to nearest.
    """
    rounded = {} if integers is None else integers
    scheme = recipe.weights
    rows, form = recipe.table_rows(len(clock.slots)), LayerForm.of(recipe)
    quantized: QuantizedLayers = {}
    for name in names:
        layer = module.get_submodule(name)
        found = rounded.pop(name, None)
        if found is None and scheme.scale != "range":
            assert isinstance(layer.weight, Tensor)
            grid = grid_of(layer.weight, scheme)
            found = grid.codes(layer.weight), *grid.tensors
        new = quantize_layer(layer, scheme.num_bits, rows, name, found, form)
        del layer, found
        new.clock = clock
        set_submodule(module, name, new)
        quantized[name] = new
    return quantized


def grid_of(weight: Tensor, scheme: WeightScheme) -> WeightGrid:
    """The grid that a recipe wants for a weight, in floating point ``[out, ...]``."""
    return weight_grid(weight, scheme.num_bits, scheme.scale, scheme.group_size, scheme.symmetric)


def make_slots(recipe: Recipe, trace: Trace, relaxed: Collection[int] | None = None) -> TimestepSlots:
    """One slot for each distinct timestep, with the recipe's bits; ``relaxed`` are the slots that a scan chose."""
    return TimestepSlots(trace.distinct, recipe.slot_bits(len(trace.distinct), relaxed))


def check_weights(module: nn.Module) -> None:
    """Before anything is replaced, and for all layers: a NaN would else show up as an activation of some later one."""
    for name, parameter in module.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            layer, leaf = name.rpartition(".")[::2]
            count = int((~torch.isfinite(parameter)).sum())
            raise NonFiniteError(f"The {leaf} of layer {layer} has {count} NaN or infinite elements.")


def run_pipeline(
    pipeline: Any,
    denoiser: Denoiser,
    settings: CalibrationSettings,
    forward: Callable[..., Any],
    prompts: Sequence[str] | None = None,
) -> Tensor:
    """Calls the pipeline once, a lockstep or another forward in the place of its denoiser's; returns the last latents.

    Args:
        prompts: the first of the settings' prompts; None for all of them.
    """
    with evaluating(denoiser.module), replaced_forward(denoiser.module, forward), torch.inference_mode():
        return call_pipeline(pipeline, settings, settings.prompts if prompts is None else prompts)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within the context the module is in evaluation mode."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
