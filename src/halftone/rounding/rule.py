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

__all__ = ["Collector", "RoundingRule", "Unit", "build_rounding", "register_rounding", "rounding_names"]


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


class Collector(Protocol):
    """Takes in what a rule needs of one unit's calls in the full-precision model."""

    def see(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        """One call of the unit, for some rows of a batch."""


class RoundingRule(Protocol):
    """One way to round.

    Attributes:
        num_samples: (prompt, step) pairs of the full-precision trajectory that the rule wants to see; 0 for none.
        blocks: whether blocks are rounded as a whole, rather than layer by layer.
    """

    num_samples: int
    blocks: bool

    def memory_bytes(self, unit: Unit, bytes_per_row: int, rows: int) -> int:
        """Memory that a collector of the unit will take.

        Args:
            bytes_per_row: of the tensors in the unit's call and output, for one row of the batch.
            rows: rows that it will see.
        """

    def collector(self, unit: Unit, rows: int, kept_rows: int) -> Collector:
        """A collector of the unit, which will see ``rows`` rows; ``kept_rows`` of them fit in memory."""

    def round(
        self, unit: Unit, scales: Mapping[str, Tensor], num_bits: int, seen: Any, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Integers of every layer of the unit.

        Args:
            scales: float32 ``[out]`` of every layer.
            num_bits: 2 to 8.
            seen: what `collector` gave, after it saw its calls; None if ``num_samples`` is 0.
            generator: where the rule takes its chances from.

        Returns:
            int8 of each layer's weight shape, within ``[-(2**(num_bits - 1) - 1), 2**(num_bits - 1) - 1]``.

        Raises:
            NonFiniteError: numbers became NaN or infinite; the message names the unit or layer.
        """


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


def is_count(value: float, least: int = 1) -> bool:
    """Whether a number is an integer and not too small."""
    return isinstance(value, int) and value >= least
