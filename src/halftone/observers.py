"""Observers: they watch the inputs of a layer and propose the range to quantize.

All are order-free: observing batches in any order, or on several machines and merging, gives the same
range to the last bit. A new observer is one class under `register_observer`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from halftone.errors import CalibrationError, RecipeError, suggest
from halftone.histogram import LogHistogram, finite_range

__all__ = [
    "MSEObserver",
    "MinMaxObserver",
    "Observer",
    "PercentileObserver",
    "build_observer",
    "observer_names",
    "register_observer",
]


class Observer(Protocol):
    """What calibration needs of an observer."""

    def observe(self, x: Tensor) -> None:
        """Takes in every element of ``x``. Raises NonFiniteError on NaN or infinity; empty is fine."""

    def merge(self, other: Any) -> None:
        """Takes in what another observer of the same kind has seen."""

    def range(self, num_bits: int, symmetric: bool = False) -> tuple[float, float]:
        """``(lo, hi)`` to quantize with ``num_bits`` bits. Raises CalibrationError if nothing was seen."""

    def state_dict(self) -> dict[str, Tensor]:
        """What was seen, as tensors (for a checkpoint, or to send to another rank)."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Replaces what was seen by a `state_dict`."""


MAX_GRID = 1024  # of the mse observer; its error is flat long before, and its time and memory grow with it

_OBSERVERS: dict[str, Callable[..., Observer]] = {}
_Class = TypeVar("_Class", bound=Callable[..., Observer])


def register_observer(name: str) -> Callable[[_Class], _Class]:
    """Class decorator that makes an observer known to recipes under ``name``."""

    def register(observer_class: _Class) -> _Class:
        _OBSERVERS[name] = observer_class
        return observer_class

    return register


def observer_names() -> tuple[str, ...]:
    """Names of the registered observers, sorted."""
    return tuple(sorted(_OBSERVERS))


def build_observer(name: str, **options: Any) -> Observer:
    """A fresh observer.

    Raises:
        RecipeError: the name or an option is unknown, or an option has a value that cannot be used.
    """
    if name not in _OBSERVERS:
        raise RecipeError(f"unknown observer {name!r}; {suggest(name, _OBSERVERS)}")
    known = inspect.signature(_OBSERVERS[name]).parameters
    for option in options:
        if option not in known:
            raise RecipeError(f"observer {name!r} has no option {option!r}; {suggest(option, known)}")
    return _OBSERVERS[name](**options)


@register_observer("minmax")
class MinMaxObserver:
    """The exact minimum and maximum of all values."""

    def __init__(self) -> None:
        self.minimum = float("inf")
        self.maximum = float("-inf")

    def observe(self, x: Tensor) -> None:
        if x.numel() == 0:
            return
        lo, hi = finite_range(x)
        self.minimum, self.maximum = min(self.minimum, lo), max(self.maximum, hi)

    def merge(self, other: MinMaxObserver) -> None:
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)

    def range(self, num_bits: int, symmetric: bool = False) -> tuple[float, float]:
        if self.minimum > self.maximum:
            raise CalibrationError("an observer is asked for its range, but it has seen no values")
        return self.minimum, self.maximum

    def state_dict(self) -> dict[str, Tensor]:
        return {"extremes": torch.tensor([self.minimum, self.maximum], dtype=torch.float64)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.minimum, self.maximum = state["extremes"].tolist()


class _HistogramObserver:
    """Shared part of the observers that look at the distribution."""

    def __init__(self) -> None:
        self.histogram = LogHistogram()

    def observe(self, x: Tensor) -> None:
        self.histogram.add(x)

    def merge(self, other: _HistogramObserver) -> None:
        self.histogram.merge(other.histogram)

    def state_dict(self) -> dict[str, Tensor]:
        return self.histogram.state_dict()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.histogram = LogHistogram.from_state(state)


@register_observer("percentile")
class PercentileObserver(_HistogramObserver):
    """Two-sided quantiles: at most ``100 - percentile`` percent of the values lie beyond *each* end.

    Args:
        percentile: over 50, up to 100 (which is min-max).
    """

    def __init__(self, percentile: float = 99.99) -> None:
        super().__init__()
        if not 50.0 < percentile <= 100.0:
            raise RecipeError(f"percentile is {percentile}; allowed is a number over 50 and up to 100")
        self.percentile = percentile

    def range(self, num_bits: int, symmetric: bool = False) -> tuple[float, float]:
        lower, upper, counts = self.histogram.filled_bins()
        beyond = counts.sum() * (100.0 - self.percentile) / 100.0
        first = int((counts.cumsum(0) <= beyond).sum())
        last = len(counts) - 1 - int((counts.flip(0).cumsum(0) <= beyond).sum())
        return float(lower[first]), float(upper[last])


@register_observer("mse")
class MSEObserver(_HistogramObserver):
    """The range with the least expected squared error of quantization (clipping and rounding).

    Both ends are first shrunk together over a grid, then each end alone around the best found.

    Args:
        grid: number of shrink factors tried in each of the three searches, 2 to 1024.
    """

    def __init__(self, grid: int = 32) -> None:
        super().__init__()
        if not isinstance(grid, int) or not 2 <= grid <= MAX_GRID:
            raise RecipeError(f"the mse observer's grid is {grid}; allowed is an integer from 2 to {MAX_GRID}")
        self.grid = grid

    def range(self, num_bits: int, symmetric: bool = False) -> tuple[float, float]:
        bins = self.histogram.filled_bins()
        least, most = min(self.histogram.minimum, 0.0), max(self.histogram.maximum, 0.0)
        if least == most:
            return 0.0, 0.0
        together = torch.logspace(-2.0, 0.0, self.grid, dtype=torch.float64)[:, None]
        alone = torch.linspace(0.5, 1.5, self.grid, dtype=torch.float64)
        full = torch.tensor([least, most], dtype=torch.float64)
        ends = _least_error(bins, full * together, num_bits, symmetric)
        for end in (1, 0):
            candidates = ends.repeat(self.grid + 1, 1)
            candidates[1:, end] = (ends[end] * alone).clamp(least, most)
            ends = _least_error(bins, candidates, num_bits, symmetric)
        return float(ends[0]), float(ends[1])


def _least_error(bins: tuple[Tensor, Tensor, Tensor], candidates: Tensor, num_bits: int, symmetric: bool) -> Tensor:
    """The row ``[lo, hi]`` of ``candidates`` (float64 ``[n, 2]``) with the least error; the last in a tie.

    Values are taken as spread evenly within their bin ``[a, b]``; the integral of the squared error
    (u - n(u))^2 with n(u) = clamp(round(u)) has the antiderivative n/12 + (u - n)^3 / 3.
    """
    lower, upper, counts = bins
    lo, hi = candidates[:, :1], candidates[:, 1:]
    if symmetric:
        most = 2.0 ** (num_bits - 1) - 1
        scale = torch.maximum(-lo, hi) / most
        least_code, most_code = torch.full_like(scale, -most), torch.full_like(scale, most)
    else:
        scale = (hi - lo) / (2**num_bits - 1)
        least_code = torch.round(lo / scale)
        most_code = least_code + (2**num_bits - 1)

    def antiderivative(u: Tensor) -> Tensor:
        code = torch.round(u).clamp(least_code, most_code)
        return code / 12 + (u - code) ** 3 / 3

    middle, half = (lower + upper) / 2, ((upper - lower) / 2).clamp(min=1e-60)
    half = torch.maximum(half, middle.abs() * 2.0**-20)
    integral = antiderivative((middle + half) / scale) - antiderivative((middle - half) / scale)
    error = (integral * scale**3 / (2 * half) * counts).sum(dim=1)
    return candidates[len(error) - 1 - int(error.flip(0).argmin())]
