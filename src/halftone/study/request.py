"""What a study is asked for, and what can be found wrong with it before hours of work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from halftone.calibration.settings import DEFAULT_MEMORY_BUDGET
from halftone.errors import InputError, suggest
from halftone.generation import GenerationSettings, check_count, check_seed
from halftone.prompts import read_prompts
from halftone.qdiffbench.bench import load_judges
from halftone.qdiffbench.contestants import Contestant
from halftone.qdiffbench.request import NOISE_FLOORS, BenchRequest, sampled_prompts
from halftone.sensitivity.request import CALIBRATION_SEED, full_precision
from halftone.study.plan import Plan, TablePlan

__all__ = ["StudyRequest", "check_request"]


@dataclass(frozen=True)
class StudyRequest:
    """Which plan, on which model.

    Attributes:
        source: SOURCE of the full-precision model.
        out: folder of the study: artifacts, images, tables, results.
        plan: the tables.
        only: names of the tables to make now; empty for all.
        prompts: prompt set's name -> FILE, FILE:COLUMN or bundled:NAME in the place of the plan's.
        calibration_prompts: in the place of the plan's.
        guidance: in the place of the plan's.
        seed: image i of a set starts from the noise of ``seed + i``; calibrations start far from these.
        height, width: pixels; the pipeline's default if not given.
        scheduler: another sampler for all, by name.
        batch_size: prompts that a calibration walks at a time.
        memory_budget: bytes that rounding rules may take beside the model.
        dtype: of everything that is not quantized.
        device: torch device.
        features: extractors NAME or NAME:SOURCE, the first one gives the main distances.
        clip: CLIPModel of the scores; None measures no text-image matching.
        bootstrap_seed: of the resampling.
        commands: command lines that reproduce this.
    """

    source: str
    out: Path
    plan: Plan
    only: tuple[str, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)
    calibration_prompts: str | None = None
    guidance: float | None = None
    seed: int = 0
    height: int | None = None
    width: int | None = None
    scheduler: str | None = None
    batch_size: int = 4
    memory_budget: int = DEFAULT_MEMORY_BUDGET
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    features: tuple[str, ...] = ("clip",)
    clip: str | None = None
    bootstrap_seed: int = 0
    commands: tuple[str, ...] = ()

    @cached_property
    def tables(self) -> tuple[TablePlan, ...]:
        """Those that are made now.

        Raises:
            InputError: the plan has none of a name in `only`.
        """
        return self.plan.chosen(self.only)

    def settings_of(self, table: TablePlan) -> GenerationSettings:
        """Of the pipeline's call for a table's images."""
        guidance = table.guidance if self.guidance is None else self.guidance
        return GenerationSettings(table.steps, guidance, self.seed, self.height, self.width)

    def prompt_source(self, table: TablePlan, set_name: str) -> str:
        """Where the prompts of a table's set come from."""
        planned = {one.name: one.prompts for one in table.sets}
        return self.prompts.get(set_name, planned[set_name])

    def calibration_texts(self, count: int) -> tuple[str, ...]:
        """The first calibration prompts.

        Raises:
            InputError: they cannot be read, or there are fewer.
        """
        return read_prompts(self.calibration_prompts or self.plan.calibration_prompts, limit=count)

    def bench_request(self, table: TablePlan, candidates: Sequence[str]) -> BenchRequest:
        """The benchmark that measures a table; all tables share the images of reference and candidates."""
        return BenchRequest(
            reference=self.source,
            candidates=tuple(candidates),
            prompt_sets={one.name: self.prompt_source(table, one.name) for one in table.sets},
            out=self.table_folder(table.name),
            settings=self.settings_of(table),
            cache=self.out / "reference",
            num_images={one.name: one.num_images for one in table.sets},
            scheduler=self.scheduler,
            dtype=self.dtype,
            device=self.device,
            features=self.features,
            clip=self.clip,
            noise_floor=NOISE_FLOORS if table.noise_images else (),
            noise_images=max(table.noise_images, 4),
            bootstrap_seed=self.bootstrap_seed,
            commands=self.commands,
            images=self.out / "images",
            pairs=table.pairs,
        )

    def table_folder(self, name: str) -> Path:
        """Where a table's own results lie."""
        return self.out / "tables" / name


def check_request(request: StudyRequest) -> Contestant:
    """Tells what is wrong before hours of work; the source.

    Raises:
        InputError, ArtifactError: in one sentence.
    """
    known = {one.name for table in request.plan.tables for one in table.sets}
    for name in request.prompts:
        if name not in known:
            raise InputError(f"The plan {request.plan.name} has no prompt set {name!r}; {suggest(name, known)}")
    check_count("batch_size", request.batch_size)
    check_count("memory_budget", request.memory_budget)
    check_seed(request.seed + CALIBRATION_SEED)
    most = max(table.calibration_prompts_of(row) for table in request.tables for row in table.rows)
    request.calibration_texts(most)
    for table in request.tables:
        sampled_prompts(request.bench_request(table, ()))
    source = full_precision(request.source, "a study")
    load_judges(request.bench_request(request.tables[0], ()))  # loaded again when they are needed
    return source
