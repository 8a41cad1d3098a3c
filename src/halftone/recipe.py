"""Recipes: what is asked for. Strict, versioned, read from a preset's name, YAML or JSON.

A misspelt key, a value out of range or a contradiction is a `RecipeError` of one sentence that says
which key, which value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from halftone.errors import RecipeError, suggest
from halftone.observers import Observer, build_observer
from halftone.recipe_errors import explain
from halftone.recipe_files import read_recipe_file
from halftone.rounding import RoundingRule, build_rounding

__all__ = [
    "DEFAULT_EXCLUDE",
    "ActivationScheme",
    "CorrectionScheme",
    "ObserverScheme",
    "ProtectScheme",
    "Recipe",
    "RelaxScheme",
    "WeightScheme",
]

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
    """How weights become integers: the scale (and zero point) of each channel or group, and the rule that rounds to
    that grid; `halftone.weight_grid` defines it.

    ``description`` of a field is what its error message says is allowed.
    """

    num_bits: int = Field(default=8, ge=2, le=8, description="an integer from 2 to 8")
    granularity: Literal["channel", "group"] = Field(default="channel", description="'channel' or 'group'")
    group_size: Literal[32, 64, 128] | None = Field(default=None, description="32, 64 or 128")
    symmetric: bool = Field(default=True, description="true or false")
    scale: Literal["range", "mse"] = Field(default="range", description="'range' or 'mse'")
    rounding: str = Field(default="nearest", description="the name of a rounding rule")
    rounding_options: dict[str, float | int] = Field(default_factory=dict, description="a mapping of numbers")

    @model_validator(mode="after")
    def _check_buildable(self) -> WeightScheme:
        try:
            rule = self.build_rounding()
        except RecipeError as error:
            raise ValueError(str(error)) from error
        if (self.granularity == "group") != (self.group_size is not None):
            missing = "a group_size: 32, 64 or 128" if self.group_size is None else "granularity 'group'"
            raise ValueError(f"granularity {self.granularity!r} with group_size {self.group_size} needs {missing}")
        if not (self.is_plain or rule.any_grid):
            raise ValueError(
                f"rounding {self.rounding!r} knows only symmetric weights with granularity 'channel'; take 'gptq' or"
                " 'nearest'"
            )
        return self

    @property
    def is_plain(self) -> bool:
        """Whether there is one scale for each output channel and no zero point."""
        return self.group_size is None and self.symmetric

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
    """How the inputs of layers become integers.

    With granularity 'token' every row of a linear layer's input, and every image of a convolution's, has a range of its
    own that is measured at inference.
    """

    num_bits: int = Field(default=8, ge=2, le=16, description="an integer from 2 to 16")
    granularity: Literal["timestep", "tensor", "token"] = Field(
        default="timestep", description="'timestep', 'tensor' or 'token'"
    )
    symmetric: bool = Field(default=False, description="true or false")
    observer: ObserverScheme = Field(default=ObserverScheme(), description="a mapping")


class RelaxScheme(_Scheme):
    """Some of the steps get more activation bits: as many as one of three budgets allows, at one side of the trajectory
    or, with side 'auto', those where they help the final latents most (`halftone.calibration.relaxation`).

    Budgets: a ``fraction`` of the steps; ``average_bits`` over the steps; ``products``, the 8-bit products that a layer
    executes a call, averaged over the steps: up to 8 bits take one, 9 to 16 bits two.
    """

    fraction: float | None = Field(
        default=None, ge=0.0, le=1.0, allow_inf_nan=False, description="a number from 0 to 1"
    )
    average_bits: float | None = Field(
        default=None, ge=2.0, le=16.0, allow_inf_nan=False, description="a number from 2 to 16"
    )
    products: float | None = Field(
        default=None, ge=1.0, le=2.0, allow_inf_nan=False, description="a number from 1 to 2"
    )
    side: Literal["start", "end", "auto"] = Field(
        description="'start' (near noise), 'end' (near the image) or 'auto' (where a scan finds that it helps most)"
    )
    bits: int = Field(ge=2, le=16, description="an integer from 2 to 16")

    @model_validator(mode="after")
    def _check_one_budget(self) -> RelaxScheme:
        given = [name for name in _BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            said = f"{' and '.join(given)} are given" if given else "none is given"
            raise ValueError(f"exactly one of {', '.join(_BUDGETS)} says how many steps; {said}")
        return self

    def count(self, num_slots: int, base: int) -> int:
        """How many of ``num_slots`` slots get more than ``base`` bits: of a fraction round-half-up, and at least 1 if
        it is not 0; of the other budgets as many as fit.

        Raises:
            ValueError: the budget is less than what no relaxed step takes, or more than what all of them take.
        """
        if self.fraction is not None:
            exact = _decimal(self.fraction) * num_slots
            rounded = int(exact.quantize(Decimal(1), ROUND_HALF_UP))
            return min(num_slots, max(1, rounded)) if self.fraction else 0
        if self.average_bits is not None:
            name, budget, least, most = "average_bits", self.average_bits, base, self.bits
        else:
            assert self.products is not None
            name, budget, least, most = "products", self.products, products_of(base), products_of(self.bits)
        if budget < least or (budget > most and name == "average_bits"):
            raise ValueError(
                f"{name} {budget:g} cannot be kept: it is {least} with no relaxed step and {most} with all of them"
            )
        return (
            num_slots if least == most else min(num_slots, int((_decimal(budget) - least) / (most - least) * num_slots))
        )


_BUDGETS = ("fraction", "average_bits", "products")


def products_of(bits: int) -> int:
    """8-bit products that execute one with activations of so many bits: one for each of their 8-bit planes."""
    return 1 if bits <= 8 else 2


def _decimal(value: float) -> Decimal:
    """As it is written: 0.3 of 10 steps are 3, though the float 0.3 is a little less."""
    return Decimal(repr(float(value)))


class ProtectScheme(_Scheme):
    """A few layers stay in floating point: those that a scan finds to harm the denoiser's prediction most
    (`halftone.calibration.protection`).

    ``operations`` is the largest share that they may have together of the multiplications of all layers that would be
    quantized, in one call of the denoiser.
    """

    layers: Literal["auto"] = Field(description="'auto'")
    operations: float = Field(gt=0.0, le=1.0, allow_inf_nan=False, description="a number over 0, up to 1")


class CorrectionScheme(_Scheme):
    """An affine correction of the denoiser's output, by slot and channel; `halftone.calibration.affine` has the fits.

    ``kind`` 'bias' and 'gain_bias' aim at the full-precision prediction at the input that the quantized model sees,
    'drift' at the next latent of the full-precision trajectory.
    """

    kind: Literal["none", "bias", "gain_bias", "drift"] = Field(
        default="none", description="'none', 'bias', 'gain_bias' or 'drift'"
    )
    gain: Literal["unbiased", "least_squares"] = Field(default="unbiased", description="'unbiased' or 'least_squares'")
    max_gain: float = Field(default=2.0, ge=1.0, le=10.0, allow_inf_nan=False, description="a number from 1 to 10")

    @model_validator(mode="after")
    def _check_options(self) -> CorrectionScheme:
        for name in self.model_fields_set & {"gain", "max_gain"} if self.kind in ("none", "bias") else ():
            raise ValueError(f"{name} has no meaning for kind {self.kind!r}, which fits no gain")
        return self


class Recipe(_Scheme):
    """A complete description of one way to quantize a denoiser.

    ``observed_steps`` 'normal' and 'even' draw steps as PTQ4DM and Q-Diffusion do. ``split_shortcuts`` gives the two
    halves of what a UNet's up-blocks join, hidden states and skip connection, ranges and weights of their own.

    Example:
        >>> Recipe.load("pcr-w8a8").slot_bits(5)
        (8, 8, 8, 8, 10)
    """

    version: Literal[1] = Field(default=1, description="1, the only format version this release reads")
    name: str = Field(default="custom", description="a text")
    description: str = Field(default="", description="a text")
    weights: WeightScheme = Field(default=WeightScheme(), description="a mapping")
    activations: ActivationScheme = Field(default=ActivationScheme(), description="a mapping")
    calibration: Literal["progressive", "full_precision", "none"] = Field(
        default="progressive", description="'progressive', 'full_precision' or 'none'"
    )
    observed_steps: Literal["all", "normal", "even"] = Field(default="all", description="'all', 'normal' or 'even'")
    split_shortcuts: bool = Field(default=False, description="true or false")
    relax: RelaxScheme | None = Field(default=None, description="a mapping or null")
    protect: ProtectScheme | None = Field(default=None, description="a mapping or null")
    correction: CorrectionScheme = Field(default=CorrectionScheme(), description="a mapping")
    exclude: tuple[str, ...] = Field(default=DEFAULT_EXCLUDE, strict=False, description="a list of glob patterns")

    @model_validator(mode="after")
    def _check_measured(self) -> Recipe:
        """What ranges that are measured at inference leave no room for."""
        granularity = self.activations.granularity
        if granularity != "token":
            if self.calibration == "none":
                raise ValueError(f"calibration 'none' needs activations.granularity 'token', not {granularity!r}")
            return self
        if self.relax is not None:
            raise ValueError("relax needs calibrated steps: with activations.granularity 'token' all have one width")
        if self.calibration != "none":
            raise ValueError(
                f"activations.granularity 'token' measures ranges at inference and needs calibration 'none', not"
                f" {self.calibration!r}"
            )
        if self.activations.observer != ObserverScheme():
            raise ValueError("activations.observer has nothing to observe with activations.granularity 'token'")
        return self

    @model_validator(mode="after")
    def _check_contradictions(self) -> Recipe:
        if self.activations.granularity == "tensor" and self.relax is not None:
            raise ValueError("relax needs activations.granularity 'timestep': with 'tensor' all steps share one range")
        if self.activations.granularity == "tensor" and self.calibration == "progressive":
            raise ValueError("calibration 'progressive' needs activations.granularity 'timestep', not 'tensor'")
        if self.observed_steps != "all" and self.activations.granularity != "tensor":
            raise ValueError(
                f"observed_steps {self.observed_steps!r} leaves steps out and needs activations.granularity 'tensor'"
            )
        if self.relax is not None and self.relax.bits < self.activations.num_bits:
            raise ValueError(
                f"relax.bits is {self.relax.bits}; relaxed steps get no fewer bits than the others, whose"
                f" activations.num_bits is {self.activations.num_bits}"
            )
        if self.relax is not None:
            try:
                self.relax.count(1, self.activations.num_bits)
            except ValueError as error:
                raise ValueError(f"relax.{error}") from None
        if self.correction.kind != "none" and self.calibration != "progressive":
            raise ValueError(
                f"correction.kind {self.correction.kind!r} needs calibration 'progressive', in which the quantized"
                " model's own steps are seen"
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
        """JSON-ready form; `from_dict` reads it back. What older releases did not know is left out unless it is asked
        for, so that recipes and artifacts stay what they wrote."""
        data = self.model_dump(mode="json")
        if not self.split_shortcuts:
            del data["split_shortcuts"]
        if self.weights.group_size is None:
            del data["weights"]["group_size"]
        if self.correction.kind == "none":
            del data["correction"]
        elif self.correction.kind == "bias":
            data["correction"] = {"kind": "bias"}
        if self.protect is None:
            del data["protect"]
        if self.relax is not None:
            data["relax"] = {name: value for name, value in data["relax"].items() if value is not None}
        return data

    def table_rows(self, num_slots: int) -> int:
        """Rows of activation parameters of a layer, for ``num_slots`` slots."""
        return num_slots if self.activations.granularity == "timestep" else 1

    @property
    def finds_slots(self) -> bool:
        """Whether a scan chooses the slots that are relaxed."""
        return self.relax is not None and self.relax.side == "auto"

    def num_relaxed(self, num_slots: int) -> int:
        """How many of ``num_slots`` slots get the relaxed bits."""
        return 0 if self.relax is None else self.relax.count(num_slots, self.activations.num_bits)

    def relaxed_slots(self, num_slots: int, side: str | None = None) -> range:
        """Slots that get the relaxed bits: at one side of the trajectory, that of the recipe unless one is given.

        Raises:
            ValueError: the recipe leaves it to a scan which they are.
        """
        count = self.num_relaxed(num_slots)
        side = side or (self.relax.side if self.relax is not None else "end")
        if side == "auto" and 0 < count < num_slots:
            raise ValueError("which slots are relaxed is not known before the scan")
        return range(count) if side == "start" else range(num_slots - count, num_slots)

    def slot_bits(self, num_slots: int, relaxed: Collection[int] | None = None) -> tuple[int, ...]:
        """Activation bits of each of ``num_slots`` slots, in trajectory order.

        Args:
            relaxed: the slots that a scan chose; None for those at the recipe's side.
        """
        relaxed = self.relaxed_slots(num_slots) if relaxed is None else relaxed
        bits = self.activations.num_bits if self.relax is None else self.relax.bits
        return tuple(bits if slot in relaxed else self.activations.num_bits for slot in range(num_slots))
