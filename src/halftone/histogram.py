"""A histogram of float32 values with fixed, logarithmic bins, so that merging is exact and order-free.

A bin is the set of values that share sign, exponent and the top 7 mantissa bits (the bits of a bfloat16).
Exponents are clamped to 2^-24 .. 2^16: smaller magnitudes fall into the one bin around zero, larger ones
into the outermost bins, whose edges are stretched to the exact minimum and maximum.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from halftone.errors import CalibrationError, NonFiniteError

__all__ = ["LogHistogram", "finite_range"]

_MIN_EXPONENT, _MAX_EXPONENT, _MANTISSA_BITS = -24, 16, 7
_SIDE = (_MAX_EXPONENT - _MIN_EXPONENT + 1) << _MANTISSA_BITS
_FIRST_PATTERN = (127 + _MIN_EXPONENT) << _MANTISSA_BITS
NUM_BINS = 2 * _SIDE + 1


@functools.cache
def _bin_of_pattern() -> Tensor:
    """int64 ``[65536]``: bin of each signed top half of a float32 pattern, shifted by 32768."""
    top = torch.arange(-32768, 32768, dtype=torch.int64)
    magnitude = torch.where(top < 0, top + 32768, top)
    rank = (magnitude - _FIRST_PATTERN + 1).clamp(0, _SIDE)
    return torch.where(top < 0, _SIDE - rank, _SIDE + rank)


@functools.cache
def _magnitude_edges() -> Tensor:
    """float64 ``[_SIDE + 1]``: lower edges of the positive bins, and the last bin's upper edge."""
    pattern = torch.arange(_FIRST_PATTERN, _FIRST_PATTERN + _SIDE + 1, dtype=torch.int32)
    return (pattern << 16).view(torch.float32).to(torch.float64)


def finite_range(x: Tensor) -> tuple[float, float]:
    """Exact ``(min, max)`` of a non-empty tensor.

    Raises:
        NonFiniteError: ``x`` has a NaN or an infinity.
    """
    lo, hi = (float(end) for end in torch.aminmax(x.detach()))
    if not (abs(lo) < float("inf") and abs(hi) < float("inf")):
        count = int((~torch.isfinite(x)).sum())
        raise NonFiniteError(f"an observed tensor of shape {tuple(x.shape)} has {count} NaN or infinite elements")
    return lo, hi


class LogHistogram:
    """Counts of observed values in the fixed bins, with the exact minimum and maximum.

    Attributes:
        counts: int64 ``[NUM_BINS]`` on the CPU, in increasing order of value.
        minimum, maximum: exact extremes; +inf and -inf while nothing was observed.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(NUM_BINS, dtype=torch.int64)
        self.minimum = float("inf")
        self.maximum = float("-inf")

    def add(self, x: Tensor) -> None:
        """Counts every element of ``x`` (any shape and floating dtype).

        Raises:
            NonFiniteError: ``x`` has a NaN or an infinity; nothing is counted then.
        """
        if x.numel() == 0:
            return
        lo, hi = finite_range(x)
        self.minimum, self.maximum = min(self.minimum, lo), max(self.maximum, hi)
        patterns = (x.detach().to(torch.float32).contiguous().view(torch.int32) >> 16).add_(32768)
        counted = torch.bincount(patterns.flatten(), minlength=65536).cpu()
        self.counts.index_add_(0, _bin_of_pattern(), counted)

    def merge(self, other: LogHistogram) -> None:
        """Adds what another histogram has seen; exact in any order."""
        self.counts += other.counts
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)

    def filled_bins(self) -> tuple[Tensor, Tensor, Tensor]:
        """Lower edges, upper edges and counts of the bins that are not empty, all float64 ``[n]``.

        Edges are held within the exact minimum and maximum.

        Raises:
            CalibrationError: nothing was observed.
        """
        if self.minimum > self.maximum:
            raise CalibrationError("an observer is asked for its range, but it has seen no values")
        edges = _magnitude_edges()
        starts = torch.cat([-edges.flip(0), edges])
        lower, upper = starts[:-1].clone(), starts[1:].clone()
        lower[0], upper[-1] = min(self.minimum, float(lower[0])), max(self.maximum, float(upper[-1]))
        filled = self.counts > 0
        ends = self.minimum, self.maximum
        return lower[filled].clamp(*ends), upper[filled].clamp(*ends), self.counts[filled].to(torch.float64)

    def state_dict(self) -> dict[str, Tensor]:
        """Checkpoint: ``counts`` int64 and ``extremes`` float64 ``[2]``."""
        extremes = torch.tensor([self.minimum, self.maximum], dtype=torch.float64)
        return {"counts": self.counts.clone(), "extremes": extremes}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> LogHistogram:
        """Reads what `state_dict` wrote."""
        histogram = cls()
        histogram.counts = state["counts"].to(torch.int64).clone()
        histogram.minimum, histogram.maximum = state["extremes"].tolist()
        return histogram
