"""Which layers' inputs change most along the trajectory, and what one shared range would cost them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from halftone.errors import InputError
from halftone.report.page_input import ActivationRange


def shared_range(ranges: Sequence[ActivationRange]) -> tuple[float, float]:
    """The single range that covers every timestep: the lowest low and the highest high.

    Raises:
        InputError: no ranges.
    """
    if not ranges:
        raise InputError("a layer without observed ranges has no shared range")
    return min(r.low for r in ranges), max(r.high for r in ranges)


def wasted_bits(ranges: Sequence[ActivationRange]) -> float:
    """Mean over timesteps of log2(width of the shared range / width of the timestep's own range).

    A range twice as wide as needed leaves half of the integers unused, which is one bit. Timesteps at which
    the input was constant (width 0) say nothing and are left out.

    Raises:
        InputError: no ranges.
    """
    low, high = shared_range(ranges)
    widths = [r.high - r.low for r in ranges if r.high > r.low]
    if not widths:
        return 0.0
    return sum(math.log2((high - low) / width) for width in widths) / len(widths)


def most_moving_layers(
    ranges: Mapping[str, Sequence[ActivationRange]], count: int = 6
) -> list[tuple[str, Sequence[ActivationRange]]]:
    """The ``count`` layers with the most :func:`wasted_bits`, worst first; layers seen once do not count."""
    moving = [(name, steps) for name, steps in ranges.items() if len(steps) > 1]
    return sorted(moving, key=lambda item: (-wasted_bits(item[1]), item[0]))[:count]
