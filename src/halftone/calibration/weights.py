"""Weights to integers before the lockstep: scales, then a rounding rule, unit by unit, within a memory budget.

A rule that looks at inputs gets those of the full-precision model, over all steps of its own trajectory (Tang et al.,
ECCV 2024, section 3.1, as BRECQ and Q-Diffusion do). The denoiser's own arguments are small and are kept; the inputs
of layers and blocks are large and are made again from them, for as many units at a time as fit in memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from halftone.calibration.checkpoint import Checkpoint
from halftone.calibration.run import Integers, check_weights, evaluating, grid_of
from halftone.calibration.settings import CalibrationSettings
from halftone.calibration.stages import INPUTS, ROUNDING, TRAJECTORY, Advance, Stages
from halftone.calibration.trace import Trace
from halftone.calibration.trajectory import Samples, sample_trajectory
from halftone.calibration.walks import Walks, measure_units, watching_units
from halftone.denoiser import Denoiser, find_blocks
from halftone.microbatch import batch_size, micro_batches
from halftone.recipe import Recipe
from halftone.rounding import Collector, RoundingRule, Unit
from halftone.timesteps import SlotClock

__all__ = ["RoundedWeights", "count_units", "round_weights"]


@dataclass(frozen=True)
class RoundedWeights:
    """What rounding gave.

    Attributes:
        integers: layer -> (int8 weights, float32 scales, zero points if any); without an entry where rounding to
            nearest is left to the conversion of the layers.
        passes_per_prompt: passes of each prompt through the denoiser: its trajectory, and what was walked again.
        resumed_units: layers and blocks that an earlier, interrupted run had rounded.
        resumed_calls: denoiser calls of the trajectory replayed from disk.
        seconds: wall time of this process.
    """

    integers: dict[str, Integers] = field(default_factory=dict)
    passes_per_prompt: float = 0.0
    resumed_units: int = 0
    resumed_calls: int = 0
    seconds: float = 0.0


def count_units(module: nn.Module, names: Sequence[str], recipe: Recipe) -> int:
    """Layers and blocks that `round_weights` will round one after the other; 0 if the rule looks at no inputs."""
    rule = recipe.weights.build_rounding()
    return len(find_units(module, names, rule.blocks)) if rule.num_samples else 0


def find_units(module: nn.Module, names: Sequence[str], blocks: bool) -> list[Unit]:
    """The units of a denoiser, in module order.

    Args:
        names: of the layers to quantize; a block holds those that lie in it.
        blocks: whether to round blocks as a whole.
    """
    layers: dict[str, Any] = {name: module.get_submodule(name) for name in names}
    block_of = {}
    for block, _ in find_blocks(module) if blocks else ():
        block_of.update({name: block for name in names if name.startswith(f"{block}.")})
    members: dict[str, list[str]] = {}
    for name in names:
        members.setdefault(block_of.get(name, name), []).append(name)
    return [
        Unit(unit, module.get_submodule(unit), {name: layers[name] for name in inside})
        for unit, inside in members.items()
    ]


def round_weights(
    pipeline: Any,
    denoiser: Denoiser,
    names: Sequence[str],
    recipe: Recipe,
    settings: CalibrationSettings,
    trace: Trace,
    clock: SlotClock,
    checkpoint: Checkpoint,
    stages: Stages | None = None,
) -> RoundedWeights:
    """Rounds the weights of layers as the recipe says; changes nothing in the pipeline.

    Args:
        names: of the layers to quantize.
        stages: is told of calls of the trajectory, calls whose inputs were looked at, and units.

    Raises:
        NonFiniteError: a weight, an output of the denoiser, or a number within the rounding is NaN or infinite; names
            the layer or block. What was rounded before stays in the checkpoint.
    """
    started = time.perf_counter()
    check_weights(denoiser.module)
    rule = recipe.weights.build_rounding()
    if not rule.num_samples:
        return RoundedWeights()
    units = find_units(denoiser.module, names, rule.blocks)
    stages = stages or Stages()
    samples = sample_trajectory(
        pipeline,
        denoiser,
        recipe,
        settings,
        trace,
        clock,
        rule.num_samples,
        checkpoint,
        stages.calls(TRAJECTORY),
    )
    rows = settings.batch_size * max(1, trace.rows)
    with evaluating(denoiser.module), torch.no_grad():
        work = _Rounding(denoiser.module, units, rule, recipe, settings, samples, rows, stages)
        for rounded in work.run(checkpoint.part("rounded")):
            work.integers.update(rounded)
    return RoundedWeights(
        integers=work.integers,
        passes_per_prompt=samples.passes_per_prompt + work.rows_walked / (trace.rows * len(settings.prompts)),
        resumed_units=work.resumed,
        resumed_calls=samples.resumed_calls,
        seconds=time.perf_counter() - started,
    )


class _Rounding:
    """Rounds units, as many at a time as fit in memory.

    Attributes:
        integers: of all layers rounded so far.
        rows_walked: rows that went through the denoiser for it, in a run that nothing interrupts.
        resumed: units that were found on disk.
        sizes, walks: of the units, and how they are grouped.
    """

    def __init__(
        self,
        module: nn.Module,
        units: Sequence[Unit],
        rule: RoundingRule,
        recipe: Recipe,
        settings: CalibrationSettings,
        samples: Samples,
        rows: int,
        stages: Stages,
    ):
        self.module, self.units, self.rule, self.scheme, self.samples = module, units, rule, recipe.weights, samples
        self.seed, self.rows, self.stages = settings.seed, rows, stages
        self.integers: dict[str, Integers] = {}
        self.rows_walked = 0
        self.resumed = 0
        args, kwargs = next(micro_batches(*samples.calls[0], rows))
        self.rows_walked += batch_size(args, kwargs)
        self.sizes = measure_units(module, units, rule, args, kwargs)
        self.walks = Walks(units, self.sizes, rule, samples.rows, settings.memory_budget)
        self._left = sum(size.cost.operations for size in self.sizes.values())
        self._calls_walked = 0

    def run(self, finished: Checkpoint) -> Iterator[dict[str, Integers]]:
        """Integers of each unit, in order; each is on disk before the next begins.

        Which units share a walk depends on all of them and not on what is finished, and so does the count of passes:
        an interrupted run ends in the bytes of an undisturbed one.
        """
        for group in self.walks.groups:
            self.rows_walked += self.samples.rows
            stored = {number: finished.load(number, self._key(number)) for number in group}
            seen = self._collect([self.units[number] for number, tensors in stored.items() if tensors is None])
            for number, tensors in stored.items():
                if tensors is None:
                    rounded = self._round(number, seen.pop(self.units[number].name))
                    finished.save(number, self._key(number), _to_tensors(rounded))
                else:
                    self.resumed += 1
                    rounded = _from_tensors(tensors, self.units[number])
                self._tell_rounded(number, replayed=tensors is not None)
                yield rounded

    def _tell_rounded(self, number: int, replayed: bool) -> None:
        work = self.sizes[self.units[number].name].cost.operations
        self._left = max(0.0, self._left - work)
        self.stages.tell(Advance(ROUNDING, number + 1, len(self.units), work, self._left, replayed))

    def _tell_walked(self, calls: int, replayed: bool) -> None:
        self._calls_walked += calls
        total = len(self.samples.calls) * len(self.walks.groups)
        left = total - self._calls_walked
        self.stages.tell(Advance(INPUTS, self._calls_walked, total, calls, left, replayed))

    def _key(self, number: int) -> str:
        return f"{self.samples.digest}:{self.units[number].name}"

    def _round(self, number: int, seen: Collector) -> dict[str, Integers]:
        unit, num_bits = self.units[number], self.scheme.num_bits
        grids = {name: grid_of(layer.weight, self.scheme) for name, layer in unit.layers.items()}
        scales = {name: grid.scale if self.scheme.is_plain else grid for name, grid in grids.items()}
        generator = torch.Generator().manual_seed(self.seed + number)
        integers = self.rule.round(unit, scales, num_bits, seen, generator)
        return {name: (value, *grids[name].tensors) for name, value in integers.items()}

    def _collect(self, units: Sequence[Unit]) -> dict[str, Collector]:
        """Walks all samples through the denoiser and shows each unit's calls to its collector."""
        if not units:
            self._tell_walked(len(self.samples.calls), replayed=True)
            return {}
        rows = self.samples.rows
        collectors = {unit.name: self.rule.collector(unit, rows, self.walks.kept_rows(unit)) for unit in units}
        with watching_units(units, lambda name, args, kwargs, output: collectors[name].see(args, kwargs, output)):
            for call in self.samples.calls:
                for args, kwargs in micro_batches(*call, self.rows):
                    self.module(*args, **kwargs)
                self._tell_walked(1, replayed=False)
        return collectors


_PARTS = ("integers", "scale", "zero_point")


def _to_tensors(rounded: Mapping[str, Integers]) -> dict[str, Tensor]:
    """A unit's integers, scales and zero points in one flat mapping, for the checkpoint."""
    return {
        f"{name}|{part}": tensor
        for name, tensors in rounded.items()
        for part, tensor in zip(_PARTS, tensors, strict=False)
    }


def _from_tensors(tensors: Mapping[str, Tensor], unit: Unit) -> dict[str, Integers]:
    """Undoes `_to_tensors`, on the devices of the layers."""
    return {
        name: tuple(tensors[f"{name}|{part}"].to(layer.weight.device) for part in _PARTS if f"{name}|{part}" in tensors)
        for name, layer in unit.layers.items()
    }
