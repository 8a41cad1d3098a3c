"""``halftone study``: a plan's tables of recipes on one model, made, painted and measured."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halftone.cli import options
from halftone.cli.bench import chosen_judges
from halftone.cli.console import emit, progress, quiet_libraries, say, show_kernels, stages

if TYPE_CHECKING:
    from halftone.study.request import StudyRequest
    from halftone.study.results import StudyResults

CalibrationPrompts = Annotated[
    str | None, typer.Option("--calibration-prompts", help="A prompt file in the place of the plan's.")
]
Guidance = Annotated[
    float | None, typer.Option("--guidance", help="Classifier-free guidance in the place of the plan's.")
]


def study(
    source: options.Source,
    out: options.Out,
    plan: Annotated[str, typer.Option("--plan", help="paper, quick, or a YAML file of your own.")] = "paper",
    only: Annotated[list[str] | None, typer.Option("--only", help="Make only this table; can be given again.")] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Only say how long it will take, and how much disk.")
    ] = False,
    markdown: Annotated[
        Path | None,
        typer.Option("--markdown", help="A file that gets the tables, between their markers if it has any."),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompts", help="NAME=FILE in the place of the plan's prompt set NAME; can be given again."),
    ] = None,
    calibration_prompts: CalibrationPrompts = None,
    guidance: Guidance = None,
    scheduler: options.Scheduler = None,
    seed: options.Seed = 0,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Prompts that a calibration walks at a time.")
    ] = 4,
    memory_budget: Annotated[
        int, typer.Option("--memory-budget", min=1, help="MB that gptq and adaround may take beside the model.")
    ] = 2048,
    height: options.Height = None,
    width: options.Width = None,
    features: options.Features = None,
    clip: options.Clip = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Quantize SOURCE by all recipes of a plan and measure them: study.json, and report.html with tables and plots.

    Interrupted, the same command goes on where it was, to the image. torchrun shares the work.
    """
    quiet_libraries()
    if debug:
        show_kernels()
    from halftone.report.study_markdown import check_target
    from halftone.study import Plan, StudyRequest, estimate_study, run_study

    extractors, judge = chosen_judges(source, features, clip)
    request = StudyRequest(
        source=source,
        out=out,
        plan=Plan.load(plan),
        only=tuple(only or ()),
        prompts=_named(prompts or []),
        calibration_prompts=calibration_prompts,
        guidance=guidance,
        seed=seed,
        height=height,
        width=width,
        scheduler=scheduler,
        batch_size=batch_size,
        memory_budget=memory_budget * 1024**2,
        dtype=options.parse_dtype(dtype),
        device=str(options.parse_device(device)),
        features=extractors,
        clip=judge,
        commands=(shlex.join(["halftone", *sys.argv[1:]]),),
    )
    if markdown is not None:
        check_target(markdown, [table.name for table in request.plan.tables])
    if estimate:
        found = estimate_study(request)
        for line in found.lines():
            say(line)
        if as_json:
            emit({"seconds": round(found.seconds(), 1), "bytes": found.bytes})
        return
    results = run_study(request, progress, stages, say)
    if results is not None:
        _publish(results, request, markdown, as_json)


def _named(given: list[str]) -> dict[str, str]:
    """--prompts values by the names of the sets.

    Raises:
        InputError: one has no name, or a name comes twice.
    """
    from halftone.errors import InputError

    found: dict[str, str] = {}
    for text in given:
        name, equals, source = text.partition("=")
        if not equals or not name or not source:
            raise InputError(f"--prompts {text} names no set of the plan; write NAME=FILE.")
        if name in found:
            raise InputError(f"--prompts gives the set {name!r} twice.")
        found[name] = source
    return found


def _publish(results: StudyResults, request: StudyRequest, markdown: Path | None, as_json: bool) -> None:
    """Writes the report and the tables, and tells the results."""
    from halftone.files import output_errors
    from halftone.report import write_study_page
    from halftone.report.study_markdown import write_tables
    from halftone.report.study_page import headlines

    with output_errors(f"The report in {request.out}"):
        page = write_study_page(results, request.out)
    if markdown is not None:
        with output_errors(f"The tables in {markdown}"):
            write_tables(results, markdown)
    if as_json:
        emit(results.model_dump(mode="json", by_alias=True, exclude_none=True))
        return
    for table in results.tables:
        for warning in table.warnings:
            say(f"Note, table {table.name}: {warning}")
    for sentence in headlines(results):
        say(sentence)
    if results.missing:
        say(f"Not measured yet: {', '.join(results.missing)}.")
    say(f"The report: {page}")
