"""What a study compares: tables of rows, read from a plan of the package or a YAML file of one's own, strictly.

A misspelt key, a value out of range or a recipe that is none is an `InputError` of one sentence.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from halftone.errors import InputError, RecipeError, suggest
from halftone.recipe import Recipe
from halftone.recipe_errors import explain
from halftone.recipe_files import read_recipe_file
from halftone.study.kinds import TableKind

__all__ = ["Plan", "PromptsPlan", "RowPlan", "TablePlan", "plan_names"]

_PLANS = Path(__file__).parent / "plans"
_SUFFIXES = (".yaml", ".yml", ".json")
_BASE = "base"
_WORDS = ("name", "description")  # of a recipe: they change nothing that it does
_TABLE_NAME, _ROW_NAME = r"^[a-z0-9][a-z0-9-]*$", r"^[^=/\\]+$"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PromptsPlan(_Part):
    """A prompt set and how many of its prompts are painted; ``description`` of a field says what is allowed."""

    name: str = Field(pattern=_ROW_NAME, description="a text without '=' and slashes")
    prompts: str = Field(min_length=1, description="a prompt file or bundled:NAME")
    num_images: int = Field(ge=4, description="an integer, at least 4")


class RowPlan(_Part):
    """One way to quantize the model.

    ``recipe`` is a preset's name, or a mapping as recipe files hold it; with the key ``base``, a preset's name, it
    holds only what is changed in that preset (null takes a part away).
    """

    name: str = Field(pattern=_ROW_NAME, description="a text without '=' and slashes")
    recipe: Any = Field(description="a preset's name or a mapping")
    group: str = Field(min_length=1, description="a text; rows of one group are compared with each other")
    num_calibration_prompts: int | None = Field(default=None, ge=1, description="an integer, at least 1")

    @field_validator("recipe")
    @classmethod
    def _check_kind(cls, value: Any) -> Any:
        if not isinstance(value, str | dict):
            raise ValueError(f"{value!r} is neither a preset's name nor a mapping")
        return value

    def build(self) -> Recipe:
        """The recipe: a preset where its contents are a preset's, else under a name that follows from its contents, so
        that equal recipes of different rows are one.

        Raises:
            RecipeError: it is none; one sentence.
        """
        return _canonical(_read(self.recipe))


class TablePlan(_Part):
    """Rows that are painted with the same number of steps, prompts and guidance."""

    name: str = Field(pattern=_TABLE_NAME, description="small letters, digits and hyphens")
    title: str = Field(default="", description="a text")
    sentence: str = Field(description="a text that says what the table asks")
    kind: TableKind = Field(
        default="comparison", description="'comparison', 'ablation', 'relaxed share' or 'calibration prompts'"
    )
    steps: int = Field(ge=1, description="an integer, at least 1")
    guidance: float | None = Field(default=None, allow_inf_nan=False, description="a finite number")
    sets: tuple[PromptsPlan, ...] = Field(min_length=1, strict=False, description="a list of prompt sets")
    num_calibration_prompts: int = Field(default=64, ge=1, description="an integer, at least 1")
    noise_images: int = Field(default=0, ge=0, description="an integer, 0 (no noise floor) or at least 4")
    rows: tuple[RowPlan, ...] = Field(min_length=1, strict=False, description="a list of rows")

    @model_validator(mode="after")
    def _check_names(self) -> TablePlan:
        named = {"rows": [row.name for row in self.rows], "prompt sets": [one.name for one in self.sets]}
        for what, names in named.items():
            if twice := _repeated(names):
                raise ValueError(f"two {what} of the table {self.name!r} are called {twice!r}")
        if 0 < self.noise_images < 4:
            what = f"noise_images of the table {self.name!r} is {self.noise_images}"
            raise ValueError(f"{what}; it must be 0 or at least 4")
        return self

    @property
    def heading(self) -> str:
        """The title, or the name where there is none."""
        return self.title or self.name

    def calibration_prompts_of(self, row: RowPlan) -> int:
        """How many prompts a row's model is calibrated on."""
        return self.num_calibration_prompts if row.num_calibration_prompts is None else row.num_calibration_prompts

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The rows that are compared with each other: those of one group."""
        rows = self.rows
        return [(a.name, b.name) for i, a in enumerate(rows) for b in rows[i + 1 :] if a.group == b.group]


class Plan(_Part):
    """All of a study."""

    version: Literal[1] = Field(default=1, description="1, the only format version this release reads")
    name: str = Field(min_length=1, description="a text")
    description: str = Field(default="", description="a text")
    calibration_prompts: str = Field(default="bundled:calibration", description="a prompt file or bundled:NAME")
    tables: tuple[TablePlan, ...] = Field(min_length=1, strict=False, description="a list of tables")

    @model_validator(mode="after")
    def _check_names(self) -> Plan:
        if twice := _repeated([table.name for table in self.tables]):
            raise ValueError(f"two tables are called {twice!r}")
        return self

    @classmethod
    def from_dict(cls, data: Any, source: str = "the plan") -> Plan:
        """Validates plain data, recipes included.

        Args:
            source: names it in messages.

        Raises:
            InputError: one sentence about the first thing that is wrong.
        """
        if not isinstance(data, dict):
            raise InputError(f"{source} must be a mapping of keys to values, not {type(data).__name__}.")
        try:
            plan = cls.model_validate(data)
        except ValidationError as error:
            raise InputError(_sentence(f"{source}: {explain(error, cls)}")) from None
        for table in plan.tables:
            for row in table.rows:
                try:
                    row.build()
                except RecipeError as error:
                    where = f"{source}, table {table.name!r}, row {row.name!r}"
                    raise InputError(_sentence(f"{where}: {error}")) from None
        return plan

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any] | Plan) -> Plan:
        """A plan from the name of one of the package's, the path of a .yaml/.yml/.json file, a mapping as such files
        hold it, or a plan itself.

        Raises:
            InputError: no such plan or file, or its contents are none.
        """
        if isinstance(source, Plan):
            return source
        if isinstance(source, Mapping):
            return cls.from_dict(dict(source))
        path = Path(source)
        if path.suffix not in _SUFFIXES:
            if str(source) not in plan_names():
                hint = suggest(str(source), plan_names())
                raise InputError(f"There is no plan {str(source)!r} (a file's name ends in .yaml or .json); {hint}")
            path = _PLANS / f"{source}.yaml"
        return cls.from_dict(read_recipe_file(path, "plan", InputError), f"plan {str(source)!r}")

    def chosen(self, names: tuple[str, ...]) -> tuple[TablePlan, ...]:
        """The tables of these names in the plan's order; without names all.

        Raises:
            InputError: there is none of a name.
        """
        known = [table.name for table in self.tables]
        for name in names:
            if name not in known:
                raise InputError(f"The plan {self.name} has no table {name!r}; {suggest(name, known)}")
        return tuple(table for table in self.tables if not names or table.name in names)


def plan_names() -> tuple[str, ...]:
    """Names of the plans that come with the package, sorted."""
    return tuple(sorted(path.stem for path in _PLANS.glob("*.yaml")))


def _sentence(text: str) -> str:
    """Ends with a full stop, unless it ends with another mark."""
    return text if text.endswith((".", "?")) else f"{text}."


def _repeated(names: list[str]) -> str | None:
    return next((name for place, name in enumerate(names) if name in names[:place]), None)


def _read(given: Any) -> Recipe:
    """A recipe as a row gives it."""
    if isinstance(given, str):
        if given not in Recipe.presets():
            raise RecipeError(f"unknown recipe {given!r}; {suggest(given, Recipe.presets())}")
        return Recipe.load(given)
    if _BASE not in given:
        return Recipe.from_dict(given)
    base = given[_BASE]
    if not isinstance(base, str):
        raise RecipeError(f"base is {base!r}; it must be a preset's name")
    changes = {key: value for key, value in given.items() if key != _BASE}
    return Recipe.from_dict(_changed(_read(base).to_dict(), changes))


def _changed(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Data with some values replaced, mappings key by key; within them null takes a key away."""
    found = dict(data)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(found.get(key), dict):
            found[key] = {name: one for name, one in _changed(found[key], value).items() if one is not None}
        else:
            found[key] = value
    return found


def _canonical(recipe: Recipe) -> Recipe:
    content = _content(recipe)
    preset = _presets_by_content().get(content)
    if preset is not None:
        return Recipe.load(preset)
    widths = f"w{recipe.weights.num_bits}a{recipe.activations.num_bits}"
    name = f"{widths}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    return Recipe.from_dict({**json.loads(content), "name": name})


def _content(recipe: Recipe) -> str:
    """What the recipe does, as text."""
    return json.dumps({key: value for key, value in recipe.to_dict().items() if key not in _WORDS}, sort_keys=True)


@cache
def _presets_by_content() -> Mapping[str, str]:
    """Of presets that do the same, the first by name."""
    return {_content(Recipe.load(name)): name for name in reversed(Recipe.presets())}
