"""How long a study will take on this machine and how much disk, from a few denoiser calls timed here; and, while it
runs, how much of that is left."""

from __future__ import annotations

import io
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from halftone.denoiser import find_denoiser
from halftone.generation import GenerationSettings, paint
from halftone.qdiffbench.bench import load_judges
from halftone.qdiffbench.contestants import Contestant
from halftone.qdiffbench.fidelity import psnr, ssim
from halftone.qdiffbench.gallery import FOLLOWED
from halftone.qdiffbench.request import NOISE_FLOORS, Progress, ProgressBar
from halftone.quantities import memory_text, time_text
from halftone.quantization import quantize
from halftone.recipe import products_of
from halftone.schedulers import use_scheduler
from halftone.sources import open_pipeline
from halftone.study.kept_tables import KeptTables
from halftone.study.models import ModelPlan, Models
from halftone.study.plan import TablePlan
from halftone.study.request import StudyRequest, check_request

__all__ = ["Forecast", "Speed", "StudyEstimate", "Work", "calibration_seconds", "estimate_study"]

_TIMED_STEPS = 4
_TIMED_RECIPE = "minmax-w8a8"  # one pass a step, nothing to round by
_BYTES_BESIDE_IMAGE = 1500  # its record, features and share of the manifest
_ROWS_A_PROMPT = 2  # the halves of guidance
_SCANNED_PROMPTS, _SCANNED_STEPS = 4, 20  # of a choice of relaxed steps
_SECONDS_BETWEEN_LINES = 60.0

Kind = Literal["calibrating", "painting", "measuring"]
_SHARED: tuple[Kind, ...] = ("calibrating", "painting")  # among several processes


@dataclass(frozen=True)
class Speed:
    """What was timed here, in seconds, and weighed.

    Attributes:
        float_step, quantized_step: a sampler step of one image, with quantized layers if they run 8 bits.
        image: what an image takes besides its steps.
        features: one image's features.
        pair: comparing two images.
        image_bytes: of an image's file.
        latent_bytes: of the latents of one image after a step, as they are kept.
        denoiser_weights: numbers in the denoiser.
        other_bytes: of all other components.
    """

    float_step: float
    quantized_step: float
    image: float
    features: float
    pair: float
    image_bytes: int
    latent_bytes: int
    denoiser_weights: int
    other_bytes: int


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
        return sum(work.seconds / (world if work.kind in _SHARED else 1) for work in self.works)

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


def measured_speed(request: StudyRequest, source: Contestant, table: TablePlan) -> Speed:
    """Times a few images of few steps in full precision and quantized, and the judges of images.

    Args:
        table: whose guidance is taken.

    Raises:
        InputError: the model cannot be opened or painted with.
    """
    pipeline = open_pipeline(source.model_source, dtype=request.dtype, device=request.device, progress_bar=False)
    if request.scheduler is not None:
        use_scheduler(pipeline, request.scheduler)
    settings = replace(request.settings_of(table), num_inference_steps=_TIMED_STEPS)
    (prompt,) = request.calibration_texts(1)
    denoiser = find_denoiser(pipeline)
    weights = sum(tensor.numel() for tensor in denoiser.module.parameters())
    modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    others = [part for part in modules if part is not denoiser.module]
    other_bytes = sum(t.numel() * t.element_size() for part in others for t in part.state_dict().values())
    in_float = _timed(pipeline, prompt, settings)
    sides: dict[str, Any] = {
        name: side for name, side in (("height", settings.height), ("width", settings.width)) if side is not None
    }
    quantize(
        pipeline,
        _TIMED_RECIPE,
        [prompt],
        num_inference_steps=_TIMED_STEPS,
        guidance_scale=settings.guidance_scale,
        seed=request.seed,
        **sides,
    )
    in_integers = _timed(pipeline, prompt, settings)
    features, pair = _timed_judges(request, table, in_float.image)
    return Speed(
        float_step=in_float.step,
        quantized_step=in_integers.step,
        image=in_float.rest,
        features=features,
        pair=pair,
        image_bytes=_png_bytes(in_float.image),
        latent_bytes=in_float.latent_bytes,
        denoiser_weights=weights,
        other_bytes=other_bytes,
    )


@dataclass(frozen=True)
class _Timed:
    """An image that was painted, and how long a step took and the rest of it."""

    image: Any
    step: float
    rest: float
    latent_bytes: int


def _timed(pipeline: Any, prompt: str, settings: GenerationSettings) -> _Timed:
    paint(pipeline, prompt, settings.seed, settings)  # the first call of a model takes longer
    marks, sizes = [], []

    def on_step(step: int, latents: torch.Tensor) -> None:
        marks.append(time.perf_counter())
        sizes.append(2 * latents[0].numel())  # kept in half precision

    began = time.perf_counter()
    image = paint(pipeline, prompt, settings.seed, settings, on_step)
    whole = time.perf_counter() - began
    spans = [after - before for before, after in itertools.pairwise(marks)]
    step = statistics.median(spans) if spans else whole / settings.num_inference_steps
    rest = max(0.0, whole - step * settings.num_inference_steps)
    return _Timed(image, step, rest, sizes[0] if sizes else 0)


def _timed_judges(request: StudyRequest, table: TablePlan, image: Any) -> tuple[float, float]:
    """Seconds for one image's features under all extractors, and for comparing a pair."""
    judges = load_judges(request.bench_request(table, ()))
    pixels = np.asarray(image.convert("RGB"))
    count = 16  # as many as extractors see at a time
    began = time.perf_counter()
    for extractor in judges.extractors.values():
        extractor.extract([pixels] * count, [""] * count)
    features = (time.perf_counter() - began) / count
    began = time.perf_counter()
    psnr(pixels, pixels)
    ssim(pixels, pixels)
    return features, time.perf_counter() - began


def _png_bytes(image: Any) -> int:
    data = io.BytesIO()
    image.save(data, format="PNG")
    return len(data.getvalue())


class Forecast:
    """Tells from time to time how much of a study is left; estimates give way to what works of a kind really took.

    Args:
        works: what is to be done.
        progress: makes a bar with a title.
        announce: called with a line.
        world: processes that share calibrating and painting.
    """

    def __init__(
        self,
        works: Sequence[Work],
        progress: ProgressBar,
        announce: Callable[[str], None],
        world: int = 1,
    ) -> None:
        self._works = {(work.table, work.label): work for work in works}
        self._models = {work.label: work for work in works if work.kind == "calibrating"}
        self._progress, self._announce, self._world = progress, announce, world
        self._left = list(works)
        self._took: dict[str, tuple[float, float]] = {}  # kind -> seconds that it took, seconds that were expected
        self._told = -_SECONDS_BETWEEN_LINES

    def left(self) -> float:
        """Seconds that are left."""
        return sum(self._expected(work) for work in self._left)

    def bar(self, table: str) -> ProgressBar:
        """A maker of bars for the benchmark of a table."""

        @contextmanager
        def make(label: str) -> Iterator[Progress]:
            self.tell()
            began, seen = time.monotonic(), dict[str, int]()
            with self._progress(label) as advance:

                def noted(done: int, total: int) -> None:
                    seen.setdefault("first", done)
                    seen["total"] = total
                    advance(done, total)

                yield noted
            work = self._works.get((table, label))
            if work is not None:
                self._finish(work, time.monotonic() - began, _share_done_now(seen))

        return make

    @contextmanager
    def calibrating(self, name: str) -> Iterator[None]:
        """Within it a model is made."""
        self.tell()
        began = time.monotonic()
        yield
        if name in self._models:
            self._finish(self._models[name], time.monotonic() - began, 1.0)

    def tell(self) -> None:
        """Says how much is left, unless it was said just now."""
        now = time.monotonic()
        if self._left and now - self._told >= _SECONDS_BETWEEN_LINES:
            self._told = now
            self._announce(f"The whole study: about {time_text(self.left())} left.")

    def _finish(self, work: Work, seconds: float, share: float) -> None:
        """A work is done, of which a share was done now and the rest found on disk."""
        if work in self._left:
            self._left.remove(work)
        took, expected = self._took.get(work.kind, (0.0, 0.0))
        self._took[work.kind] = (took + seconds, expected + share * work.seconds)

    def _expected(self, work: Work) -> float:
        took, expected = self._took.get(work.kind, (0.0, 0.0))
        ratio = took / expected if expected > 0 else 1.0
        return work.seconds * ratio / (self._world if work.kind in _SHARED else 1)


def _share_done_now(seen: Mapping[str, int]) -> float:
    """From the first and the last report of a bar: a first one that is late found what came before on disk."""
    total = seen.get("total", 0)
    if total <= 0:
        return 0.0
    first = seen["first"]
    return 0.0 if first >= total > 1 else (total - first + 1) / total
