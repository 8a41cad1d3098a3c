"""Calibration: one call of the unmodified pipeline, in lockstep over all prompts.

Progressive calibration (Tang et al., ECCV 2024, section 3.2): every denoiser call is first observed on the input
that the already quantized steps produced, then its parameters are fixed, then it runs again, quantized, and only that
output goes back to the pipeline. The full-precision variant of the baselines observes the float model's own
trajectory and fixes all parameters afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from halftone.calibration.checkpoint import Checkpoint
from halftone.calibration.lockstep import FullPrecisionLockstep, Lockstep, ProgressiveLockstep
from halftone.calibration.pipeline_call import call_pipeline
from halftone.calibration.settings import CalibrationResult, CalibrationSettings
from halftone.calibration.trace import Trace
from halftone.denoiser import Denoiser, set_submodule
from halftone.errors import NonFiniteError
from halftone.layers import QuantizedLayer, quantize_layer
from halftone.microbatch import replaced_forward
from halftone.numerics import quantize_weight, range_to_qparams
from halftone.recipe import Recipe
from halftone.rounding import weight_scale
from halftone.timesteps import SlotClock, TimestepSlots

Integers = tuple[Tensor, Tensor]  # a layer's int8 weights and float32 scales
Progress = Callable[[int, int], None]
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
    progress: Progress = lambda done, total: None,
    integers: dict[str, Integers] | None = None,
) -> CalibrationResult:
    """Quantizes layers of the pipeline's denoiser in place and fixes their parameters for every slot.

    Args:
        names: of the layers to quantize, as `choose_layers` gives them. (Not the layers: whoever holds them keeps the
            float weights in memory beside the integers.)
        trace: the calls that the pipeline will make, from `trace_calls`.
        clock: shared by the new layers; its slots are those of `trace`.
        checkpoint: finished calls; None keeps none.
        progress: called with (finished calls, all calls).
        integers: weights that a rule has rounded already; used up. Those of other layers are rounded to nearest.

    Raises:
        NonFiniteError: a weight or an activation is NaN or infinite; says which layer, and which step.
    """
    started = time.perf_counter()
    check_weights(denoiser.module)
    integers = {} if integers is None else integers
    checkpoint = checkpoint or Checkpoint(None, {})
    bits = clock.slots.num_bits
    rows = settings.batch_size * max(1, trace.rows)
    lockstep: Lockstep
    if recipe.calibration == "progressive":
        quantized = quantize_layers(denoiser.module, names, recipe, clock, integers)
        lockstep = ProgressiveLockstep(denoiser, quantized, recipe, trace, clock, rows, checkpoint, progress)
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
    return CalibrationResult(
        timesteps=trace.timesteps,
        denoiser_passes_per_prompt=lockstep.passes_per_prompt,
        ranges={name: lockstep.final_ranges(name) for name in names},
        seconds=time.perf_counter() - started,
        resumed_calls=lockstep.resumed_calls,
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
    rows = len(clock.slots) if recipe.activations.granularity == "timestep" else 1
    quantized: QuantizedLayers = {}
    for name in names:
        layer = module.get_submodule(name)
        found = rounded.pop(name, None)
        if found is None and scheme.scale != "range":
            assert isinstance(layer.weight, Tensor)
            scale = weight_scale(layer.weight, scheme.num_bits, scheme.scale)
            found = quantize_weight(layer.weight, scheme.num_bits, scale)
        new = quantize_layer(layer, scheme.num_bits, rows, name, found)
        del layer, found
        new.clock = clock
        set_submodule(module, name, new)
        quantized[name] = new
    return quantized


def make_slots(recipe: Recipe, trace: Trace) -> TimestepSlots:
    """One slot for each distinct timestep, with the recipe's bits."""
    return TimestepSlots(trace.distinct, recipe.slot_bits(len(trace.distinct)))


def check_weights(module: nn.Module) -> None:
    """Before anything is replaced, and for all layers: a NaN would else show up as an activation of some later one."""
    for name, parameter in module.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            layer, leaf = name.rpartition(".")[::2]
            count = int((~torch.isfinite(parameter)).sum())
            raise NonFiniteError(f"The {leaf} of layer {layer} has {count} NaN or infinite elements.")


def run_pipeline(pipeline: Any, denoiser: Denoiser, settings: CalibrationSettings, lockstep: Lockstep) -> None:
    """Calls the pipeline once with all prompts, a lockstep in the place of its denoiser."""
    with evaluating(denoiser.module), replaced_forward(denoiser.module, lockstep), torch.inference_mode():
        call_pipeline(pipeline, settings, settings.prompts)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within the context the module is in evaluation mode."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
