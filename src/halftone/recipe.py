"""Recipes: what is asked for. Strict, versioned, read from a preset's name, YAML or JSON.

A misspelt key, a value out of range or a contradiction is a `RecipeError` of one sentence that says
which key, which value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from halftone.errors import RecipeError, suggest
from halftone.observers import Observer, build_observer
from halftone.recipe_errors import explain
from halftone.recipe_files import read_recipe_file
from halftone.rounding import RoundingRule, build_rounding

__all__ = ["DEFAULT_EXCLUDE", "ActivationScheme", "ObserverScheme", "Recipe", "RelaxScheme", "WeightScheme"]

_RECIPES = Path(__file__).parent / "recipes"

#: First and last layers and the timestep embedding, by their names in the denoisers of diffusers.
DEFAULT_EXCLUDE = (
    # UNets
    "conv_in",
    "conv_out",
    "time_embedding",
    "add_embedding",
    "class_embedding",
    # transformers: timestep and pooled-text embedding
    "time_embed",
    "time_text_embed",
    "time_extra_emb",
    "adaln_single",
    # transformers: first and last layers
    "pos_embed.proj",
    "patch_embed",
    "x_embedder",
    "norm_out",
    "proj_out",
)


class _Scheme(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class WeightScheme(_Scheme):
    """How weights become integers: the scale of each channel, and the rule that rounds to its grid.

    ``description`` of a field is what its error message says is allowed.
    """

    num_bits: int = Field(default=8, ge=2, le=8, description="an integer from 2 to 8")
    granularity: Literal["channel"] = Field(default="channel", description="'channel'")
    symmetric: Literal[True] = Field(default=True, description="true")
    scale: Literal["range", "mse"] = Field(default="range", description="'range' or 'mse'")
    rounding: str = Field(default="nearest", description="the name of a rounding rule")
    rounding_options: dict[str, float | int] = Field(default_factory=dict, description="a mapping of numbers")

    @model_validator(mode="after")
    def _check_buildable(self) -> WeightScheme:
        try:
            self.build_rounding()
        except RecipeError as error:
            raise ValueError(str(error)) from error
        return self

    def build_rounding(self) -> RoundingRule:
        """The rounding rule with its options."""
        return build_rounding(self.rounding, **self.rounding_options)


class ObserverScheme(_Scheme):
    """Which observer proposes the ranges, and its options."""

    name: str = Field(default="minmax", description="the name of an observer")
    options: dict[str, float | int] = Field(default_factory=dict, description="a mapping of numbers")

    @model_validator(mode="after")
    def _check_buildable(self) -> ObserverScheme:
        try:
            build_observer(self.name, **self.options)
        except RecipeError as error:
            raise ValueError(str(error)) from error
        return self

    def build(self) -> Observer:
        """A fresh observer of this kind."""
        return build_observer(self.name, **self.options)


class ActivationScheme(_Scheme):
    """How the inputs of layers become integers."""

    num_bits: int = Field(default=8, ge=2, le=16, description="an integer from 2 to 16")
    granularity: Literal["timestep", "tensor"] = Field(default="timestep", description="'timestep' or 'tensor'")
    symmetric: bool = Field(default=False, description="true or false")
    observer: ObserverScheme = Field(default=ObserverScheme(), description="a mapping")


class RelaxScheme(_Scheme):
    """A fraction of the steps, at one side of the trajectory, gets more activation bits."""

    fraction: float = Field(ge=0.0, le=1.0, allow_inf_nan=False, description="a number from 0 to 1")
    side: Literal["start", "end"] = Field(description="'start' (near noise) or 'end' (near the image)")
    bits: int = Field(ge=2, le=16, description="an integer from 2 to 16")


class Recipe(_Scheme):
    """A complete description of one way to quantize a denoiser.

    Example:
        >>> Recipe.load("pcr-w8a8").slot_bits(5)
        (8, 8, 8, 8, 10)
    """

    version: Literal[1] = Field(default=1, description="1, the only format version this release reads")
    name: str = Field(default="custom", description="a text")
    description: str = Field(default="", description="a text")
    weights: WeightScheme = Field(default=WeightScheme(), description="a mapping")
    activations: ActivationScheme = Field(default=ActivationScheme(), description="a mapping")
    calibration: Literal["progressive", "full_precision"] = Field(
        default="progressive", description="'progressive' or 'full_precision'"
    )
    observed_steps: Literal["all", "normal"] = Field(default="all", description="'all' or 'normal'")
    relax: RelaxScheme | None = Field(default=None, description="a mapping or null")
    exclude: tuple[str, ...] = Field(default=DEFAULT_EXCLUDE, strict=False, description="a list of glob patterns")

    @model_validator(mode="after")
    def _check_contradictions(self) -> Recipe:
        if self.activations.granularity == "tensor" and self.relax is not None:
            raise ValueError("relax needs activations.granularity 'timestep': with 'tensor' all steps share one range")
        if self.activations.granularity == "tensor" and self.calibration == "progressive":
            raise ValueError("calibration 'progressive' needs activations.granularity 'timestep', not 'tensor'")
        if self.observed_steps == "normal" and self.activations.granularity == "timestep":
            raise ValueError("observed_steps 'normal' leaves steps out and needs activations.granularity 'tensor'")
        if self.relax is not None and self.relax.bits < self.activations.num_bits:
            raise ValueError(
                f"relax.bits is {self.relax.bits}; relaxed steps get no fewer bits than the others, whose"
                f" activations.num_bits is {self.activations.num_bits}"
            )
        return self

    @classmethod
    def from_dict(cls, data: Any, source: str = "the recipe") -> Recipe:
        """Validates plain data; ``source`` names it in error messages.

        Raises:
            RecipeError: one sentence about the first thing that is wrong.
        """
        if not isinstance(data, dict):
            raise RecipeError(f"{source} must be a mapping of keys to values, not {type(data).__name__}")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise RecipeError(f"{source}: {explain(error, cls)}") from None

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
        """A recipe from a preset's name, the path of a .yaml/.yml/.json file, a mapping as such files hold it, or a
        recipe itself.

        Raises:
            RecipeError: no such preset or file, or the contents are not a valid recipe.
        """
        if isinstance(source, Recipe):
            return source
        if isinstance(source, Mapping):
            return cls.from_dict(dict(source))
        if not isinstance(source, str | Path):
            raise RecipeError(f"a recipe is a preset's name, a file or a mapping, not {type(source).__name__}")
        path = Path(source)
        if path.suffix not in (".yaml", ".yml", ".json"):
            if str(source) not in cls.presets():
                raise RecipeError(f"unknown recipe {str(source)!r}; {suggest(str(source), cls.presets())}")
            path = _RECIPES / f"{source}.yaml"
        return cls.from_dict(read_recipe_file(path), f"recipe {str(source)!r}")

    @classmethod
    def presets(cls) -> tuple[str, ...]:
        """Names of the recipes that come with the package, sorted."""
        return tuple(sorted(path.stem for path in _RECIPES.glob("*.yaml")))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; `from_dict` reads it back."""
        return self.model_dump(mode="json")

    def relaxed_slots(self, num_slots: int) -> range:
        """Slots that get the relaxed bits: round-half-up of fraction * num_slots, at least 1 if fraction > 0."""
        if self.relax is None or self.relax.fraction == 0:
            return range(0)
        exact = Decimal(repr(float(self.relax.fraction))) * num_slots
        count = min(num_slots, max(1, int(exact.quantize(Decimal(1), ROUND_HALF_UP))))
        return range(count) if self.relax.side == "start" else range(num_slots - count, num_slots)

    def slot_bits(self, num_slots: int) -> tuple[int, ...]:
        """Activation bits of each of ``num_slots`` slots, in trajectory order."""
        relaxed = self.relaxed_slots(num_slots)
        bits = self.activations.num_bits if self.relax is None else self.relax.bits
        return tuple(bits if slot in relaxed else self.activations.num_bits for slot in range(num_slots))
