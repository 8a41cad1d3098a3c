"""The steps of a trajectory: which one a denoiser's call belongs to, and intervals of them.

A step is a timestep slot: it is found from the value of a call's timestep, never from a count of calls. So a sampler
that visits a timestep twice, and a pipeline that calls its denoiser apart for the two halves of guidance, stay within
their step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from halftone.denoiser import timestep_of
from halftone.errors import InputError
from halftone.generation import check_count
from halftone.timesteps import SlotClock, TimestepSlots

__all__ = ["StepOf", "divide", "step_finder"]

StepOf = Callable[[Sequence[Any], Mapping[str, Any]], int]
"""The number of a call's step, 0 being the first, from the call's arguments."""

_UNUSED_BITS = 16  # slots have bits; where only the slot is asked for, they mean nothing


def divide(steps: int, parts: int) -> tuple[range, ...]:
    """Consecutive intervals that cover all steps, as even as possible: none has two steps more than another.

    Raises:
        InputError: no interval, or more than there are steps.
    """
    check_count("intervals", parts)
    if parts > steps:
        raise InputError(
            f"{parts} intervals need at least as many steps, and there are {steps}; take fewer intervals or more steps."
        )
    bounds = [steps * part // parts for part in range(parts + 1)]
    return tuple(range(first, stop) for first, stop in pairwise(bounds))


def step_finder(module: nn.Module, timesteps: Sequence[float]) -> StepOf:
    """What tells the steps of a denoiser's calls.

    Args:
        timesteps: distinct ones in the order in which the sampler visits them.
    """
    clock = SlotClock(TimestepSlots(tuple(timesteps), (_UNUSED_BITS,) * len(timesteps)))
    return lambda args, kwargs: clock.set_timestep(timestep_of(module, args, kwargs))
