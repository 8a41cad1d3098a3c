"""The lockstep of recipes that correct the denoiser's output: each call's prediction is corrected before it goes on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor, nn

from halftone.calibration.affine import GainRule, Moments
from halftone.calibration.correction_plan import CorrectionPlan, FullPrecisionPath
from halftone.calibration.lockstep import ProgressiveLockstep, prediction_of
from halftone.calibration.sampler import SamplerCall, watching
from halftone.calibration.trace import Trace, zero_output
from halftone.denoiser import set_submodule
from halftone.layers import OUTPUT_CORRECTION, OutputCorrection, by_channel, channel_dim

__all__ = ["CorrectedLockstep", "corrected_lockstep"]


class CorrectedLockstep(ProgressiveLockstep):
    """Observe, fix, run in integers, as without correction; then fit this slot's correction and hand on what it gives.

    A slot that is visited twice has one correction, from all visits so far.
    """

    def __init__(self, *common: Any, calls: tuple[SamplerCall, ...]) -> None:
        super().__init__(*common)
        self.sampler_calls, self.scheme = calls, self.recipe.correction
        self.correction = _add_correction(self.module, self.trace, len(self.clock.slots))
        self._moments: dict[int, Moments] = {}

    @abstractmethod
    def wanted(
        self, call: SamplerCall, seen: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """What should stand in the place of the guided prediction ``seen``, and the signal (see `affine`); float32."""

    def weight(self, call: SamplerCall) -> float:
        """Of a squared error in this call's prediction, against those of other visits of its slot."""
        return 1.0

    def run_call(self, slot: int, label: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        output = prediction_of(super().run_call(slot, label, args, kwargs))
        call = self.sampler_calls[self.calls]
        seen = call.guided(output)
        wanted, signal = self.wanted(call, seen, args, kwargs)
        moments = self._moments_of(slot, call.channels)
        moments.add(by_channel(seen), by_channel(wanted), by_channel(signal), self.weight(call))
        self._correct(slot)
        return self.correction(output, slot)

    def state(self, slot: int) -> dict[str, Tensor]:
        return {**super().state(slot), **self._moments[slot].state_dict()}

    def restore(self, slot: int, stored: Mapping[str, Tensor]) -> None:
        channels = self.sampler_calls[self.calls].channels
        super().restore(slot, self._moments_of(slot, channels).load_state(stored))
        self._correct(slot)

    def _moments_of(self, slot: int, channels: int) -> Moments:
        return self._moments.setdefault(slot, Moments(channels))

    def _correct(self, slot: int) -> None:
        rule: GainRule = "none" if self.scheme.kind == "bias" else self.scheme.gain
        self.correction.set_row(slot, *self._moments[slot].fit(rule, self.scheme.max_gain))


class SameInputLockstep(CorrectedLockstep):
    """Corrects towards the full-precision prediction at the input that the quantized steps made: one more pass.

    Args:
        floats: the layers in floating point, by name.
    """

    def __init__(self, *common: Any, calls: tuple[SamplerCall, ...], floats: Mapping[str, nn.Module]) -> None:
        super().__init__(*common, calls=calls)
        self.floats = floats

    def wanted(
        self, call: SamplerCall, seen: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        with self._in_full_precision():
            full = call.guided(prediction_of(self._walk(args, kwargs)))
        return full, full

    @contextmanager
    def _in_full_precision(self) -> Iterator[None]:
        for name, layer in self.floats.items():
            set_submodule(self.module, name, layer)
        try:
            yield
        finally:
            for name in self.floats:
                set_submodule(self.module, name, self.layers[name])


class DriftLockstep(CorrectedLockstep):
    """Corrects such that the next latents come nearest to those of the full-precision trajectory (with a gain by least
    squares; the unbiased one leaves nothing of the signal in what is missing instead).

    The next latents are affine in the guided prediction e: x' = r e + (what the sampler adds of latents, earlier
    predictions and noise). So the prediction that leads from here to the full-precision latents y' is
    e + (y' - x') / r, whatever the sampler. r is known from the trial call and x' from a probe of the scheduler as it
    is at this step.
    """

    def __init__(self, *common: Any, calls: tuple[SamplerCall, ...], path: FullPrecisionPath) -> None:
        super().__init__(*common, calls=calls)
        self.path, self.latents = path, path.start
        self.scheduler: Any = None

    def watching(self, scheduler: Any) -> AbstractContextManager[None]:
        self.scheduler = scheduler
        return watching(scheduler, lambda step: None, self._note)

    def wanted(
        self, call: SamplerCall, seen: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        assert self.latents is not None
        signal = self.path.predictions[self.calls].to(seen.device)
        if call.response == 0:  # nothing that is predicted here reaches the next latents; its weight is 0 too
            return seen, signal
        latents = call.next_latents(self.scheduler, seen, self.latents)
        return seen + (self.path.latents[self.calls].to(seen.device) - latents) / call.response, signal

    def weight(self, call: SamplerCall) -> float:
        """The square of what an error in the prediction does to the next latents."""
        return call.response**2

    def _note(self, latents: Tensor) -> None:
        self.latents = latents.clone()


def corrected_lockstep(
    common: tuple[Any, ...], plan: CorrectionPlan, floats: Mapping[str, nn.Module]
) -> CorrectedLockstep:
    """The lockstep for a plan.

    Args:
        common: what every `Lockstep` is given.
        floats: the layers in floating point, if the plan needs them.
    """
    if plan.path is None:
        return SameInputLockstep(*common, calls=plan.calls, floats=floats)
    return DriftLockstep(*common, calls=plan.calls, path=plan.path)


def _add_correction(module: nn.Module, trace: Trace, num_slots: int) -> OutputCorrection:
    """Gives a denoiser an `OutputCorrection` that changes nothing yet; it applies by itself once slots are chosen."""
    output = zero_output(module, trace.args, trace.kwargs)
    correction = OutputCorrection(num_slots, output.shape[channel_dim(output)], output.device)
    module.add_module(OUTPUT_CORRECTION, correction)
    return correction
