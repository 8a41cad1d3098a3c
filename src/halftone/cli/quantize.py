"""``halftone quantize``: a pipeline becomes an artifact, resumably."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halftone.cli import options
from halftone.cli.console import emit, progress, quiet_libraries, say, show_kernels

if TYPE_CHECKING:
    from halftone.quantization import QuantizationResult

CHECKPOINT_SUFFIX = ".unfinished"


def quantize(
    source: options.Source,
    prompts: options.Prompts,
    out: options.Out,
    recipe: Annotated[str, typer.Option("--recipe", help="A preset's name, or a YAML or JSON file.")] = "pcr-w8a8",
    num_prompts: options.NumPrompts = None,
    steps: options.Steps = 50,
    guidance: options.Guidance = None,
    scheduler: options.Scheduler = None,
    seed: options.Seed = 0,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Prompts in the denoiser at a time: memory against speed.")
    ] = 4,
    height: options.Height = None,
    width: options.Width = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Quantize SOURCE, calibrated on prompts of the kind it will be used with, and write it to --out.

    Interrupted, the same command goes on where it was. Finished steps are kept beside the output until it is written.
    """
    quiet_libraries()
    if debug:
        show_kernels()
    from halftone.prompts import read_prompts
    from halftone.quantization import check_target
    from halftone.quantization import quantize as run
    from halftone.recipe import Recipe
    from halftone.sources import content_sha256

    chosen = Recipe.load(recipe)
    texts = read_prompts(prompts, limit=num_prompts)
    checkpoint = checkpoint_folder(out)
    check_target(out, checkpoint)
    pipeline = options.open_source(source, dtype, device, scheduler)
    with progress("calibrating") as advance:
        result = run(
            pipeline,
            chosen,
            texts,
            num_inference_steps=steps,
            guidance_scale=guidance,
            seed=seed,
            batch_size=batch_size,
            checkpoint_folder=checkpoint,
            progress=advance,
            announce=say,
            source_sha256=content_sha256(source),
            **options.image_size(height, width),
        )
    result.save(out)
    facts = summary(result, out)
    if as_json:
        emit(facts)
    else:
        say(sentence(facts))


def checkpoint_folder(out: Path) -> Path:
    """Where the finished steps of an unfinished artifact are kept."""
    target = out.absolute()
    return target.with_name(target.name + CHECKPOINT_SUFFIX)


def summary(result: QuantizationResult, out: Path) -> dict[str, Any]:
    """What a machine wants to know of a finished quantization."""
    calibration = result.calibration
    return {
        "out": str(out),
        "recipe": result.config.recipe.name,
        "layers": len(result.config.layers),
        "left_out": len(result.config.left_out),
        "weight_bits": result.config.recipe.weights.num_bits,
        "average_activation_bits": result.average_activation_bits,
        "denoiser_passes_per_prompt": calibration.denoiser_passes_per_prompt,
        "resumed_calls": calibration.resumed_calls,
        "seconds": round(calibration.seconds, 3),
        "bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
    }


def sentence(facts: dict[str, Any]) -> str:
    """The same for a person."""
    resumed = f", {facts['resumed_calls']} calls resumed" if facts["resumed_calls"] else ""
    return (
        f"{facts['out']}: {facts['layers']} layers, {facts['weight_bits']}-bit weights, "
        f"{facts['average_activation_bits']:.4g}-bit activations on average, {facts['bytes'] / 1e6:.1f} MB; "
        f"{facts['denoiser_passes_per_prompt']:g} denoiser passes a prompt in {facts['seconds']:.0f} s{resumed}."
    )
