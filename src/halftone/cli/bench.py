"""``halftone bench``: how far candidates' images are from the reference's."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halftone.cli import options
from halftone.cli.console import emit, progress, quiet_libraries, say, show_kernels

if TYPE_CHECKING:
    from halftone.qdiffbench.bench import BenchOutcome, BenchRequest
    from halftone.qdiffbench.results import Results

BUNDLED_CLIP = "bundled:mini-clip"
NONE = "none"


def bench(
    reference: Annotated[str, typer.Argument(metavar="REFERENCE", help="The full-precision model, as SOURCE.")],
    candidates: Annotated[
        list[str],
        typer.Argument(
            metavar="CANDIDATE...",
            help="Artifacts, diffusers folders, hub ids, folders of images with manifest.jsonl, torchao:int8wo@SOURCE, "
            "quanto:int8@SOURCE; NAME=… names one.",
        ),
    ],
    out: options.Out,
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompts", help="NAME=FILE, FILE:COLUMN or bundled:NAME; can be given again for another set."),
    ] = None,
    images: Annotated[bool, typer.Option("--images", help="Both are folders of images; nothing is painted.")] = False,
    num_images: Annotated[
        int | None, typer.Option("--num-images", min=2, help="Of each set; all if not given.")
    ] = None,
    steps: options.Steps = 50,
    guidance: options.Guidance = None,
    scheduler: options.Scheduler = None,
    seed: options.Seed = 0,
    height: options.Height = None,
    width: options.Width = None,
    features: options.Features = None,
    clip: options.Clip = None,
    lpips: Annotated[bool, typer.Option("--lpips", help="Measure LPIPS too (an optional extra).")] = False,
    noise_floor: Annotated[
        str, typer.Option("--noise-floor", help="The reference against itself: dtype,seed, one of them, or none.")
    ] = "dtype,seed",
    noise_images: Annotated[int, typer.Option("--noise-images", min=4, help="Of each set, for the noise floor.")] = 256,
    cache: options.Cache = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "cpu",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table for a README on stdout.")] = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Compare CANDIDATEs with REFERENCE: results.json, and report.html with pictures and plots.

    Interrupted, the same command goes on where it was, to the image. torchrun or accelerate launch share the work.
    """
    quiet_libraries()
    if debug:
        show_kernels()
    from halftone.errors import InputError
    from halftone.generation import GenerationSettings
    from halftone.qdiffbench.bench import BenchRequest
    from halftone.qdiffbench.bench import bench as run
    from halftone.qdiffbench.folders import compare_folders

    if images and num_images is not None:
        raise InputError("--num-images has no meaning with --images: all images of the folders are compared.")
    extractors, judge = chosen_judges(reference, features, clip, images)
    request = BenchRequest(
        reference=reference,
        candidates=tuple(candidates),
        prompt_sets=_prompt_sets(prompts or [], images),
        out=out,
        settings=GenerationSettings(steps, guidance, seed, height, width),
        cache=cache or default_cache(),
        num_images=num_images,
        scheduler=scheduler,
        dtype=options.parse_dtype(dtype),
        device=str(options.parse_device(device)),
        features=extractors,
        clip=judge,
        lpips="" if lpips else None,
        noise_floor=() if noise_floor == NONE else tuple(part.strip() for part in noise_floor.split(",")),
        noise_images=noise_images,
        commands=(shlex.join(["halftone", *sys.argv[1:]]),),
    )
    outcome = compare_folders(request, progress) if images else run(request, progress)
    if outcome is not None:
        _publish(outcome, request, markdown, as_json)


def _publish(outcome: BenchOutcome, request: BenchRequest, markdown: bool, as_json: bool) -> None:
    """Writes the report and tells the results. (Of several ranks, only the first has an outcome.)"""
    from halftone.files import output_errors
    from halftone.report import markdown_table, write_page
    from halftone.report.outcome import page_of

    with output_errors(f"The report in {request.out}"):
        page = write_page(page_of(outcome, title=f"QDiffBench: {_title(request)}"), request.out)
    _tell(outcome.results, page, markdown_table(outcome.results) if markdown else "", as_json)


def default_cache() -> Path:
    """``$HALFTONE_CACHE``, or a folder in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HALFTONE_CACHE") or Path(home) / "halftone") / "bench"


def chosen_judges(
    reference: str, features: list[str] | None, clip: str | None, images: bool = False
) -> tuple[tuple[str, ...], str | None]:
    """The feature extractors, and the CLIPModel of the scores or None, that the options ask for.

    Args:
        images: whether the reference is a folder of images.
    """
    named = next((one.removeprefix("clip:") for one in features or () if images and one.startswith("clip:")), None)
    usual = named or _usual_clip(reference, images and clip in (None, NONE))
    judge = clip or usual
    of_scores = f"clip:{usual if judge == NONE else judge}"
    extractors = tuple(of_scores if one == "clip" else one for one in features or ["clip"])
    return extractors, None if judge == NONE else judge


def _usual_clip(reference: str, look: bool) -> str:
    """The small bundled CLIP knows 64×64 pixels and little of the world: it judges bundled models' images alone.

    Args:
        look: whether the reference is a folder of images, whose size tells.
    """
    from halftone.qdiffbench.clip_model import DEFAULT_CLIP
    from halftone.qdiffbench.contestants import Contestant

    if not look:
        return BUNDLED_CLIP if Contestant.parse(reference).model_source.startswith("bundled:") else DEFAULT_CLIP
    from halftone.qdiffbench.foreign_images import all_images
    from halftone.qdiffbench.image_files import read_image

    return BUNDLED_CLIP if read_image(all_images(Path(reference)).paths[0]).shape[:2] == (64, 64) else DEFAULT_CLIP


def _prompt_sets(given: list[str], images: bool) -> dict[str, str]:
    """--prompts values by name; a value without a name is called as its file.

    Raises:
        InputError: none, or two of one name.
    """
    from halftone.errors import InputError

    if images and given:
        raise InputError("--prompts has no meaning with --images: the prompts stand in the folders' manifests.")
    sets: dict[str, str] = {}
    for text in given:
        name, equals, source = text.partition("=")
        if not equals or Path(text).exists():
            name, source = Path(text.removeprefix("bundled:")).stem, text
        if name in sets:
            raise InputError(f"Two prompt sets are called {name!r}; name them, as in --prompts other={source}.")
        sets[name] = source
    if not sets and not images:
        raise InputError("Give at least one --prompts NAME=FILE (or bundled:scenes).")
    return sets


def _title(request: BenchRequest) -> str:
    others = ", ".join(Path(text).name for text in request.candidates[:3])
    more = " …" if len(request.candidates) > 3 else ""
    return f"{others}{more} against {Path(request.reference).name}"


def _tell(results: Results, page: Path, table: str, as_json: bool) -> None:
    if as_json:
        emit(results.model_dump(mode="json", by_alias=True, exclude_none=True))
        return
    if table:
        print(table)
    for warning in results.warnings:
        say(f"Note: {warning}")
    for candidate in results.candidates:
        for name, result in candidate.sets.items():
            say(
                f"{candidate.name}, {name}: PSNR {result.psnr.mean:.2f} dB "
                f"({result.psnr.ci95[0]:.2f} to {result.psnr.ci95[1]:.2f}), SSIM {result.ssim.mean:.4f}, "
                f"{result.n} images."
            )
    for comparison in results.comparisons:
        if comparison.metric == "psnr":
            say(f"{comparison.set}, PSNR: {comparison.verdict}")
    say(f"The report: {page}")
