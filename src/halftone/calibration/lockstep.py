"""The denoiser's forward during calibration: it gets all prompts of a step at once and walks them in micro-batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from halftone.calibration.checkpoint import Checkpoint, digest
from halftone.calibration.observation import Observers, load_tensors, observing, to_tensors
from halftone.calibration.trace import Trace
from halftone.denoiser import Denoiser, timestep_of
from halftone.layers import ExecutionMode, QuantizedLayer
from halftone.microbatch import batch_size, in_micro_batches, take
from halftone.numerics import range_to_qparams
from halftone.recipe import Recipe
from halftone.timesteps import SlotClock

Ranges = tuple[tuple[float, float], ...]


class Lockstep(ABC):
    """A stand-in for the denoiser's forward that observes each call and decides what goes back to the pipeline."""

    def __init__(
        self,
        denoiser: Denoiser,
        layers: Mapping[str, nn.Module],
        recipe: Recipe,
        trace: Trace,
        clock: SlotClock,
        rows: int,
        checkpoint: Checkpoint,
        progress: Callable[[int, int], None],
    ):
        self.module = denoiser.module
        self.forward = denoiser.module.forward
        self.layers, self.recipe, self.trace, self.clock = layers, recipe, trace, clock
        self.rows, self.checkpoint, self.progress = rows, checkpoint, progress
        self.calls = 0
        self.resumed_calls = 0
        self.rows_passed = 0.0
        self.rows_per_call = 1
        self.observers: dict[int, Observers] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self.calls
        slot = self.clock.set_timestep(timestep_of(self.module, args, kwargs))
        self.rows_per_call = batch_size(args, kwargs)
        key = _input_key(args, kwargs)
        stored = self.checkpoint.load(call, key)
        if stored is None:
            label = f"step {call + 1} of {len(self.trace.timesteps)} (timestep {self.clock.slots.timesteps[slot]:g})"
            before = self.rows_passed
            output = self.run_call(slot, label, args, kwargs)
            passed = torch.tensor(self.rows_passed - before)
            self.checkpoint.save(call, key, {"output": _tensor(output), "passed": passed, **self.state(slot)})
        else:
            self.resumed_calls += 1
            self.rows_passed += float(stored.pop("passed"))
            output = stored.pop("output")
            self.restore(slot, stored)
        self.calls += 1
        self.progress(self.calls, len(self.trace.timesteps))
        return (output,) if isinstance(output, Tensor) else output

    @abstractmethod
    def run_call(self, slot: int, label: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Observes and runs one call of the pipeline; returns what the pipeline gets."""

    @abstractmethod
    def row_of(self, slot: int) -> int:
        """The table row whose ranges a slot contributes to."""

    @property
    def passes_per_prompt(self) -> float:
        """Counted passes of each prompt through the denoiser, both guidance halves together being one."""
        return self.rows_passed / self.rows_per_call

    def final_ranges(self, name: str) -> Ranges:
        """Observed (lo, hi) of a layer's input, row by row."""
        bits, symmetric = self.clock.slots.num_bits, self.recipe.activations.symmetric
        return tuple(self.observers[row][name].range(bits[row], symmetric) for row in sorted(self.observers))

    def state(self, slot: int) -> dict[str, Tensor]:
        return to_tensors(self._observers_of(slot))

    def restore(self, slot: int, stored: Mapping[str, Tensor]) -> None:
        load_tensors(self._observers_of(slot), stored)

    def _observers_of(self, slot: int) -> Observers:
        build = self.recipe.activations.observer.build
        return self.observers.setdefault(self.row_of(slot), {name: build() for name in self.layers})

    def _walk(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """One pass of all rows through the denoiser, in micro-batches; counts them."""

        def counted(*some: Any, **named: Any) -> Any:
            self.rows_passed += batch_size(some, named)
            return self.forward(*some, **named)

        return in_micro_batches(counted, self.rows)(*args, **kwargs)

    def _walk_without_output(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        total = batch_size(args, kwargs)
        for start in range(0, total, self.rows):
            part = take(tuple(args), start, start + self.rows, total)
            named = take(dict(kwargs), start, start + self.rows, total)
            self.rows_passed += batch_size(part, named)
            self.forward(*part, **named)


class ProgressiveLockstep(Lockstep):
    """Observe with quantized weights and floating-point activations, fix this slot, run again in integers."""

    layers: Mapping[str, QuantizedLayer]

    def run_call(self, slot: int, label: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        with self._mode(ExecutionMode.WEIGHT_ONLY), observing(self.layers, self._observers_of(slot), label):
            self._walk_without_output(args, kwargs)
        self._fix(slot)
        return self._walk(args, kwargs)

    def row_of(self, slot: int) -> int:
        return slot

    def restore(self, slot: int, stored: Mapping[str, Tensor]) -> None:
        super().restore(slot, stored)
        self._fix(slot)

    def _fix(self, slot: int) -> None:
        bits, symmetric = self.clock.slots.num_bits[slot], self.recipe.activations.symmetric
        for name, observer in self._observers_of(slot).items():
            lo, hi = observer.range(bits, symmetric)
            self.layers[name].set_row(slot, range_to_qparams(lo, hi, bits, symmetric))

    @contextmanager
    def _mode(self, mode: ExecutionMode) -> Iterator[None]:
        for layer in self.layers.values():
            layer.mode = mode
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.mode = ExecutionMode.INTEGER


class FullPrecisionLockstep(Lockstep):
    """Observe the full-precision model on its own trajectory (the baselines' calibration data)."""

    def run_call(self, slot: int, label: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        with observing(self.layers, self._observers_of(slot), label):
            return self._walk(args, kwargs)

    def row_of(self, slot: int) -> int:
        return slot if self.recipe.activations.granularity == "timestep" else 0


def _input_key(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Digest of the call's first tensor: the latents, which sum up all that went before."""
    first = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim > 0)
    return digest(first)


def _tensor(output: Any) -> Tensor:
    """The prediction in a denoiser's output (tuple or ModelOutput)."""
    return output if isinstance(output, Tensor) else output[0]
