"""What a rounding rule is: it says what it must see of the full-precision model, sees it, and rounds.

A new rule is one class under `register_rounding`; its constructor's numbers are the options that a recipe may set.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from halftone.errors import RecipeError, suggest

__all__ = ["Collector", "RoundingRule", "Unit", "UnitCost", "build_rounding", "register_rounding", "rounding_names"]


@dataclass(frozen=True)
class Unit:
    """What is rounded as a whole: a single layer, or a block of several.

    Attributes:
        name: dotted name of the module in the denoiser.
        module: the layer or block, in floating point.
        layers: the layers in it that are quantized, by their dotted names in the denoiser.
    """

    name: str
    module: nn.Module
    layers: Mapping[str, nn.Linear | nn.Conv2d]

    @property
    def is_layer(self) -> bool:
        """Whether the unit is a single layer."""
        return isinstance(self.module, nn.Linear | nn.Conv2d)


@dataclass(frozen=True)
class UnitCost:
    """What the rounding of a unit takes.

    Attributes:
        peak_bytes: the most memory, beside what its collector has.
        operations: about how many; by them, the time of one unit tells that of another.
    """

    peak_bytes: int
    operations: float


class Collector(Protocol):
    """Takes in what a rule needs of one unit's calls in the full-precision model."""

    def see(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        """One call of the unit, for some rows of a batch."""


class RoundingRule(Protocol):
    """One way to round.

    Attributes:
        num_samples: (prompt, step) pairs of the full-precision trajectory that the rule wants to see; 0 for none.
        blocks: whether blocks are rounded as a whole, rather than layer by layer.
        any_grid: whether it rounds to grids with groups and zero points too, rather than one scale for each channel.
    """

    num_samples: int
    blocks: bool
    any_grid: bool

    def memory_bytes(self, unit: Unit, bytes_per_row: int, rows: int) -> int:
        """Memory that a collector of the unit will take.

        Args:
            bytes_per_row: of the tensors in the unit's call and output, for one row of the batch.
            rows: rows that it will see.
        """

    def cost(self, unit: Unit, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> UnitCost:
        """What `round` will take for the unit.

        Args:
            args, kwargs: of a call of the unit with one row; the tensors may be fake (they have a shape and no data).
        """

    def collector(self, unit: Unit, rows: int, kept_rows: int) -> Collector:
        """A collector of the unit, which will see ``rows`` rows; ``kept_rows`` of them fit in memory."""

    def round(
        self, unit: Unit, scales: Mapping[str, Any], num_bits: int, seen: Any, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Integers of every layer of the unit.

        Args:
            scales: float32 ``[out]`` of every layer; with `any_grid` its `WeightGrid`, where that is not plain.
            num_bits: 2 to 8.
            seen: what `collector` gave, after it saw its calls; None if ``num_samples`` is 0.
            generator: where the rule takes its chances from.

        Returns:
            int8 of each layer's weight shape, within ``[-(2**(num_bits - 1) - 1), 2**(num_bits - 1) - 1]`` or, of an
            asymmetric grid, one less.

        Raises:
            NonFiniteError: numbers became NaN or infinite; the message names the unit or layer.
        """


_LARGEST_COUNT = 1_000_000
_RULES: dict[str, Callable[..., RoundingRule]] = {}
_Class = TypeVar("_Class", bound=Callable[..., RoundingRule])


def register_rounding(name: str) -> Callable[[_Class], _Class]:
    """Class decorator that makes a rule known to recipes under ``name``."""

    def register(rule_class: _Class) -> _Class:
        _RULES[name] = rule_class
        return rule_class

    return register


def rounding_names() -> tuple[str, ...]:
    """Names of the registered rules, sorted."""
    return tuple(sorted(_RULES))


def build_rounding(name: str, **options: Any) -> RoundingRule:
    """A rule.

    Raises:
        RecipeError: the name or an option is unknown, or an option has a value that cannot be used.
    """
    if name not in _RULES:
        raise RecipeError(f"unknown rounding {name!r}; {suggest(name, _RULES)}")
    known = inspect.signature(_RULES[name]).parameters
    for option in options:
        if option not in known:
            raise RecipeError(f"rounding {name!r} has no option {option!r}; {suggest(option, known)}")
    return _RULES[name](**options)


def check_option(rule: str, name: str, value: float, allowed: bool, words: str) -> None:
    """Raises RecipeError with one sentence unless an option's value is allowed."""
    if not allowed:
        raise RecipeError(f"{rule}'s {name} is {value}; allowed is {words}")


def check_counts(rule: str, **counts: float) -> None:
    """Raises RecipeError unless every option's value is an integer from 1 to a million: more can only be a slip, and
    what follows from it (indices of samples, sizes of parts) would not fit in memory or in a machine word."""
    for name, value in counts.items():
        allowed = isinstance(value, int) and 1 <= value <= _LARGEST_COUNT
        check_option(rule, name, value, allowed, f"an integer from 1 to {_LARGEST_COUNT}")
