"""Denoiser calls of the full-precision trajectory, some rows of each kept: what rounding rules look at."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_map

from halftone.calibration.checkpoint import Checkpoint
from halftone.calibration.correction_plan import FullPrecisionPath
from halftone.calibration.lockstep import Lockstep, input_key
from halftone.calibration.run import run_pipeline
from halftone.calibration.settings import CalibrationSettings
from halftone.calibration.stages import CallDone
from halftone.calibration.trace import Trace
from halftone.denoiser import Denoiser
from halftone.microbatch import batch_size, pick_arguments
from halftone.recipe import Recipe
from halftone.timesteps import SlotClock

__all__ = ["Samples", "follow_full_precision", "sample_trajectory"]

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Samples:
    """Arguments of denoiser calls, spread over all steps and prompts.

    Attributes:
        calls: (args, kwargs) with the chosen rows, in trajectory order.
        rows: rows of all calls together; with guidance in one call, two for each pair of prompt and step.
        digest: SHA-256 of all tensors.
        passes_per_prompt: counted passes of each prompt through the denoiser to get here.
        resumed_calls: denoiser calls replayed from disk.
    """

    calls: tuple[Call, ...]
    rows: int
    digest: str
    passes_per_prompt: float
    resumed_calls: int


def sample_trajectory(
    pipeline: Any,
    denoiser: Denoiser,
    recipe: Recipe,
    settings: CalibrationSettings,
    trace: Trace,
    clock: SlotClock,
    num_samples: int,
    checkpoint: Checkpoint,
    progress: CallDone = lambda done, total, replayed: None,
) -> Samples:
    """Runs the full-precision pipeline once and keeps the calls of `num_samples` (prompt, step) pairs.

    The pairs go through the steps evenly and through the prompts in turn: both are covered, whatever their number.

    Raises:
        NonFiniteError: the denoiser's output is not finite; says at which step.
    """
    rows = settings.batch_size * max(1, trace.rows)
    finished = checkpoint.part("trajectory")
    recorder = _Recorder(denoiser, {}, recipe, trace, clock, rows, finished, progress)
    recorder.chosen = spread(num_samples, len(trace.timesteps), len(settings.prompts))
    run_pipeline(pipeline, denoiser, settings, recorder)
    # Outside of the pipeline's inference mode, or the copies could take no part in a gradient.
    calls = tuple(tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, recorder.kept))
    return Samples(
        calls=calls,
        rows=sum(batch_size(*call) for call in calls),
        digest=hashlib.sha256("".join(input_key(*call) for call in calls).encode()).hexdigest(),
        passes_per_prompt=recorder.passes_per_prompt,
        resumed_calls=recorder.resumed_calls,
    )


def follow_full_precision(
    pipeline: Any,
    denoiser: Denoiser,
    recipe: Recipe,
    settings: CalibrationSettings,
    trace: Trace,
    clock: SlotClock,
    checkpoint: Checkpoint,
    path: FullPrecisionPath,
    progress: CallDone = lambda done, total, replayed: None,
) -> None:
    """Runs the full-precision pipeline once and notes its latents in ``path``, with the passes that it took.

    Raises:
        NonFiniteError: the denoiser's output is not finite; says at which step.
    """
    started = time.perf_counter()
    with path.recording(pipeline.scheduler):
        run = sample_trajectory(pipeline, denoiser, recipe, settings, trace, clock, 0, checkpoint, progress)
    path.passes_per_prompt, path.resumed_calls = run.passes_per_prompt, run.resumed_calls
    path.seconds = time.perf_counter() - started


def spread(num_samples: int, calls: int, prompts: int) -> tuple[tuple[int, ...], ...]:
    """Which prompts are kept at which call: samples evenly over the calls, prompts in turn, none twice at a call."""
    num_samples = min(num_samples, calls * prompts)  # there are no more
    chosen = []
    for call in range(calls):
        first, last = num_samples * call // calls, num_samples * (call + 1) // calls
        chosen.append(tuple(sorted({sample % prompts for sample in range(first, last)})))
    return tuple(chosen)


class _Recorder(Lockstep):
    """Runs every call in full precision and notes the chosen prompts' rows."""

    chosen: tuple[tuple[int, ...], ...] = ()

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.kept: list[Call] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A replayed call has the arguments of the first run, so that what is kept of them need not be on disk."""
        prompts = self.chosen[self.calls] if self.calls < len(self.chosen) else ()
        if prompts:
            self._keep(prompts, args, kwargs)
        return super().__call__(*args, **kwargs)

    def run_call(self, slot: int, label: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return self._walk(args, kwargs)

    def row_of(self, slot: int) -> int:
        return slot

    def _keep(self, prompts: tuple[int, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        total = batch_size(args, kwargs)
        self.kept.append(pick_arguments(args, kwargs, self.rows_of(prompts, total), total))
