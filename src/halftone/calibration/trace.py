"""Finds out, without one denoiser pass, at which timesteps a pipeline will call its denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from halftone.calibration.pipeline_call import call_pipeline
from halftone.calibration.settings import CalibrationSettings
from halftone.denoiser import Denoiser, as_output, timestep_of
from halftone.errors import InputError, is_out_of_memory
from halftone.microbatch import batch_size, replaced_forward


@dataclass(frozen=True)
class Trace:
    """The denoiser calls that a pipeline makes for one prompt.

    Attributes:
        timesteps: the value of the `timestep` argument of each call.
        rows: batch rows of each call (2 with classifier-free guidance in one call, else 1).
        args, kwargs: the first call's arguments, to estimate cost from their shapes.
    """

    timesteps: tuple[float, ...]
    rows: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def distinct(self) -> tuple[float, ...]:
        """Distinct timesteps in the order of their first visit: the slots."""
        return tuple(dict.fromkeys(self.timesteps))


def trace_calls(pipeline: Any, denoiser: Denoiser, settings: CalibrationSettings) -> Trace:
    """Runs the pipeline for one prompt with a denoiser that answers zeros, and notes its calls.

    Raises:
        InputError: the pipeline refuses the arguments, or never called its denoiser.
    """
    timesteps: list[float] = []
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def answer_zeros(*args: Any, **kwargs: Any) -> Any:
        timestep = timestep_of(denoiser.module, args, kwargs)
        timesteps.append(float(torch.as_tensor(timestep).flatten()[0]))
        if not calls:
            calls.append((args, kwargs))
        return as_output(zero_output(denoiser.module, args, kwargs), kwargs)

    with replaced_forward(denoiser.module, answer_zeros):
        try:
            call_pipeline(pipeline, settings, settings.prompts[:1])
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            said = " ".join(str(error).split())[-300:]
            raise InputError(f"{type(pipeline).__name__} cannot be called with these arguments: {said}") from error
    if not calls:
        raise InputError(f"{type(pipeline).__name__} never called its {denoiser.name}; there is nothing to calibrate.")
    args, kwargs = calls[0]
    return Trace(tuple(timesteps), batch_size(args, kwargs), args, kwargs)


def zero_output(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """Zeros of the shape, dtype and device of what the denoiser would predict."""
    sample = first_tensor(args, kwargs)
    channels = getattr(module, "config", {}).get("out_channels")
    shape = list(sample.shape)
    if sample.ndim >= 4 and channels:
        shape[1] = channels
    return torch.zeros(shape, dtype=sample.dtype, device=sample.device)


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """The first tensor with dimensions among the arguments of a call: the latents."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor) and value.ndim > 0:
            return value
    raise InputError("the denoiser was called without a tensor; Halftone cannot calibrate it.")
