"""What the fit of an output correction needs besides the lockstep: the sampler's ways, the full-precision path."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from halftone.calibration.sampler import SamplerCall, study_sampler, watching
from halftone.calibration.settings import CalibrationSettings
from halftone.calibration.trace import Trace, zero_output
from halftone.denoiser import Denoiser
from halftone.recipe import Recipe

__all__ = ["CorrectionPlan", "FullPrecisionPath", "plan_correction"]


@dataclass
class FullPrecisionPath:
    """The full-precision trajectory, to which 'drift' leads the quantized one back.

    Attributes:
        calls: what the sampler makes of each prediction.
        start: the latents it begins with.
        latents: after each step, float32, with the noise of `SamplerCall.next_latents`.
        predictions: the guided prediction at each step, float32.
        passes_per_prompt, resumed_calls, seconds: what it took, if it was run for this alone.
    """

    calls: tuple[SamplerCall, ...]
    start: Tensor | None = None
    latents: list[Tensor] = field(default_factory=list)
    predictions: list[Tensor] = field(default_factory=list)
    passes_per_prompt: float = 0.0
    resumed_calls: int = 0
    seconds: float = 0.0

    def recording(self, scheduler: Any) -> AbstractContextManager[None]:
        """Within the context, a run of the full-precision pipeline is noted down."""

        def note(step: Mapping[str, Any]) -> None:
            guided, sample = step["model_output"], step["sample"]
            if not self.latents:
                self.start = sample.clone()
            call = self.calls[len(self.latents)]
            self.latents.append(call.next_latents(scheduler, guided, sample).cpu())
            self.predictions.append(guided.float().cpu())

        return watching(scheduler, note, lambda latents: None)


@dataclass(frozen=True)
class CorrectionPlan:
    """What the fit of a correction needs besides the lockstep.

    Attributes:
        calls: what the sampler makes of each prediction.
        path: for 'drift', filled while the full-precision pipeline runs; None where the aim is full precision at the
            same input.
    """

    calls: tuple[SamplerCall, ...]
    path: FullPrecisionPath | None

    @property
    def needs_floats(self) -> bool:
        """Whether the layers in floating point have to be kept, in memory beside the integers."""
        return self.path is None

    def memory_bytes(self, module: nn.Module, trace: Trace, prompts: int) -> int:
        """What is kept for the fit: two float32 latents a prompt and step, or int8 weights beside the floats, which
        kernels may hold a second time in an order of their own."""
        if self.path is None:
            return 2 * sum(parameter.numel() for parameter in module.parameters())
        output = zero_output(module, trace.args, trace.kwargs)
        return 2 * 4 * output[0].numel() * prompts * len(self.calls)

    def recording(self, scheduler: Any) -> AbstractContextManager[None]:
        """A context for a run of the full-precision pipeline."""
        return nullcontext() if self.path is None else self.path.recording(scheduler)


def plan_correction(
    pipeline: Any, denoiser: Denoiser, recipe: Recipe, settings: CalibrationSettings
) -> CorrectionPlan | None:
    """Studies the sampler, if the recipe has a correction; None if it has none.

    Raises:
        InputError: this pipeline or its sampler leaves no room for the recipe's correction.
    """
    if recipe.correction.kind == "none":
        return None
    is_drift = recipe.correction.kind == "drift"
    calls = study_sampler(pipeline, denoiser, settings, needs_response=is_drift)
    return CorrectionPlan(calls, FullPrecisionPath(calls) if is_drift else None)
