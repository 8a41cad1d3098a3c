"""``halftone demo``: the whole path on a bundled model, ending in a page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from halftone.cli import options
from halftone.cli.console import emit, progress, quiet_libraries, say, show_kernels


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the page goes.")] = Path("demo-report"),
    recipe: Annotated[str, typer.Option("--recipe", help="A preset's name, or a YAML or JSON file.")] = "pcr-w8a8",
    images: Annotated[int, typer.Option("--num-images", min=4, help="Pairs to paint and compare.")] = 64,
    num_prompts: Annotated[int, typer.Option("--num-prompts", min=1, help="Calibration prompts.")] = 64,
    steps: options.Steps = 20,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Quantize bundled:mini-sd, paint the same held-out prompts with both models, and write a page that compares them.

    About three minutes on two cores. Interrupted, the same command goes on where it was.
    """
    quiet_libraries()
    if debug:
        show_kernels()
    from halftone.demo import DemoSettings, run_demo

    started = time.perf_counter()
    settings = DemoSettings(recipe=recipe, images=images, calibration_prompts=num_prompts, steps=steps)
    finished = run_demo(out, settings, progress, say)
    results = finished.outcome.results
    if as_json:
        emit(results.model_dump(mode="json", by_alias=True, exclude_none=True))
        return
    measured = results.candidates[0].sets["in-domain"]
    say(
        f"PSNR {measured.psnr.mean:.1f} dB, SSIM {measured.ssim.mean:.3f} to full precision over {measured.n} images; "
        f"{time.perf_counter() - started:.0f} s."
    )
    say(f"The report: {finished.page.absolute()}")
