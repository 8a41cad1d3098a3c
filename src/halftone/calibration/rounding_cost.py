"""What the rounding of the weights will cost, told before it starts, without one pass through the denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from halftone.calibration.checkpoint import Checkpoint
from halftone.calibration.cost import faker
from halftone.calibration.run import evaluating
from halftone.calibration.settings import CalibrationSettings
from halftone.calibration.trace import Trace
from halftone.calibration.trajectory import spread
from halftone.calibration.walks import Walks, measure_units
from halftone.calibration.weights import find_units
from halftone.errors import CalibrationError
from halftone.microbatch import batch_size
from halftone.quantities import memory_text, time_text
from halftone.recipe import Recipe

__all__ = ["RoundingEstimate", "estimate_rounding"]


@dataclass(frozen=True)
class RoundingEstimate:
    """What a rounding rule that looks at inputs will take, but for the time of the rule itself.

    Attributes:
        rounding: the rule's name.
        units, units_done: layers and blocks, and those of them that an interrupted run has left.
        passes: of each prompt through the denoiser, for the trajectory and for looking at inputs.
        seconds: of those that are left; None if the denoiser cannot be traced.
        peak_bytes: the most memory beside the model; None if it cannot be traced.
        budget: what was asked for.
        largest: the unit that takes the most.
    """

    rounding: str
    units: int
    units_done: int
    passes: float
    seconds: float | None
    peak_bytes: int | None
    budget: int
    largest: str

    def sentence(self, opening: str) -> str:
        """One line for the person who waits, to follow that of the calibration."""
        done = f" ({self.units_done} of them done)" if self.units_done else ""
        time = "" if self.seconds is None else f" in about {time_text(self.seconds)}"
        text = f"{opening}, {self.rounding} rounds {self.units} layers and blocks{done}, with about {self.passes:.3g}"
        text += f" passes a prompt{time} and up to {memory_text(self.peak_bytes or self.budget)} beside the model"
        if self.peak_bytes is not None and self.peak_bytes > self.budget:
            text += f": more than the memory budget of {memory_text(self.budget)}, since {self.largest} takes no less"
        if self.units_done == self.units:
            return f"{text}."
        return f"{text}. How long the rounding itself takes is told with its first unit."


def estimate_rounding(
    module: nn.Module,
    names: Sequence[str],
    recipe: Recipe,
    settings: CalibrationSettings,
    trace: Trace,
    checkpoint: Checkpoint,
    pass_seconds: float | None,
) -> RoundingEstimate:
    """Passes, time and memory of `round_weights` with these arguments, for a rule that looks at inputs.

    Args:
        pass_seconds: of one pass of all prompts in floating point, over all calls; None if not known.
    """
    rule, calls, prompts = recipe.weights.build_rounding(), len(trace.timesteps), len(settings.prompts)
    units = find_units(module, names, rule.blocks)
    chosen = [len(one) for one in spread(rule.num_samples, calls, prompts)]
    samples, measured = sum(chosen), min(settings.batch_size, next(filter(None, chosen)))
    walks = _walks(module, names, recipe, settings, trace, samples * max(1, trace.rows))
    units_done = checkpoint.part("rounded").count()
    groups = [] if walks is None else walks.groups
    left = sum(group[-1] >= units_done for group in groups)
    passes_left = calls - checkpoint.part("trajectory").count() + (measured + left * samples) / prompts
    return RoundingEstimate(
        rounding=recipe.weights.rounding,
        units=len(units),
        units_done=units_done,
        passes=calls + (measured + max(1, len(groups)) * samples) / prompts,
        seconds=None if pass_seconds is None or walks is None else pass_seconds * passes_left / calls,
        peak_bytes=None if walks is None else walks.peak_bytes,
        budget=settings.memory_budget,
        largest="" if walks is None else walks.largest,
    )


def _walks(
    module: nn.Module, names: Sequence[str], recipe: Recipe, settings: CalibrationSettings, trace: Trace, rows: int
) -> Walks | None:
    """The walks of `round_weights`, from tensors without data; None if this denoiser needs real ones to run."""
    rule = recipe.weights.build_rounding()
    units = find_units(module, names, rule.blocks)
    total = batch_size(trace.args, trace.kwargs)
    micro_batch = min(settings.batch_size, len(settings.prompts)) * max(1, trace.rows)
    try:
        with torch.no_grad(), evaluating(module), FakeTensorMode(allow_non_fake_inputs=True):
            args, kwargs = tree_map(faker(total, micro_batch), (trace.args, dict(trace.kwargs)))
            sizes = measure_units(module, units, rule, args, kwargs)
    except CalibrationError:
        raise
    except Exception:  # whatever a model does that needs data: the estimate is a courtesy, not a condition
        return None
    return Walks(units, sizes, rule, rows, settings.memory_budget)
