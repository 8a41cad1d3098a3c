"""What a pipeline and its sampler make of the denoiser's predictions.

A lockstep sees the denoiser's calls only. A correction of the guided prediction, or of the next latents, has to know
what happens behind them. A trial call for one prompt, with a denoiser that answers random numbers, tells the weights
of guidance, the arguments of the scheduler's ``step`` and how strongly the next latents follow the prediction, without
a pass through the denoiser: what cannot be corrected is refused before the work.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from halftone.calibration.pipeline_call import call_pipeline
from halftone.calibration.settings import CalibrationSettings
from halftone.calibration.trace import zero_output
from halftone.denoiser import Denoiser, as_output
from halftone.errors import InputError
from halftone.layers import channel_dim
from halftone.microbatch import batch_size, replaced_forward

__all__ = ["SamplerCall", "study_sampler", "watching"]

_LAW = 0.02  # how far from linear, relatively, still counts as linear: half-precision pipelines round as much
_ROUNDING = 1e-5
_BIAS = "kind 'bias' instead of 'drift'"
_GIVEN = {"model_output", "sample", "generator", "return_dict"}  # arguments of `step` that every call has its own of


@dataclass(frozen=True)
class SamplerCall:
    """What becomes of the output of one denoiser call.

    Attributes:
        channels: of the latents; further ones of the output, a predicted variance, are not corrected.
        weights: of the guidance halves in the guided prediction, in the order of the rows; their sum is 1.
        options: further arguments of the scheduler's ``step``, the timestep among them.
        response: change of the next latents when the guided prediction changes by 1; 0 if it was not asked for.
    """

    channels: int
    weights: tuple[float, ...]
    options: Mapping[str, Any]
    response: float = 0.0

    def guided(self, output: Tensor) -> Tensor:
        """The guided prediction of all prompts, float32, from a denoiser's output with all guidance halves."""
        halves = _first_channels(output, self.channels).float().chunk(len(self.weights))
        guided = torch.zeros_like(halves[0])
        for weight, half in zip(self.weights, halves, strict=True):
            guided += weight * half
        return guided

    def next_latents(self, scheduler: Any, prediction: Tensor, sample: Tensor, seed: int = 0) -> Tensor:
        """What a scheduler in its present state would make of latents and a guided prediction, float32.

        The scheduler stays as it is. Its noise is always the same one, so that two trajectories can be compared.

        Args:
            seed: of torch's own random numbers, which a scheduler should not need beside its generator.
        """
        probe = copy.deepcopy(scheduler)
        probe.__dict__.pop("step", None)  # that of `watching`
        options = dict(self.options)
        if "generator" in inspect.signature(probe.step).parameters:
            options["generator"] = torch.Generator().manual_seed(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            result = probe.step(model_output=prediction.float(), sample=sample.float(), **options)
        return _latents(result).float()


@contextmanager
def watching(
    scheduler: Any, before: Callable[[Mapping[str, Any]], None], after: Callable[[Tensor], None]
) -> Iterator[None]:
    """Within the context every ``step`` of a scheduler shows its arguments, by name, and then the latents it made."""
    step = scheduler.step
    signature = inspect.signature(step)

    @functools.wraps(step)  # pipelines look for `eta` and `generator` in its signature
    def watched(*args: Any, **kwargs: Any) -> Any:
        before(signature.bind(*args, **kwargs).arguments)
        result = step(*args, **kwargs)
        after(_latents(result))
        return result

    scheduler.step = watched
    try:
        yield
    finally:
        del scheduler.__dict__["step"]


def study_sampler(
    pipeline: Any, denoiser: Denoiser, settings: CalibrationSettings, needs_response: bool
) -> tuple[SamplerCall, ...]:
    """A `SamplerCall` for each call that the pipeline makes of its denoiser.

    Args:
        needs_response: whether the next latents are to be corrected, for which not every sampler will do.

    Raises:
        InputError: the pipeline or its sampler does with the predictions what a correction cannot allow for.
    """
    trial = _Trial(pipeline, denoiser, needs_response)
    with replaced_forward(denoiser.module, trial.answer), watching(pipeline.scheduler, trial.before, trial.after):
        call_pipeline(pipeline, settings, settings.prompts[:1])
    if trial.answered is not None:
        raise trial.out_of_step()
    return tuple(trial.calls)


class _Trial:
    """Denoiser and watcher of the trial call."""

    def __init__(self, pipeline: Any, denoiser: Denoiser, needs_response: bool) -> None:
        self.pipeline, self.scheduler, self.module = pipeline, pipeline.scheduler, denoiser.module
        self.needs_response = needs_response
        self.calls: list[SamplerCall] = []
        self.answered: tuple[Tensor, int] | None = None  # output and rows of the call that waits for its step
        self._latents: Tensor | None = None
        self._generator = torch.Generator().manual_seed(0)

    def answer(self, *args: Any, **kwargs: Any) -> Any:
        """Random numbers in the place of a prediction."""
        if self.answered is not None:
            raise self.out_of_step()
        zeros = zero_output(self.module, args, kwargs)
        output = torch.randn(zeros.shape, generator=self._generator).to(zeros)
        self.answered = output, batch_size(args, kwargs)
        return as_output(output, kwargs)

    def before(self, step: Mapping[str, Any]) -> None:
        if self.answered is None:
            raise self.out_of_step()
        (output, rows), self.answered = self.answered, None
        guided, sample = step["model_output"], step["sample"]
        channels = sample.shape[channel_dim(sample)]
        halves = _first_channels(output, channels).float().chunk(rows)
        weights = _guidance(halves, _first_channels(guided, channels).float())
        if weights is None:
            raise self._refusal("makes more of its predictions than a weighted sum (guidance_rescale?)")
        options = {name: value for name, value in step.items() if name not in _GIVEN}
        call = SamplerCall(channels, weights, options)
        self.calls.append(self._with_response(call, guided, sample) if self.needs_response else call)

    def after(self, latents: Tensor) -> None:
        self._latents = latents

    def out_of_step(self) -> InputError:
        return self._refusal(f"does not call {type(self.scheduler).__name__}.step once after each call of its denoiser")

    def _with_response(self, call: SamplerCall, guided: Tensor, sample: Tensor) -> SamplerCall:
        """Compares the next latents of two predictions, one of them twice the other."""
        if guided.shape != sample.shape:
            raise self._refusal("gives its scheduler more than the prediction (a predicted variance?)", _BIAS)
        if self._latents is not None and not torch.equal(self._latents, sample):
            raise self._refusal("changes the latents between its steps", _BIAS)
        change = guided.float()
        once, twice = (call.next_latents(self.scheduler, times * change, sample) for times in (1, 2))
        if not torch.equal(once, call.next_latents(self.scheduler, change, sample, seed=1)):
            raise self._refusal(f"has a {type(self.scheduler).__name__} with random numbers of its own", _BIAS)
        answer = twice - once
        response = _settled(float((answer * change).double().sum() / (change * change).double().sum()))
        rounding = _ROUNDING * float(once.norm())
        if float((answer - response * change).norm()) > _LAW * float(answer.norm()) + rounding:
            raise self._refusal(
                f"has a {type(self.scheduler).__name__} whose next latents do not follow the prediction linearly"
                " (clip_sample, thresholding?)",
                _BIAS,
            )
        return replace(call, response=response if float(answer.norm()) > rounding else 0.0)

    def _refusal(self, reason: str, instead: str = "a recipe without correction") -> InputError:
        return InputError(
            f"{type(self.pipeline).__name__} {reason}, for which the recipe's correction cannot allow; take {instead}."
        )


def _guidance(halves: Sequence[Tensor], guided: Tensor) -> tuple[float, ...] | None:
    """The weights, 1 together, of the halves in their sum; None if there are none that give ``guided``."""
    if halves[0].shape != guided.shape:
        return None
    first, *others = (half.double() for half in halves)
    left, found = guided.double() - first, []
    if others:
        differences = [other - first for other in others]
        products = torch.stack([torch.stack([(one * other).sum() for other in differences]) for one in differences])
        solved = torch.linalg.solve(products, torch.stack([(one * left).sum() for one in differences]))
        found = [_settled(float(weight)) for weight in solved]
        for weight, difference in zip(found, differences, strict=True):
            left = left - weight * difference
    if float(left.norm()) > _LAW * float(guided.norm()):
        return None
    return (_settled(1 - sum(found)), *found)


def _settled(value: float) -> float:
    """Six digits: the last bits of what was measured depend on where in memory it was, and a run that is resumed has to
    fit the same."""
    return float(f"{value:.6g}")


def _first_channels(tensor: Tensor, channels: int) -> Tensor:
    dim = channel_dim(tensor)
    return tensor.narrow(dim, 0, min(channels, tensor.shape[dim]))


def _latents(result: Any) -> Tensor:
    """The latents in what a scheduler's ``step`` returns."""
    latents: Tensor = result[0] if isinstance(result, tuple) else result.prev_sample
    return latents
