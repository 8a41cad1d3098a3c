"""The quantized models of a study: each made once, resumably, in a folder that says what it is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halftone.artifact.inspection import inspect_artifact
from halftone.artifact.manifest import MANIFEST
from halftone.calibration.checkpoint import is_unfinished
from halftone.errors import InputError
from halftone.files import output_folder
from halftone.locks import only_writer
from halftone.quantization import check_target, find_made, quantize
from halftone.recipe import Recipe
from halftone.schedulers import check_steps, use_scheduler
from halftone.sensitivity.request import CALIBRATION_SEED
from halftone.sources import content_sha256, open_pipeline
from halftone.study.kept_time import KeptTime
from halftone.study.plan import RowPlan, TablePlan
from halftone.study.request import StudyRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from halftone.calibration.stages import Follow

__all__ = ["ARTIFACTS", "ModelPlan", "Models", "StageBars", "no_stages"]

ARTIFACTS = "artifacts"
_UNFINISHED, _TIME = ".unfinished", ".time.json"

StageBars = Callable[[], "AbstractContextManager[Follow]"]


@contextmanager
def no_stages() -> Iterator[Follow]:
    """No progress is shown."""
    yield lambda advance: None


@dataclass(frozen=True)
class ModelPlan:
    """A model to be quantized, and on what.

    Attributes:
        name: of its folder; equal ones are the same model.
        recipe: how.
        steps, guidance: of the calibration, which are those of the images.
        prompts: how many it is calibrated on.
    """

    name: str
    recipe: Recipe
    steps: int
    guidance: float | None
    prompts: int

    @property
    def words(self) -> str:
        """ "pcr-w8a8, 20 steps, 64 prompts"."""
        return f"{self.recipe.name}, {self.steps} steps, {self.prompts} prompts"


class Models:
    """Makes the models that rows ask for, as far as they are missing.

    Args:
        source: what is opened.
        stages: makes bars for the stages of a calibration, as `halftone.cli.console.stages` does.
    """

    def __init__(self, request: StudyRequest, source: str, stages: StageBars = no_stages) -> None:
        self.request, self.source, self.stages = request, source, stages
        self._pipeline: Any = None
        self._made: dict[str, Path] = {}
        self._planned: dict[tuple[str, str], ModelPlan] = {}

    def plan_of(self, table: TablePlan, row: RowPlan) -> ModelPlan:
        """The model of a row."""
        key = (table.name, row.name)
        if key not in self._planned:
            self._planned[key] = self._plan(table, row)
        return self._planned[key]

    def _plan(self, table: TablePlan, row: RowPlan) -> ModelPlan:
        recipe, count = row.build(), table.calibration_prompts_of(row)
        settings = self.request.settings_of(table)
        determines = {
            "recipe": recipe.to_dict(),
            "source": self._source_sha256,
            "prompts": self.request.calibration_texts(count),
            "scheduler": self.request.scheduler,
            "batch_size": self.request.batch_size,
            "memory_budget": self.request.memory_budget,
            "dtype": str(self.request.dtype),
            "device": self.request.device,
            **dataclasses.asdict(settings),
        }
        digest = hashlib.sha256(json.dumps(determines, sort_keys=True).encode()).hexdigest()[:8]
        name = f"{recipe.name}-{table.steps}-steps-{count}-prompts-{digest}"
        return ModelPlan(name, recipe, table.steps, settings.guidance_scale, count)

    def folder(self, plan: ModelPlan) -> Path:
        """Where a model lies, or will."""
        return output_folder(self.request.out / ARTIFACTS / plan.name)

    def time_file(self, plan: ModelPlan) -> Path:
        """Where the time is noted that making it took."""
        return self.folder(plan).with_name(plan.name + _TIME)

    def is_there(self, plan: ModelPlan) -> bool:
        """Whether its folder is an artifact with no unfinished work beside it."""
        folder = self.folder(plan)
        return (folder / MANIFEST).is_file() and not is_unfinished(_checkpoint(folder))

    def make(self, plan: ModelPlan) -> Path:
        """The folder of a model, made as far as it is missing, exactly as `halftone quantize` does.

        Raises:
            InputError: what is there was made in other circumstances.
            NonFiniteError, OutputError: in one sentence; what is finished is kept.
        """
        if plan.name not in self._made:
            target = self.folder(plan)
            with only_writer(target):
                if self.is_there(plan):
                    self._check(plan, target)
                else:
                    self._quantize(plan, target)
            self._made[plan.name] = target
        return self._made[plan.name]

    def release(self) -> None:
        """Lets go of the pipeline that models are made from, before others take its memory."""
        self._pipeline = None

    def facts(self, plan: ModelPlan) -> dict[str, Any]:
        """What `inspect_artifact` says of a model that was made."""
        return inspect_artifact(self.make(plan))

    def _check(self, plan: ModelPlan, target: Path) -> None:
        arguments = self._arguments(plan)
        texts = self.request.calibration_texts(plan.prompts)
        if find_made(target, self._opened(plan), plan.recipe, texts, **arguments) is None:
            raise InputError(
                f"{target} is damaged or was made in other circumstances (another machine, number of threads or version"
                " of a library?); delete that folder, or choose another --out."
            )
        with suppress(OSError):  # there is none, unless a kill came just before it was removed, empty
            _checkpoint(target).rmdir()

    def _quantize(self, plan: ModelPlan, target: Path) -> None:
        checkpoint = _checkpoint(target)
        check_target(target, checkpoint)
        pipeline, arguments = self._opened(plan), self._arguments(plan)
        texts = self.request.calibration_texts(plan.prompts)
        self._pipeline = None  # its denoiser is quantized in place
        with self.stages() as follow, KeptTime(self.time_file(plan)).running() as clock:

            def advance(one: Any) -> None:
                clock.look()
                follow(one)

            arguments |= {"checkpoint_folder": checkpoint, "follow": advance}
            result = quantize(pipeline, plan.recipe, texts, **arguments)
        result.save(target)

    def _opened(self, plan: ModelPlan) -> Any:
        """A full-precision pipeline, the one from before if nothing was quantized with it."""
        if self._pipeline is None:
            request = self.request
            pipeline = open_pipeline(self.source, dtype=request.dtype, device=request.device, progress_bar=False)
            if request.scheduler is not None:
                use_scheduler(pipeline, request.scheduler)
            self._pipeline = pipeline
        check_steps(self._pipeline, plan.steps)
        return self._pipeline

    def _arguments(self, plan: ModelPlan) -> dict[str, Any]:
        """Of the calibration, besides recipe and prompts."""
        request = self.request
        sides: Mapping[str, int | None] = {"height": request.height, "width": request.width}
        return {
            "num_inference_steps": plan.steps,
            "guidance_scale": plan.guidance,
            "seed": request.seed + CALIBRATION_SEED,
            "batch_size": request.batch_size,
            "memory_budget": request.memory_budget,
            "source_sha256": self._source_sha256,
            **{name: side for name, side in sides.items() if side is not None},
        }

    @cached_property
    def _source_sha256(self) -> str:
        return content_sha256(self.source)


def _checkpoint(target: Path) -> Path:
    """Where the finished steps of an unfinished model are kept."""
    return target.with_name(target.name + _UNFINISHED)
