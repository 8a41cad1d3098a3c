"""``halftone generate``: images of a pipeline, quantized or not, by index, resumably."""

from __future__ import annotations

from typing import Annotated

import typer

from halftone.cli import options
from halftone.cli.console import emit, progress, quiet_libraries, say, show_kernels


def generate(
    source: options.Source,
    out: options.Out,
    prompts: Annotated[str | None, typer.Option("--prompts", help="A prompt file, or bundled:NAME.")] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="One prompt; can be given again.")] = None,
    num_prompts: options.NumPrompts = None,
    steps: options.Steps = 50,
    guidance: options.Guidance = None,
    scheduler: options.Scheduler = None,
    seed: options.Seed = 0,
    height: options.Height = None,
    width: options.Width = None,
    dtype: options.DtypeOrRecorded = None,
    device: options.Device = "cpu",
    attention: options.Attention = None,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Paint prompts with SOURCE: 00000.png … by index, and manifest.jsonl with index, prompt, seed and file."""
    quiet_libraries()
    if debug:
        show_kernels()
    from halftone.generation import GenerationSettings
    from halftone.generation import generate as run
    from halftone.sources import content_sha256

    texts = chosen_prompts(prompts, prompt, num_prompts)
    dtype = options.dtype_of(source, dtype)
    pipeline = options.open_source(source, dtype, device, scheduler, attention)
    settings = GenerationSettings(
        num_inference_steps=steps, guidance_scale=guidance, seed=seed, **options.image_size(height, width)
    )
    warnings: list[str] = []
    with progress("painting") as advance:
        paths = run(
            pipeline,
            texts,
            out,
            settings,
            source=source,
            source_sha256=content_sha256(source),
            progress=advance,
            warn=warnings.append,
        )
    for warning in warnings:
        say(f"Note: {warning}")
    if as_json:
        emit({"out": str(out), "images": len(paths)})
    else:
        say(f"{out}: {len(paths)} images.")


def chosen_prompts(source: str | None, single: list[str] | None, limit: int | None) -> tuple[str, ...]:
    """The prompts of --prompts or of --prompt.

    Raises:
        InputError: neither or both are given.
    """
    from halftone.errors import InputError
    from halftone.prompts import check_prompts, read_prompts

    if (source is None) == (not single):
        raise InputError("Give either --prompts FILE or --prompt TEXT.")
    if source is not None:
        return read_prompts(source, limit=limit)
    texts = check_prompts(single or [])
    if limit is not None and limit > len(texts):
        raise InputError(f"--num-prompts asks for {limit} prompts, and --prompt is given {len(texts)} times.")
    return texts[:limit]
