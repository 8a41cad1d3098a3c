"""Weights to integers before the lockstep: scales, then a rounding rule, unit by unit, within a memory budget.

A rule that looks at inputs gets those of the full-precision model, over all steps of its own trajectory (Tang et al.,
ECCV 2024, section 3.1, as BRECQ and Q-Diffusion do). The denoiser's own arguments are small and are kept; the inputs
of layers and blocks are large and are made again from them, for as many units at a time as fit in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from halftone.calibration.checkpoint import Checkpoint
from halftone.calibration.run import Integers, check_weights, evaluating
from halftone.calibration.settings import CalibrationSettings
from halftone.calibration.trace import Trace
from halftone.calibration.trajectory import Samples, sample_trajectory
from halftone.denoiser import Denoiser, find_blocks
from halftone.errors import CalibrationError
from halftone.microbatch import batch_size, micro_batches
from halftone.recipe import Recipe
from halftone.rounding import Collector, RoundingRule, Unit, weight_scale
from halftone.timesteps import SlotClock

__all__ = ["RoundedWeights", "count_units", "round_weights"]


@dataclass(frozen=True)
class RoundedWeights:
    """What rounding gave.

    Attributes:
        integers: layer -> (int8 weights, float32 scale ``[out]``); without an entry where rounding to nearest is left
            to the conversion of the layers.
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
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RoundedWeights:
    """Rounds the weights of layers as the recipe says; changes nothing in the pipeline.

    Args:
        names: of the layers to quantize.
        progress: called with (finished calls and units, all of them).

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
    calls = len(trace.timesteps)
    all_steps = calls + len(units)
    samples = sample_trajectory(
        pipeline,
        denoiser,
        recipe,
        settings,
        trace,
        clock,
        rule.num_samples,
        checkpoint,
        lambda done, _: progress(done, all_steps),
    )
    rows = settings.batch_size * max(1, trace.rows)
    with evaluating(denoiser.module), torch.no_grad():
        work = _Rounding(denoiser.module, units, rule, recipe, settings, samples, rows)
        for number, rounded in enumerate(work.run(checkpoint.part("rounded"))):
            work.integers.update(rounded)
            progress(calls + number + 1, all_steps)
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
    ):
        self.module, self.units, self.rule, self.scheme, self.samples = module, units, rule, recipe.weights, samples
        self.budget, self.seed, self.rows = settings.memory_budget, settings.seed, rows
        self.integers: dict[str, Integers] = {}
        self.rows_walked = 0
        self.resumed = 0
        self._bytes_per_row = self._measure()

    def run(self, finished: Checkpoint) -> Iterator[dict[str, Integers]]:
        """Integers of each unit, in order; each is on disk before the next begins.

        Which units share a walk depends on all of them and not on what is finished, and so does the count of passes:
        an interrupted run ends in the bytes of an undisturbed one.
        """
        for group in self._groups():
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
                yield rounded

    def _key(self, number: int) -> str:
        return f"{self.samples.digest}:{self.units[number].name}"

    def _round(self, number: int, seen: Collector) -> dict[str, Integers]:
        unit, num_bits = self.units[number], self.scheme.num_bits
        scales = {name: weight_scale(layer.weight, num_bits, self.scheme.scale) for name, layer in unit.layers.items()}
        generator = torch.Generator().manual_seed(self.seed + number)
        integers = self.rule.round(unit, scales, num_bits, seen, generator)
        return {name: (value, scales[name]) for name, value in integers.items()}

    def _groups(self) -> list[list[int]]:
        """Numbers of the units in order, split where what their collectors need together would pass the budget."""
        groups: list[list[int]] = []
        used = 0
        for number, unit in enumerate(self.units):
            need = self.rule.memory_bytes(unit, self._bytes_per_row[unit.name], self._kept_rows(unit))
            if not groups or used + need > self.budget:
                groups.append([])
                used = 0
            groups[-1].append(number)
            used += need
        return groups

    def _kept_rows(self, unit: Unit) -> int:
        """Rows of a unit's calls that fit in the budget, at least one."""
        return max(1, min(self.samples.rows, self.budget // max(1, self._bytes_per_row[unit.name])))

    def _measure(self) -> dict[str, int]:
        """Bytes a row of the tensors in each unit's call and output, from the first micro-batch.

        Raises:
            CalibrationError: a unit is never called.
        """
        sizes: dict[str, int] = {}

        def measure(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            size = sum(leaf.nbytes for leaf in tree_leaves((args, dict(kwargs), output)) if isinstance(leaf, Tensor))
            sizes[name] = -(-size // max(1, batch_size(args, kwargs)))

        args, kwargs = next(micro_batches(*self.samples.calls[0], self.rows))
        with _watching(self.units, measure):
            self.module(*args, **kwargs)
        self.rows_walked += batch_size(args, kwargs)
        silent = next((unit.name for unit in self.units if unit.name not in sizes), None)
        if silent is not None:
            raise CalibrationError(f"{silent} is never called by the pipeline; add it to the recipe's exclude list.")
        return sizes

    def _collect(self, units: Sequence[Unit]) -> dict[str, Collector]:
        """Walks all samples through the denoiser and shows each unit's calls to its collector."""
        if not units:
            return {}
        rows = self.samples.rows
        collectors = {unit.name: self.rule.collector(unit, rows, self._kept_rows(unit)) for unit in units}
        with _watching(units, lambda name, args, kwargs, output: collectors[name].see(args, kwargs, output)):
            for call in self.samples.calls:
                for args, kwargs in micro_batches(*call, self.rows):
                    self.module(*args, **kwargs)
        return collectors


@contextmanager
def _watching(
    units: Sequence[Unit], see: Callable[[str, tuple[Any, ...], Mapping[str, Any], Any], None]
) -> Iterator[None]:
    """Within the context ``see`` gets name, arguments and output of every call of a unit."""

    def hook(name: str) -> Callable[..., None]:
        return lambda _, args, kwargs, output: see(name, args, kwargs, output)

    with ExitStack() as stack:
        for unit in units:
            stack.callback(unit.module.register_forward_hook(hook(unit.name), with_kwargs=True).remove)
        yield


def _to_tensors(rounded: Mapping[str, Integers]) -> dict[str, Tensor]:
    """A unit's integers and scales in one flat mapping, for the checkpoint."""
    tensors = {}
    for name, (integers, scale) in rounded.items():
        tensors[f"{name}|integers"], tensors[f"{name}|scale"] = integers, scale
    return tensors


def _from_tensors(tensors: Mapping[str, Tensor], unit: Unit) -> dict[str, Integers]:
    """Undoes `_to_tensors`, on the devices of the layers."""
    return {
        name: (
            tensors[f"{name}|integers"].to(layer.weight.device),
            tensors[f"{name}|scale"].to(layer.weight.device),
        )
        for name, layer in unit.layers.items()
    }
