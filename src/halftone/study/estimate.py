"""How long a study will take on this machine, and how much disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from halftone.qdiffbench.contestants import Contestant
from halftone.qdiffbench.gallery import FOLLOWED
from halftone.qdiffbench.request import NOISE_FLOORS
from halftone.quantities import memory_text, time_text
from halftone.recipe import products_of
from halftone.study.kept_tables import KeptTables
from halftone.study.models import ModelPlan, Models
from halftone.study.plan import TablePlan
from halftone.study.request import StudyRequest, check_request
from halftone.study.speed import Speed, measured_speed

__all__ = ["SHARED", "StudyEstimate", "Work", "calibration_seconds", "estimate_study"]

_BYTES_BESIDE_IMAGE = 1500  # its record, features and share of the manifest
_ROWS_A_PROMPT = 2  # the halves of guidance
_SCANNED_PROMPTS, _SCANNED_STEPS = 4, 20  # of a choice of relaxed steps

Kind = Literal["calibrating", "painting", "measuring"]
SHARED: tuple[Kind, ...] = ("calibrating", "painting")  # among several processes


@dataclass(frozen=True)
class Work:
    """A piece of the study: a model to make, or what one bar of a table's benchmark counts.

    Attributes:
        table: its table's name.
        label: the model's name, or the bar's title.
        count: of images; 1 for a model.
        seconds: it is expected to take, for one process.
    """

    table: str
    kind: Kind
    label: str
    count: int
    seconds: float


@dataclass(frozen=True)
class StudyEstimate:
    """What is still to be done.

    Attributes:
        works: in their order.
        bytes: of disk.
        speed: that was timed; None where nothing is to be done.
    """

    works: tuple[Work, ...]
    bytes: int
    speed: Speed | None

    def seconds(self, world: int = 1) -> float:
        """Of everything.

        Args:
            world: processes that share calibrating and painting.
        """
        return sum(work.seconds / (world if work.kind in SHARED else 1) for work in self.works)

    def lines(self, world: int = 1) -> list[str]:
        """A line for each table and one for all of them, for the person who waits."""
        if self.speed is None:
            return ["Nothing is left to do: all tables are measured."]
        lines = []
        for table in dict.fromkeys(work.table for work in self.works):
            parts = []
            for kind, what in (("calibrating", "model{} to make"), ("painting", "image{} to paint")):
                count = sum(work.count for work in self._of(table, kind).works)
                if count:
                    seconds, plural = self._of(table, kind).seconds(world), "" if count == 1 else "s"
                    parts.append(f"{count} {what.format(plural)} in about {time_text(seconds)}")
            measuring = self._of(table, "measuring").seconds(world)
            parts.append(f"measuring in about {time_text(measuring)}")
            lines.append(f"Table {table}: {', '.join(parts)}.")
        speed = self.speed
        lines.append(
            f"All of it: about {time_text(self.seconds(world))} and {memory_text(self.bytes)} of disk, from"
            f" {speed.float_step:.2g} s for a step of one image in full precision here and {speed.quantized_step:.2g} s"
            " quantized; models and tables that are there are left out, images that are painted already are not."
        )
        return lines

    def _of(self, table: str, kind: str) -> StudyEstimate:
        """Of one kind of work for a table."""
        return replace(self, works=tuple(work for work in self.works if (work.table, work.kind) == (table, kind)))


def estimate_study(
    request: StudyRequest,
    source: Contestant | None = None,
    models: Models | None = None,
    tables: Sequence[TablePlan] | None = None,
) -> StudyEstimate:
    """What a study will take, without writing anything.

    Args:
        source, models: of the request, if they are there already.
        tables: that are to be made; those that the request asks for and that are not measured yet, if not given.

    Raises:
        InputError, ArtifactError: in one sentence.
    """
    source = source or check_request(request)
    models = models or Models(request, source.model_source)
    tables = KeptTables(request, source, models).missing() if tables is None else tables
    if not tables:
        return StudyEstimate((), 0, None)
    return _Estimating(request, source, models, measured_speed(request, source, tables[0])).all_of(tables)


class _Estimating:
    """Adds up the works of tables, nothing twice."""

    def __init__(self, request: StudyRequest, source: Contestant, models: Models, speed: Speed) -> None:
        self.request, self.source, self.models, self.speed = request, source, models, speed
        self.works: list[Work] = []
        self.bytes = 0.0
        self._made: set[str] = set()
        self._painted: dict[tuple[Any, ...], int] = {}

    def all_of(self, tables: Sequence[TablePlan]) -> StudyEstimate:
        for table in tables:
            for row in table.rows:
                self._make(table, self.models.plan_of(table, row))
            self._paint(table, self.source.name, None)
            for kind in NOISE_FLOORS:
                for one in table.sets:
                    count = min(one.num_images, table.noise_images)
                    seconds = count * self._image_seconds(table.steps, None)
                    self._add(table, "painting", f"painting noise floor ({kind}), {one.name}", count, seconds)
            for row in table.rows:
                self._paint(table, row.name, self.models.plan_of(table, row))
            for row in table.rows:
                for one in table.sets:
                    seconds = one.num_images * (self.speed.pair + 2 * self.speed.features)
                    self._add(table, "measuring", f"measuring {row.name}, {one.name}", one.num_images, seconds)
        return StudyEstimate(tuple(self.works), round(self.bytes), self.speed)

    def _add(self, table: TablePlan, kind: Kind, label: str, count: int, seconds: float) -> None:
        if count:
            self.works.append(Work(table.name, kind, label, count, seconds))

    def _make(self, table: TablePlan, plan: ModelPlan) -> None:
        if plan.name in self._made or self.models.is_there(plan):
            return
        self._made.add(plan.name)
        self._add(table, "calibrating", plan.name, 1, calibration_seconds(plan, self.speed))
        self.bytes += self.speed.denoiser_weights * plan.recipe.weights.num_bits / 8 + self.speed.other_bytes

    def _paint(self, table: TablePlan, name: str, plan: ModelPlan | None) -> None:
        """The images of a row, or of full precision, that no table before has."""
        for one in table.sets:
            settings = self.request.settings_of(table)
            model = None if plan is None else plan.name
            key = (model, settings, self.request.prompt_source(table, one.name))
            count = max(0, one.num_images - self._painted.get(key, 0))
            self._painted[key] = max(one.num_images, self._painted.get(key, 0))
            seconds = count * self._image_seconds(table.steps, plan)
            self._add(table, "painting", f"painting {name}, {one.name}", count, seconds)
            self.bytes += count * (self.speed.image_bytes + _BYTES_BESIDE_IMAGE)
            if plan is None:
                self.bytes += min(count, FOLLOWED) * table.steps * self.speed.latent_bytes

    def _image_seconds(self, steps: int, plan: ModelPlan | None) -> float:
        if plan is None:
            return self.speed.image + steps * self.speed.float_step
        return self.speed.image + steps * self.speed.quantized_step * _products(plan)


def _products(plan: ModelPlan) -> float:
    """8-bit products of a layer's call, averaged over the steps."""
    recipe = plan.recipe
    share = recipe.num_relaxed(plan.steps) / plan.steps
    relaxed = products_of(recipe.relax.bits) if recipe.relax is not None else 1
    return (1 - share) * products_of(recipe.activations.num_bits) + share * relaxed


def calibration_seconds(plan: ModelPlan, speed: Speed) -> float:
    """About how long a model takes to make: passes through the denoiser, and what a rounding rule learns by."""
    recipe, steps = plan.recipe, plan.steps
    rule = recipe.weights.build_rounding()
    samples = int(getattr(rule, "num_samples", 0))
    floats = {"progressive": 1, "full_precision": 1, "none": 0}[recipe.calibration]
    floats += recipe.correction.kind in ("bias", "gain_bias") or (recipe.correction.kind == "drift" and not samples)
    floats += samples > 0  # the trajectory that its inputs come from
    passes: float = plan.prompts * steps * floats + 2 * samples  # which are looked at, and walked through once more
    schedule = getattr(rule, "schedule", None)
    if schedule is not None:  # forward and backward of a batch, over all blocks together
        passes += 3 * schedule.iterations * getattr(rule, "batch_size", _ROWS_A_PROMPT) / _ROWS_A_PROMPT
    if recipe.finds_slots and 0 < recipe.num_relaxed(steps) < steps:
        passes += _SCANNED_PROMPTS * (6 * steps + min(steps, _SCANNED_STEPS) * steps / 2)
    quantized = plan.prompts * steps if recipe.calibration == "progressive" else 0
    return passes * speed.float_step + quantized * speed.quantized_step
