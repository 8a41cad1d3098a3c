"""Measures, on a few prompts and the full-precision model, what `relaxation` chooses the relaxed steps from.

Activations are rounded in front of the floating-point layers, so that nothing is replaced and no weight is rounded:

1. one full-precision trajectory, on which every call is observed and run again with the recipe's and with the relaxed
   bits: the errors of the prediction;
2. for calls at even distances, the trajectory once more with that error left in at that call: the gains;
3. the whole trajectory with the chosen steps relaxed, and with as many at the start and at the end: the best of the
   three is taken, so that a choice that does not keep its promise does no harm.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from halftone.calibration.checkpoint import Checkpoint, digest
from halftone.calibration.lockstep import check_finite, explaining_refusal, input_key, prediction_of
from halftone.calibration.observation import observing
from halftone.calibration.pieces import Pieces
from halftone.calibration.relaxation import StepErrors, interpolated_gains, most_helpful, probed_calls
from halftone.calibration.rounded_layers import Table, find_ranges, rounding_inputs, table_of
from halftone.calibration.run import run_pipeline
from halftone.calibration.settings import CalibrationSettings
from halftone.calibration.stages import RELAXING, Stages
from halftone.calibration.trace import Trace
from halftone.denoiser import Denoiser, as_output
from halftone.microbatch import in_micro_batches
from halftone.quantities import time_text
from halftone.recipe import Recipe

__all__ = ["RelaxedSteps", "ScanPlan", "find_relaxed_steps", "needs_scan", "scan_sentence"]

PROMPTS = 4  # of the calibration's; a trajectory's latents have thousands of elements to average over
PROBES = 20  # calls whose gain is measured
OBSERVED = 3  # passes of an observed call
SIDES = ("auto", "start", "end")


@dataclass(frozen=True)
class RelaxedSteps:
    """What a scan chose, and from what.

    Attributes:
        slots: that are relaxed.
        side: "auto", or "start" or "end" if that proved better.
        errors: from which "auto" was chosen.
        final_error: of each side tried, ‖latents − full precision‖ / ‖full precision‖ at the end.
        passes: of the scan's prompts through the denoiser.
        prompts: of the scan.
        resumed_pieces: of the scan, found on disk.
        seconds: wall time of this process.
    """

    slots: tuple[int, ...]
    side: str
    errors: StepErrors
    final_error: Mapping[str, float]
    passes: int
    prompts: int
    resumed_pieces: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For the record; JSON-ready."""
        return {
            "slots": list(self.slots),
            "side": self.side,
            "final_error": dict(self.final_error),
            "prompts": self.prompts,
            "gains": list(self.errors.gains),
            "prediction_errors": {"narrow": list(self.errors.narrow), "relaxed": list(self.errors.wide)},
        }


@dataclass(frozen=True)
class ScanPlan:
    """How much a scan does.

    Attributes:
        calls: of the denoiser for an image.
        prompts: that go through it.
        probed: calls whose gain is measured.
    """

    calls: int
    prompts: int
    probed: tuple[int, ...]

    @classmethod
    def of(cls, trace: Trace, settings: CalibrationSettings) -> ScanPlan:
        calls = len(trace.timesteps)
        return cls(calls, min(PROMPTS, len(settings.prompts)), probed_calls(calls, PROBES))

    @property
    def works(self) -> tuple[int, ...]:
        """Passes through the denoiser of each piece, in order: observed calls, probes, sides."""
        return (*[OBSERVED] * self.calls, *[self.calls - 1 - call for call in self.probed], *[self.calls] * len(SIDES))


def needs_scan(recipe: Recipe, trace: Trace) -> bool:
    """Whether there is a choice of relaxed steps to make."""
    total = len(trace.distinct)
    return recipe.finds_slots and 0 < recipe.num_relaxed(total) < total


def scan_sentence(settings: CalibrationSettings, trace: Trace, pass_seconds: float | None) -> str:
    """One line for the person who waits, to follow that of the calibration.

    Args:
        pass_seconds: of one pass of all prompts in floating point, over all calls; None if not known.
    """
    plan = ScanPlan.of(trace, settings)
    passes = sum(plan.works)
    text = f"Before it, the relaxed steps are chosen with {passes} passes of {plan.prompts} prompts"
    if pass_seconds is None:
        return f"{text}."
    seconds = pass_seconds * passes * plan.prompts / (len(settings.prompts) * plan.calls)
    return f"{text} in about {time_text(seconds)}."


def find_relaxed_steps(
    pipeline: Any,
    denoiser: Denoiser,
    names: Sequence[str],
    recipe: Recipe,
    settings: CalibrationSettings,
    trace: Trace,
    checkpoint: Checkpoint,
    stages: Stages | None = None,
) -> RelaxedSteps:
    """Chooses the slots that a recipe whose ``relax.side`` is 'auto' relaxes; changes nothing in the pipeline.

    Args:
        names: of the layers to quantize.
        stages: is told of every piece.

    Raises:
        NonFiniteError: an activation or a prediction is NaN or infinite; says where.
    """
    layers = {name: denoiser.module.get_submodule(name) for name in names}
    scan = _Scan(pipeline, denoiser, layers, recipe, settings, trace, checkpoint.part("relaxing"), stages or Stages())
    return scan.run()


class _Scan:
    """The three parts of a scan; each finished piece is kept in the checkpoint."""

    def __init__(
        self,
        pipeline: Any,
        denoiser: Denoiser,
        layers: Mapping[str, nn.Module],
        recipe: Recipe,
        settings: CalibrationSettings,
        trace: Trace,
        finished: Checkpoint,
        stages: Stages,
    ):
        self.pipeline, self.denoiser, self.layers, self.recipe = pipeline, denoiser, layers, recipe
        self.settings, self.trace = settings, trace
        assert recipe.relax is not None
        self.bits = (recipe.activations.num_bits, recipe.relax.bits)
        self.plan = ScanPlan.of(trace, settings)
        self.prompts = settings.prompts[: self.plan.prompts]
        self.walk = in_micro_batches(denoiser.module.forward, settings.batch_size * max(1, trace.rows))
        self.calls: list[_Observed] = []
        self.latents = torch.empty(0)
        self.pieces = Pieces(RELAXING, self.plan.works, finished, stages)

    def run(self) -> RelaxedSteps:
        started = time.perf_counter()
        self.latents = self._run(self._observe)
        slots = tuple(self.trace.distinct.index(timestep) for timestep in self.trace.timesteps)
        gains = interpolated_gains(self.plan.probed, [self._gain(call) for call in self.plan.probed], self.plan.calls)
        narrow, wide = (tuple(call.norms[width] for call in self.calls) for width in (0, 1))
        errors = StepErrors(slots, narrow, wide, gains)
        total = len(self.trace.distinct)
        choices = {
            side: most_helpful(errors, self.recipe.num_relaxed(total))
            if side == "auto"
            else tuple(self.recipe.relaxed_slots(total, side))
            for side in SIDES
        }
        final = {side: self._final_error(slots, choices[side]) for side in SIDES}
        best = min(SIDES, key=lambda side: final[side])
        passes = sum(self.plan.works)
        seconds = time.perf_counter() - started
        return RelaxedSteps(choices[best], best, errors, final, passes, self.plan.prompts, self.pieces.resumed, seconds)

    def _run(self, forward: Callable[..., Any]) -> Tensor:
        return run_pipeline(self.pipeline, self.denoiser, self.settings, forward, self.prompts).double()

    def _observe(self, *args: Any, **kwargs: Any) -> Any:
        """In the place of the denoiser's forward: its prediction, and notes the errors of both widths."""
        number = len(self.calls)
        tensors = self.pieces.next(input_key(args, kwargs), lambda: self._look(number, args, kwargs))
        self.calls.append(_Observed.from_tensors(tensors, self.layers, self.bits))
        return as_output(self._placed(self.calls[-1].prediction), kwargs)

    def _look(self, number: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        label = f"step {number + 1} of {self.plan.calls} (timestep {self.trace.timesteps[number]:g})"
        scheme = self.recipe.activations
        observers = {name: scheme.observer.build() for name in self.layers}
        first = nullcontext() if number else explaining_refusal(self.denoiser.module)
        with first, observing(self.layers, observers, label):
            prediction = prediction_of(self.walk(*args, **kwargs))
        check_finite(prediction, label)
        tensors, norms = {"prediction": prediction}, []
        for width, bits in enumerate(self.bits):
            scales, zeros = find_ranges(observers, scheme, bits)
            with rounding_inputs(self.layers, table_of(self.layers, scales, zeros, bits)):
                error = prediction_of(self.walk(*args, **kwargs)) - prediction
            check_finite(error, f"{label}, rounded to {bits} bits")
            tensors |= {f"scale {width}": scales, f"zero point {width}": zeros}
            norms.append(error.double().norm())
            if width == 0 and number in self.plan.probed:
                tensors["error"] = error
        return {**tensors, "norms": torch.stack(norms)}

    def _gain(self, call: int) -> float:
        """How strongly the error of a call reaches the final latents; 0 if there is no error."""
        change, size = self.calls[call].error, self.calls[call].norms[0]
        assert change is not None

        def measure() -> dict[str, Tensor]:
            moved = self._run(self._replay(call, change)) if size else self.latents
            return {"moved": (moved - self.latents).norm() / (size or 1.0)}

        return float(self.pieces.next(digest(change), measure)["moved"])

    def _replay(self, call: int, change: Tensor) -> Callable[..., Any]:
        """A forward that answers as the first trajectory did up to a call, there with a change, and then runs."""
        numbers = count()

        def forward(*args: Any, **kwargs: Any) -> Any:
            number = next(numbers)
            if number > call:
                return self.walk(*args, **kwargs)
            prediction = self.calls[number].prediction
            return as_output(self._placed(prediction + change if number == call else prediction), kwargs)

        return forward

    def _final_error(self, slots: Sequence[int], relaxed: Sequence[int]) -> float:
        """Relative error of the final latents with these slots relaxed, all activations being rounded."""
        numbers = count()

        def forward(*args: Any, **kwargs: Any) -> Any:
            number = next(numbers)
            table = self.calls[number].tables[slots[number] in relaxed]
            with rounding_inputs(self.layers, table):
                return self.walk(*args, **kwargs)

        def measure() -> dict[str, Tensor]:
            return {"error": (self._run(forward) - self.latents).norm() / self.latents.norm()}

        named = f"{tuple(relaxed)} {digest(self.latents)}"
        return float(self.pieces.next(hashlib.sha256(named.encode()).hexdigest(), measure)["error"])

    def _placed(self, tensor: Tensor) -> Tensor:
        return tensor.to(next(self.denoiser.module.parameters()).device)


@dataclass(frozen=True)
class _Observed:
    """What was seen at a call: its prediction; for both widths how inputs are rounded and the norm of the error that
    this makes; the error itself of the recipe's bits, if the call's gain is measured."""

    prediction: Tensor
    tables: tuple[Table, Table]
    norms: tuple[float, float]
    error: Tensor | None

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], layers: Mapping[str, nn.Module], bits: tuple[int, int]
    ) -> _Observed:
        narrow, wide = (
            table_of(layers, tensors[f"scale {width}"], tensors[f"zero point {width}"], bits[width]) for width in (0, 1)
        )
        narrow_norm, wide_norm = tensors["norms"].tolist()
        return cls(tensors["prediction"], (narrow, wide), (narrow_norm, wide_norm), tensors.get("error"))
