"""The denoiser's forward during calibration: it gets all prompts of a step at once and walks them in micro-batches."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from halftone.calibration.checkpoint import Checkpoint, digest
from halftone.calibration.observation import Observers, load_tensors, observing, to_tensors
from halftone.calibration.stages import CallDone
from halftone.calibration.trace import Trace, first_tensor
from halftone.denoiser import Denoiser, as_output, timestep_of
from halftone.errors import CalibrationError, InputError, NonFiniteError
from halftone.layers import ExecutionMode, QuantizedLayer
from halftone.microbatch import batch_size, in_micro_batches, micro_batches, pick_arguments
from halftone.numerics import range_to_qparams
from halftone.recipe import Recipe
from halftone.timesteps import SlotClock

Ranges = tuple[tuple[float, float], ...]
EVEN_STEPS = 25


class Lockstep(ABC):
    """A stand-in for the denoiser's forward that observes each call and decides what goes back to the pipeline.

    Attributes:
        calls, resumed_calls: finished calls of the pipeline, and those of them that were replayed from disk.
        passes_per_prompt: counted passes of each prompt through the denoiser, both guidance halves together being one.
        observers: by table row, then layer; a row's are dropped after its last visit (histograms are large).
        ranges: observed (lo, hi) by table row, then layer.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        layers: Mapping[str, nn.Module],
        recipe: Recipe,
        trace: Trace,
        clock: SlotClock,
        rows: int,
        checkpoint: Checkpoint,
        progress: CallDone,
    ):
        self.module = denoiser.module
        self.forward = denoiser.module.forward
        self.layers, self.recipe, self.trace, self.clock = layers, recipe, trace, clock
        self.rows, self.checkpoint, self.progress = rows, checkpoint, progress
        self.calls = 0
        self.resumed_calls = 0
        self.passes_per_prompt = 0.0
        self.observers: dict[int, Observers] = {}
        self.ranges: dict[int, dict[str, tuple[float, float]]] = {}
        self._rows_passed = 0
        self._visits_left = Counter(self.row_of(clock.slots.slot_of(timestep)) for timestep in trace.timesteps)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self.calls
        slot = self.clock.set_timestep(timestep_of(self.module, args, kwargs))
        key = input_key(args, kwargs)
        stored = self.checkpoint.load(call, key)
        replayed = stored is not None
        if stored is None:
            label = f"step {call + 1} of {len(self.trace.timesteps)} (timestep {self.clock.slots.timesteps[slot]:g})"
            before = self._rows_passed
            output = prediction_of(self.run_call(slot, label, args, kwargs))
            check_finite(output, label)
            passed = (self._rows_passed - before) / batch_size(args, kwargs)
            stored_passed = torch.tensor(passed, dtype=torch.float64)
            self.checkpoint.save(call, key, {"output": output, "passed": stored_passed, **self.state(slot)})
        else:
            self.resumed_calls += 1
            passed = float(stored.pop("passed"))
            output = stored.pop("output").to(first_tensor(args, kwargs).device)
            self.restore(slot, stored)
        self._leave(self.row_of(slot))
        self.passes_per_prompt += passed
        self.calls += 1
        self.progress(self.calls, len(self.trace.timesteps), replayed)
        return as_output(output, kwargs)

    def watching(self, scheduler: Any) -> AbstractContextManager[None]:
        """A context for the pipeline's run, for locksteps that have to know what its scheduler does."""
        return nullcontext()

    @abstractmethod
    def run_call(self, slot: int, label: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Observes and runs one call of the pipeline; returns what the pipeline gets."""

    @abstractmethod
    def row_of(self, slot: int) -> int:
        """The table row whose ranges a slot contributes to."""

    def final_ranges(self, name: str) -> Ranges:
        """Observed (lo, hi) of a layer's input, row by row."""
        return tuple(self.ranges[row][name] for row in sorted(self.ranges))

    def state(self, slot: int) -> dict[str, Tensor]:
        return to_tensors(self._observers_of(slot))

    def restore(self, slot: int, stored: Mapping[str, Tensor]) -> None:
        load_tensors(self._observers_of(slot), stored)

    def _observers_of(self, slot: int) -> Observers:
        row = self.row_of(slot)
        if self._visits_left[row] < 1:
            raise CalibrationError("The pipeline called its denoiser more often than in the trial call before.")
        if row not in self.observers:
            self.observers[row] = {name: self.recipe.activations.observer.build() for name in self.layers}
        return self.observers[row]

    def _measure(self, row: int) -> dict[str, tuple[float, float]]:
        """Takes a row's ranges from its observers as they are now."""
        bits, symmetric = self.clock.slots.num_bits[row], self.recipe.activations.symmetric
        self.ranges[row] = {name: observer.range(bits, symmetric) for name, observer in self.observers[row].items()}
        return self.ranges[row]

    def _leave(self, row: int) -> None:
        self._visits_left[row] -= 1
        if self._visits_left[row] == 0:
            if row not in self.ranges:
                self._measure(row)
            del self.observers[row]

    def rows_of(self, prompts: Sequence[int], total: int) -> list[int]:
        """Rows of some prompts in a call with ``total`` rows: with guidance in one call the unconditional rows of all
        prompts come first, then their conditional ones."""
        halves = max(1, self.trace.rows)
        return [half * (total // halves) + prompt for half in range(halves) for prompt in prompts]

    def _walk(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """One pass of all rows through the denoiser, in micro-batches."""
        return in_micro_batches(self._counted, self.rows)(*args, **kwargs)

    def _walk_without_output(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        for part, named in micro_batches(args, kwargs, self.rows):
            self._counted(*part, **named)

    def _counted(self, *args: Any, **kwargs: Any) -> Any:
        """The denoiser's own forward; counts the rows that go through it.

        Raises:
            InputError: it refuses its very first arguments; the trial call did not run it, and so could not tell.
        """
        first = self._rows_passed == 0
        self._rows_passed += batch_size(args, kwargs)
        with explaining_refusal(self.module) if first else nullcontext():
            return self.forward(*args, **kwargs)


@contextmanager
def explaining_refusal(module: nn.Module) -> Iterator[None]:
    """Within the context, for the first call of a denoiser, what it says against its arguments is told as such.

    Raises:
        InputError: it refused them.
    """
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "shape" not in str(error):
            raise
        said = " ".join(str(error).split())[-300:]
        raise InputError(
            f"{type(module).__name__} cannot run as the pipeline calls it; take the one that belongs to the"
            f" pipeline ({said})."
        ) from error


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
        for name, (lo, hi) in self._measure(self.row_of(slot)).items():
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
        drawn = self.recipe.observed_steps
        if drawn == "even" and self.calls not in even_draw(len(self.trace.timesteps)):
            return self._walk(args, kwargs)
        if drawn != "normal":
            with observing(self.layers, self._observers_of(slot), label):
                return self._walk(args, kwargs)
        output, total = self._walk(args, kwargs), batch_size(args, kwargs)
        prompts = normal_draw(total // max(1, self.trace.rows), len(self.trace.timesteps))[self.calls]
        if prompts:
            part, named = pick_arguments(args, kwargs, self.rows_of(prompts, total), total)
            with observing(self.layers, self._observers_of(slot), label):
                self._walk_without_output(part, named)
        return output

    def row_of(self, slot: int) -> int:
        return slot if self.recipe.activations.granularity == "timestep" else 0


def even_draw(calls: int) -> tuple[int, ...]:
    """Which calls are observed, with all prompts, as Q-Diffusion (Li et al. 2023, arXiv 2302.04304) draws its
    calibration data: `EVEN_STEPS` of them at even distances, beginning with the first; all if there are no more."""
    steps = min(calls, EVEN_STEPS)
    return tuple(step * calls // steps for step in range(steps))


def normal_draw(prompts: int, calls: int) -> tuple[tuple[int, ...], ...]:
    """Which prompts are observed at which call, each at one, as PTQ4DM draws its calibration data.

    Shang et al., "Post-training Quantization on Diffusion Models" (2022, arXiv 2211.15736): the distance from the
    image is normal with a standard deviation of half the trajectory and a mean below its middle (0.4 of it here), held
    within the trajectory. Quantiles are taken instead of random numbers: the same distribution, evenly drawn.
    """
    normal = NormalDist(0.4, 0.5)
    chosen: list[list[int]] = [[] for _ in range(calls)]
    for prompt in range(prompts):
        distance = min(1.0, max(0.0, normal.inv_cdf((prompt + 0.5) / prompts)))
        chosen[calls - 1 - min(calls - 1, int(distance * calls))].append(prompt)
    return tuple(tuple(group) for group in chosen)


def input_key(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Digest of all tensors of the call: the latents, which sum up all that went before, the prompts' embeddings …"""
    return hashlib.sha256("".join(_digests((args, dict(kwargs)))).encode()).hexdigest()


def _digests(value: Any) -> Iterator[str]:
    if isinstance(value, Tensor):
        yield digest(value)
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _digests(item)


def check_finite(output: Tensor, label: str) -> None:
    """Nobody observes the output of the last layers, which stay in floating point; so it is checked by itself."""
    if not bool(torch.isfinite(output).all()):
        count = int((~torch.isfinite(output)).sum())
        raise NonFiniteError(f"The output of the denoiser has {count} NaN or infinite elements in {label}.")


def prediction_of(output: Any) -> Tensor:
    """The prediction in a denoiser's output (tuple or ModelOutput)."""
    return output if isinstance(output, Tensor) else output[0]
