"""A study from the request to ``study.json``, table by table: make the models that are missing, paint, measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from halftone.errors import InputError
from halftone.files import output_errors, output_folder, remove_stale_parts, write_atomically
from halftone.locks import only_writer
from halftone.qdiffbench.bench import BenchOutcome, bench
from halftone.qdiffbench.contestants import Contestant
from halftone.qdiffbench.environment import describe_environment
from halftone.qdiffbench.ranks import Ranks
from halftone.qdiffbench.request import Progress, ProgressBar, claim
from halftone.recipe import products_of
from halftone.study.estimate import estimate_study
from halftone.study.forecast import Forecast
from halftone.study.kept_tables import KeptTables, sha256_of
from halftone.study.kept_time import kept_seconds
from halftone.study.models import ModelPlan, Models, StageBars, no_stages
from halftone.study.plan import RowPlan, TablePlan
from halftone.study.request import StudyRequest, check_request
from halftone.study.results import (
    RESULTS,
    SCHEMA,
    CalibrationCost,
    StudyResults,
    StudyRow,
    StudyTable,
)
from halftone.timesteps import TimestepSlots

__all__ = ["run_study"]

MARKER = "begun.json"

Announce = Callable[[str], None]


@contextmanager
def _silent(label: str) -> Iterator[Progress]:
    """No progress is shown."""
    yield lambda done, total: None


def run_study(
    request: StudyRequest,
    progress: ProgressBar = _silent,
    stages: StageBars = no_stages,
    announce: Announce = lambda text: None,
) -> StudyResults | None:
    """Makes a study, resuming what an earlier run left, and writes ``study.json`` after every table.

    Args:
        progress: makes a bar with a title, a context that yields a function of (done, total).
        stages: makes bars for the stages of a calibration, a context that yields what `halftone.quantize` is to call.
        announce: called with a line on what is begun and how long all of it will take.

    Returns:
        The results on the first of several processes (torchrun), None on the others.

    Raises:
        InputError, ArtifactError, NonFiniteError, OutputError: in one sentence; what is finished is kept.
    """
    ranks = Ranks.from_environment()
    source = check_request(request)
    with only_writer(output_folder(request.out)) if ranks.is_first else nullcontext():
        if ranks.is_first:
            claim(request.out, MARKER, SCHEMA, "study")
            remove_stale_parts(request.out / "tables")
        ranks.wait()
        return _Run(request, source, ranks, progress, stages, announce).results()


class _Run:
    """The work in an output that is claimed."""

    def __init__(
        self,
        request: StudyRequest,
        source: Contestant,
        ranks: Ranks,
        progress: ProgressBar,
        stages: StageBars,
        announce: Announce,
    ) -> None:
        self.request, self.source, self.ranks = request, source, ranks
        self.progress, self.announce = progress, announce
        self.models = Models(request, source.model_source, stages)
        self.kept = KeptTables(request, source, self.models)

    def results(self) -> StudyResults | None:
        """Everything that `StudyResults` holds; on ranks that are not the first, None."""
        todo = self.kept.missing()
        self.ranks.wait()
        forecast = self._forecast(todo)
        for table in todo:
            self._make_models(table, forecast)
            self._measure(table, forecast)
        self.ranks.wait()
        return self._write() if self.ranks.is_first else None

    def _forecast(self, todo: Sequence[TablePlan]) -> Forecast:
        """What all of it will take, told before it begins; nothing where nothing is left to do."""
        if not todo:
            return Forecast((), self.progress, self.announce)
        found = estimate_study(self.request, self.source, self.models, todo)
        for line in found.lines(self.ranks.world) if self.ranks.is_first else ():
            self.announce(line)
        announce = self.announce if self.ranks.is_first else lambda text: None
        return Forecast(found.works, self.progress, announce, self.ranks.world)

    def _make_models(self, table: TablePlan, forecast: Forecast) -> None:
        """Each of several processes makes some of them."""
        plans = list({plan.name: plan for plan in (self.models.plan_of(table, row) for row in table.rows)}.values())
        missing = [plan for plan in plans if not self.models.is_there(plan)]
        self.ranks.wait()  # so that all of them find the same missing
        for place in self.ranks.mine(len(missing)):
            plan = missing[place]
            with forecast.calibrating(plan.name):
                self.announce(f"Table {table.name}, model {place + 1} of {len(missing)}: {plan.words}.")
                self.models.make(plan)
        self.ranks.wait()
        for plan in plans if self.ranks.is_first else ():
            self.models.make(plan)  # checked, where an earlier run or another process made it
        self.models.release()
        self.ranks.wait()

    def _measure(self, table: TablePlan, forecast: Forecast) -> None:
        plans = {row.name: self.models.plan_of(table, row) for row in table.rows}
        candidates = [f"{name}={self.models.folder(plan)}" for name, plan in plans.items()]
        outcome = bench(self.request.bench_request(table, candidates), forecast.bar(table.name), self.ranks)
        if outcome is None:
            return
        self.kept.write(table, self._table(table, plans, outcome), outcome.results.reference)
        self._write()

    def _table(self, table: TablePlan, plans: Mapping[str, ModelPlan], outcome: BenchOutcome) -> StudyTable:
        results = outcome.results
        found = {one.name: one for one in results.candidates}
        told = [text for one in outcome.measured.values() for text in one.warnings]
        return StudyTable(
            name=table.name,
            title=table.heading,
            sentence=table.sentence,
            kind=table.kind,
            settings=results.settings.model_copy(update={"commands": ()}),
            rows=tuple(self._row(row, plans[row.name], found[row.name].sets) for row in table.rows),
            noise_floor=tuple(
                one.model_copy(update={"sets": {name: _short(result) for name, result in one.sets.items()}})
                for one in results.noise_floor
            ),
            comparisons=results.comparisons,
            warnings=tuple(dict.fromkeys(told)),
        )

    def _row(self, row: RowPlan, plan: ModelPlan, sets: Mapping[str, Any]) -> StudyRow:
        facts = self.models.facts(plan)
        bits = _bits_of_calls(facts)
        least = facts["recipe"]["activations"]["num_bits"]
        return StudyRow(
            name=row.name,
            group=row.group,
            recipe=facts["recipe"]["name"],
            artifact=plan.name,
            layers=len(facts["layers"]),
            weight_bits=facts["weight_bits"],
            average_activation_bits=facts["average_activation_bits"],
            relaxed_share=sum(one > least for one in bits) / len(bits),
            products=sum(products_of(one) for one in bits) / len(bits),
            artifact_bytes=facts["sizes"]["total_bytes"],
            denoiser_bytes=facts["sizes"]["denoiser_bytes"],
            calibration=CalibrationCost(
                prompts=facts["calibration"]["prompts"],
                denoiser_passes_per_prompt=facts["calibration"]["denoiser_passes_per_prompt"],
                seconds=kept_seconds(self.models.time_file(plan)),
            ),
            sets={name: _short(result) for name, result in sets.items()},
        )

    def _write(self) -> StudyResults:
        """``study.json`` of all tables of the plan that are there, whichever run measured them."""
        plan, kept = self.request.plan, {table.name: self.kept.read(table) for table in self.request.plan.tables}
        there = [one for one in kept.values() if one is not None]
        if not there:
            raise InputError(f"No table of the plan {plan.name} is measured in {self.request.out}.")
        results = StudyResults(
            environment=describe_environment(self.request.device),
            plan=plan.name,
            plan_sha256=sha256_of(plan.model_dump(mode="json")),
            reference=there[0].reference,
            tables=tuple(one.table for one in there),
            missing=tuple(name for name, one in kept.items() if one is None),
            commands=self.request.commands,
        )
        with output_errors(f"The results in {self.request.out}"):
            write_atomically(self.request.out / RESULTS, results.to_json())
        return results


def _bits_of_calls(facts: Mapping[str, Any]) -> list[int]:
    """Activation bits of each of the denoiser's calls for an image."""
    slots = TimestepSlots(
        tuple(slot["timestep"] for slot in facts["slots"]), tuple(slot["bits"] for slot in facts["slots"])
    )
    calls = facts["calibration"].get("timesteps", slots.timesteps)
    return [slots.num_bits[slots.slot_of(float(value))] for value in calls]


def _short(result: Any) -> Any:
    """A set's result without what only a table's own results hold."""
    return result.model_copy(update={"drift": (), "worst_pairs": ()})
