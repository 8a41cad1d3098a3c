"""``halftone sensitivity``: which steps of a model are sensitive, for fidelity and for text-image matching."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from halftone.cli import options
from halftone.cli.bench import chosen_judges, default_cache
from halftone.cli.console import emit, progress, quiet_libraries, say, show_kernels

if TYPE_CHECKING:
    from pathlib import Path

    from halftone.qdiffbench.set_results import SetResult
    from halftone.sensitivity.results import Experiment, SensitivityResults

BOTH = "both"


def sensitivity(
    source: options.Source,
    out: options.Out,
    prompts: options.Prompts = "bundled:scenes",
    num_images: Annotated[int, typer.Option("--num-images", min=4, help="Of every variant.")] = 64,
    experiment: Annotated[
        str,
        typer.Option(
            "--experiment",
            help="perturb: noise on the prediction in one interval; float: all quantized but one interval; or both.",
        ),
    ] = BOTH,
    intervals: Annotated[int, typer.Option("--intervals", min=1, help="Parts that the steps are divided into.")] = 5,
    noise: Annotated[
        float, typer.Option("--noise", help="perturb: standard deviation of the noise, in that of the prediction.")
    ] = 0.05,
    recipe: Annotated[
        str, typer.Option("--recipe", help="float: a name (see `halftone recipes`) or a file; best without relaxing.")
    ] = "per-step-w8a8",
    calibration_prompts: Annotated[
        str, typer.Option("--calibration-prompts", help="float: a prompt file, or bundled:NAME.")
    ] = "bundled:calibration",
    num_calibration_prompts: Annotated[
        int, typer.Option("--num-calibration-prompts", min=1, help="float: take only so many of them.")
    ] = 64,
    steps: options.Steps = 50,
    guidance: options.Guidance = None,
    scheduler: options.Scheduler = None,
    seed: options.Seed = 0,
    height: options.Height = None,
    width: options.Width = None,
    features: options.Features = None,
    clip: options.Clip = None,
    cache: options.Cache = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Find out which steps of SOURCE, full precision, are sensitive: sensitivity.json, and report.html with plots.

    Interrupted, the same command goes on where it was, to the image. The quantized model is kept in --out as well.
    """
    quiet_libraries()
    if debug:
        show_kernels()
    from halftone.generation import GenerationSettings
    from halftone.sensitivity import SensitivityRequest, measure_sensitivity
    from halftone.sensitivity.variants import EXPERIMENTS

    extractors, judge = chosen_judges(source, features, clip)
    request = SensitivityRequest(
        source=source,
        out=out,
        cache=cache or default_cache(),
        settings=GenerationSettings(steps, guidance, seed, height, width),
        prompts=prompts,
        num_images=num_images,
        intervals=intervals,
        experiments=EXPERIMENTS if experiment == BOTH else (experiment,),
        noise=noise,
        recipe=recipe,
        calibration_prompts=calibration_prompts,
        num_calibration_prompts=num_calibration_prompts,
        scheduler=scheduler,
        dtype=options.parse_dtype(dtype),
        device=str(options.parse_device(device)),
        features=extractors,
        clip=judge,
        commands=(shlex.join(["halftone", *sys.argv[1:]]),),
    )
    _publish(measure_sensitivity(request, progress, say), out, as_json)


def _publish(results: SensitivityResults, out: Path, as_json: bool) -> None:
    """Writes the report and tells the results."""
    from halftone.files import output_errors
    from halftone.report import write_sensitivity_page
    from halftone.report.sensitivity_page import headline

    with output_errors(f"The report in {out}"):
        page = write_sensitivity_page(results, out)
    if as_json:
        emit(results.model_dump(mode="json", by_alias=True, exclude_none=True))
        return
    for warning in results.warnings:
        say(f"Note: {warning}")
    for experiment in results.experiments:
        _tell(experiment)
    say(headline(results))
    say(f"The report: {page}")


def _tell(experiment: Experiment) -> None:
    treatment = "noise in" if experiment.noise is not None else "floating point in"
    for one in experiment.intervals:
        say(f"{treatment} {one.interval.words}: {_numbers(one.result)}")
    if experiment.all_quantized is not None:
        say(f"all steps quantized: {_numbers(experiment.all_quantized)}")
    for side in experiment.sides:
        say(side.sentence)


def _numbers(result: SetResult) -> str:
    text = f"PSNR {result.psnr.mean:.2f} dB ({result.psnr.ci95[0]:.2f} to {result.psnr.ci95[1]:.2f})"
    change = result.clip_score_difference
    if change is not None:
        text += f", CLIP score change {change.mean:+.2f} ({change.ci95[0]:+.2f} to {change.ci95[1]:+.2f})"
    return f"{text}, {result.n} images."
