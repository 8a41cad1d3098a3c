"""The two experiments, from the request to ``sensitivity.json``: paint what is missing, measure, tell the sides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from halftone.files import output_errors, output_folder, remove_stale_parts, write_atomically
from halftone.locks import only_writer
from halftone.qdiffbench.bench import load_judges, model_record, settings_record
from halftone.qdiffbench.contestants import Contestant
from halftone.qdiffbench.environment import describe_environment
from halftone.qdiffbench.measure import ImageSet, Measured, ReferenceViews, measure
from halftone.qdiffbench.ranks import Ranks
from halftone.qdiffbench.request import Progress, ProgressBar, Prompts, claim, sampled_prompts
from halftone.qdiffbench.results import Model
from halftone.qdiffbench.steps import Steps
from halftone.qdiffbench.studio import Studio
from halftone.recipe import Recipe
from halftone.sensitivity.painting import Painter
from halftone.sensitivity.quantized import describe_quantized, kept_model
from halftone.sensitivity.request import SensitivityRequest, check_request
from halftone.sensitivity.results import (
    RESULTS,
    SCHEMA,
    Experiment,
    IntervalResult,
    SensitivityResults,
    StepInterval,
)
from halftone.sensitivity.sides import sensitive_sides
from halftone.sensitivity.steps import divide
from halftone.sensitivity.variants import (
    ALL_QUANTIZED,
    EXPERIMENTS,
    FLOAT,
    PERTURB,
    ExperimentName,
    Variant,
    variants_of,
)

__all__ = ["measure_sensitivity"]

MARKER = "begun.json"
HUNDREDTHS = 100  # units of progress of a part whose own are not known

Announce = Callable[[str], None]


@contextmanager
def _silent(label: str) -> Iterator[Progress]:
    """No progress is shown."""
    yield lambda done, total: None


def measure_sensitivity(
    request: SensitivityRequest, progress: ProgressBar = _silent, announce: Announce = lambda text: None
) -> SensitivityResults:
    """Runs the experiments, resuming what an earlier run of the same request left, and writes ``sensitivity.json``.

    Args:
        progress: makes a bar with a title, a context that yields a function of (done, total).
        announce: called with a line on what the calibration, and one on what the painting, will take.

    Raises:
        InputError, RecipeError, ArtifactError, NonFiniteError, OutputError: in one sentence.
    """
    source, images = check_request(request), request.of_images()
    prompts = sampled_prompts(images)[request.set_name]
    load_judges(images)  # a misspelt one is told before hours of painting; loaded again when it is needed
    with only_writer(output_folder(request.out)):
        claim(request.out, MARKER, SCHEMA, "measurement of sensitivity")
        remove_stale_parts(request.out)
        results = _Run(request, source, prompts, progress, announce).results()
        with output_errors(f"The results in {request.out}"):
            write_atomically(request.out / RESULTS, results.to_json())
    return results


class _Run:
    """The work in an output that is claimed."""

    def __init__(
        self,
        request: SensitivityRequest,
        source: Contestant,
        prompts: Prompts,
        progress: ProgressBar,
        announce: Announce,
    ) -> None:
        self.request, self.source, self.prompts = request, source, prompts
        self.progress, self.announce = progress, announce
        self.experiments = [name for name in EXPERIMENTS if name in request.experiments]

    def results(self) -> SensitivityResults:
        """Everything that `SensitivityResults` holds."""
        request, images = self.request, self.request.of_images()
        artifact = kept_model(request, self.source, self.progress, self.announce) if self._quantizes else None
        sets = {request.set_name: self.prompts}
        reference = Studio(images, Ranks(), self.progress, sets).paint_reference(self.source)
        painter = Painter(request, self.source, reference, self.prompts, artifact)
        intervals = divide(len(painter.timesteps), request.intervals)
        painted = self._paint(painter, intervals)
        if self._quantizes:
            painted.setdefault(_none_quantized(painter.timesteps), reference.sets[request.set_name])
        judges = load_judges(images)
        view = ReferenceViews(judges, reference.sets[request.set_name], self.prompts.sample)
        measured = self._measure(view, painted)
        return SensitivityResults(
            environment=describe_environment(request.device),
            settings=settings_record(images, judges, reference, {request.set_name: self.prompts.sample}),
            reference=model_record(Model, self.source, reference),
            experiments=tuple(
                _experiment(name, painter.timesteps, intervals, measured, self._of(name, painter, artifact, measured))
                for name in self.experiments
            ),
            warnings=tuple(dict.fromkeys(self._warnings(measured))),
        )

    @property
    def _quantizes(self) -> bool:
        return FLOAT in self.experiments

    def _paint(self, painter: Painter, intervals: Sequence[range]) -> dict[Variant, ImageSet]:
        """One bar for all of them, since all their images take about as long."""
        variants = [one for name in self.experiments for one in variants_of(name, intervals)]
        count, found = len(self.prompts.sample.entries), {}
        self.announce(f"{len(variants)} variants are painted beside full precision, {count} images each.")
        with self.progress("painting variants") as advance:
            steps = Steps(advance, count * len(variants))
            for variant in variants:
                with steps.part(count) as one:
                    found[variant] = painter.paint(variant, one)
        return found

    def _measure(self, view: ReferenceViews, painted: Mapping[Variant, ImageSet]) -> dict[Variant, Measured]:
        found = {}
        with self.progress("measuring") as advance:
            steps = Steps(advance, HUNDREDTHS * len(painted))
            for variant, images in painted.items():
                with steps.part(HUNDREDTHS) as one:
                    found[variant] = measure(view, images, self.request.bootstrap_seed, one)
        return found

    def _of(
        self, name: ExperimentName, painter: Painter, artifact: Path | None, measured: Mapping[Variant, Measured]
    ) -> dict[str, Any]:
        """Fields that only this experiment has."""
        if name == PERTURB:
            return {"noise": float(self.request.noise)}
        assert artifact is not None
        return {
            "quantized_model": describe_quantized(artifact),
            "all_quantized": measured[ALL_QUANTIZED].result,
            "none_quantized": measured[_none_quantized(painter.timesteps)].result,
        }

    def _warnings(self, measured: Mapping[Variant, Measured]) -> Iterator[str]:
        for one in measured.values():
            yield from one.warnings
        recipe = Recipe.load(self.request.recipe) if self._quantizes else None
        if recipe is not None and recipe.num_relaxed(self.request.settings.num_inference_steps):
            yield (
                f"The recipe {recipe.name} relaxes some steps by itself: what floating point restores there is less"
                " than it would be for a recipe that treats all steps alike."
            )


def _none_quantized(timesteps: Sequence[float]) -> Variant:
    """With all steps in floating point: full precision, whose images stand for it."""
    return Variant(FLOAT, range(len(timesteps)))


def _experiment(
    name: ExperimentName,
    timesteps: Sequence[float],
    intervals: Sequence[range],
    measured: Mapping[Variant, Measured],
    fields: Mapping[str, Any],
) -> Experiment:
    results = tuple(
        IntervalResult(interval=_interval(steps, timesteps), result=measured[Variant(name, steps)].result)
        for steps in intervals
    )
    return Experiment(name=name, intervals=results, sides=sensitive_sides(name, results), **fields)


def _interval(steps: range, timesteps: Sequence[float]) -> StepInterval:
    return StepInterval(
        first=steps.start + 1,
        last=steps.stop,
        first_timestep=timesteps[steps.start],
        last_timestep=timesteps[steps.stop - 1],
    )
