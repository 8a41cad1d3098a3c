"""Swaps a pipeline's sampler by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers

from halftone.errors import InputError, suggest


def use_scheduler(pipeline: Any, name: str) -> None:
    """Replaces the pipeline's scheduler by another of diffusers, keeping the noise schedule.

    Args:
        name: class name, with or without "Scheduler", in any case: ``DDIM``, ``DPMSolverMultistep``, ``PNDM`` …

    Raises:
        InputError: unknown or incompatible; suggests the near one.
    """
    known = {kind.__name__: kind for kind in _compatible(pipeline.scheduler)}
    by_key = {scheduler_key(kind): kind for kind in known}
    if scheduler_key(name) not in by_key:
        short = sorted(kind.removesuffix("Scheduler") for kind in known)
        raise InputError(f"{name!r} is no scheduler that fits this pipeline; {suggest(name, short)}")
    kind: Any = known[by_key[scheduler_key(name)]]
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config)


def scheduler_config(pipeline: Any) -> dict[str, str]:
    """What configures the sampler; not diffusers' own notes (underscored), some of which have a set's random order."""
    config: Mapping[str, Any] = pipeline.scheduler.config
    return {key: repr(value) for key, value in sorted(config.items()) if not key.startswith("_")}


def check_steps(pipeline: Any, num_inference_steps: int) -> None:
    """Refuses fewer steps than the sampler can start with, of which diffusers would speak in shapes of arrays.

    Raises:
        InputError: says how many it needs.
    """
    scheduler = pipeline.scheduler
    # without skip_prk_steps, which Stable Diffusion's own PNDM folders have set, its first steps are Runge-Kutta's
    if isinstance(scheduler, diffusers.PNDMScheduler) and not scheduler.config["skip_prk_steps"]:
        needed = int(scheduler.pndm_order)
        if num_inference_steps < needed:
            raise InputError(
                f"{type(scheduler).__name__} begins with Runge-Kutta steps here and needs at least {needed} steps, not"
                f" {num_inference_steps}; take more, or another --scheduler."
            )


def _compatible(scheduler: Any) -> list[type]:
    """Schedulers that diffusers declares interchangeable with this one; those that need missing extras left out."""
    kinds = {type(scheduler)}
    for kind in scheduler.compatibles:
        if isinstance(kind, type) and kind.__module__.startswith(f"{diffusers.__name__}.schedulers"):
            kinds.add(kind)
    return list(kinds)


def scheduler_key(name: str) -> str:
    """What all spellings of a scheduler's name have in common: ``DDIM``, ``ddim``, ``DDIMScheduler`` -> ``ddim``."""
    return name.lower().replace("scheduler", "").replace("_", "").replace("-", "")
