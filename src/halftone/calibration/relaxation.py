"""Which steps are relaxed: those in which quantized activations move the final latents most.

To first order the error of the final latents is a sum over the denoiser's calls of the error made in each, carried to
the end by what the later calls make of it (Tang et al., ECCV 2024, theorem 1). Rounding errors of different calls are
all but independent, so that their squares add up; a call's share is (gain * error) ** 2. How strongly a call's error
reaches the end, its gain, is measured (`relaxation_scan`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["StepErrors", "interpolated_gains", "most_helpful", "probed_calls"]


@dataclass(frozen=True)
class StepErrors:
    """What quantized activations do, call by call of the denoiser.

    Attributes:
        slots: the slot of each call.
        narrow, wide: norm of the error of the prediction with the recipe's bits and with the relaxed ones.
        gains: norm of the change of the final latents over that of the prediction.
    """

    slots: tuple[int, ...]
    narrow: tuple[float, ...]
    wide: tuple[float, ...]
    gains: tuple[float, ...]

    def benefits(self) -> dict[int, float]:
        """How much smaller the square of the final error is expected to be if a slot is relaxed."""
        found = dict.fromkeys(self.slots, 0.0)
        for slot, narrow, wide, gain in zip(self.slots, self.narrow, self.wide, self.gains, strict=True):
            found[slot] += gain**2 * (narrow**2 - wide**2)
        return found


def most_helpful(errors: StepErrors, count: int) -> tuple[int, ...]:
    """The ``count`` slots, in order, whose relaxation should help most; of equal ones those nearer to the image.

    All slots cost the same and their shares add up, so that no other choice of as many is expected to be better.
    """
    benefits = errors.benefits()
    ranked = sorted(benefits, key=lambda slot: (-benefits[slot], -slot))
    return tuple(sorted(ranked[:count]))


def probed_calls(calls: int, most: int) -> tuple[int, ...]:
    """At most ``most`` (at least 2) calls, at even distances, the first and the last among them."""
    if calls <= most:
        return tuple(range(calls))
    return tuple(round(probe * (calls - 1) / (most - 1)) for probe in range(most))


def interpolated_gains(probed: Sequence[int], gains: Sequence[float], calls: int) -> tuple[float, ...]:
    """Gains of all calls: between two that were probed they change by the same factor from call to call.

    Args:
        probed: numbers of the calls, ascending, the first being 0 and the last ``calls - 1``.
        gains: of those; a 0 is next to others taken as the smallest normal number.
    """
    known = dict(zip(probed, gains, strict=True))
    found = []
    for call in range(calls):
        if call in known:
            found.append(known[call])
            continue
        before = max(probe for probe in probed if probe < call)
        after = min(probe for probe in probed if probe > call)
        share = (call - before) / (after - before)
        low, high = (math.log(max(known[probe], _TINY)) for probe in (before, after))
        found.append(math.exp(low + share * (high - low)))
    return tuple(found)


_TINY = 2.0**-1022
