"""``halftone quantize``: a pipeline becomes an artifact, resumably."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halftone.cli import options
from halftone.cli.console import emit, quiet_libraries, say, show_kernels, stages

if TYPE_CHECKING:
    from halftone.quantization import QuantizationResult

CHECKPOINT_SUFFIX = ".unfinished"


def quantize(
    source: options.Source,
    prompts: options.Prompts,
    out: options.Out,
    recipe: Annotated[str, typer.Option("--recipe", help="A name (see `halftone recipes`) or a file.")] = "pcr-w8a8",
    num_prompts: options.NumPrompts = None,
    steps: options.Steps = 50,
    guidance: options.Guidance = None,
    scheduler: options.Scheduler = None,
    seed: options.Seed = 0,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Prompts in the denoiser at a time: memory against speed.")
    ] = 4,
    memory_budget: Annotated[
        int,
        typer.Option("--memory-budget", min=1, help="MB that gptq and adaround may take beside the model."),
    ] = 2048,
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
    from halftone.files import output_folder
    from halftone.locks import only_writer
    from halftone.prompts import read_prompts
    from halftone.quantization import check_target, find_made
    from halftone.quantization import quantize as run
    from halftone.recipe import Recipe
    from halftone.schedulers import check_steps
    from halftone.sources import content_sha256

    chosen = Recipe.load(recipe)
    texts = read_prompts(prompts, limit=num_prompts)
    target = output_folder(out)
    with only_writer(target):
        may_be_made = is_finished(target)
        if not may_be_made:
            check_target(target, checkpoint_folder(target))
        pipeline = options.open_source(source, dtype, device, scheduler)
        check_steps(pipeline, steps)
        arguments: dict[str, Any] = {
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "seed": seed,
            "batch_size": batch_size,
            "source_sha256": content_sha256(source),
            "memory_budget": memory_budget * 1024**2,
            **options.image_size(height, width),
        }
        made = find_made(target, pipeline, chosen, texts, **arguments) if may_be_made else None
        if made is None:
            check_target(target, checkpoint_folder(target))
            with stages() as follow:
                arguments |= {"checkpoint_folder": checkpoint_folder(target), "follow": follow, "announce": say}
                result = run(pipeline, chosen, texts, **arguments)
            result.save(target)
        else:
            with suppress(OSError):  # there is none, unless a kill came just before it was removed, empty
                checkpoint_folder(target).rmdir()
    facts = summary(result, out) if made is None else summary_of_made(made, out)
    if as_json:
        emit(facts)
    else:
        say(sentence(facts) if made is None else f"{out} holds what this command makes; nothing was left to do.")


def checkpoint_folder(target: Path) -> Path:
    """Where the finished steps of an unfinished artifact are kept."""
    return target.with_name(target.name + CHECKPOINT_SUFFIX)


def is_finished(target: Path) -> bool:
    """Whether a folder is an artifact with no unfinished work beside it, so that it may be this very command's."""
    from halftone.artifact.manifest import MANIFEST
    from halftone.calibration.checkpoint import is_unfinished

    return (target / MANIFEST).is_file() and not is_unfinished(checkpoint_folder(target))


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
        "denoiser_passes_per_prompt": result.config.calibration["denoiser_passes_per_prompt"],
        "resumed_calls": calibration.resumed_calls + result.rounding.resumed_calls,
        "resumed_units": result.rounding.resumed_units,
        "seconds": round(result.seconds, 3),
        "bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
    }


def summary_of_made(facts: dict[str, Any], out: Path) -> dict[str, Any]:
    """The same of an artifact that was there, as `inspect_artifact` describes it."""
    return {
        "out": str(out),
        "recipe": facts["recipe"]["name"],
        "layers": len(facts["layers"]),
        "left_out": len(facts["left_out"]),
        "weight_bits": facts["weight_bits"],
        "average_activation_bits": facts["average_activation_bits"],
        "denoiser_passes_per_prompt": facts["calibration"]["denoiser_passes_per_prompt"],
        "resumed_calls": 0,
        "resumed_units": 0,
        "seconds": 0.0,
        "bytes": facts["sizes"]["total_bytes"],
    }


def sentence(facts: dict[str, Any]) -> str:
    """The same for a person."""
    pieces = {"calls": facts["resumed_calls"], "layers and blocks": facts["resumed_units"]}
    found = " and ".join(f"{count} {name}" for name, count in pieces.items() if count)
    resumed = f", {found} resumed" if found else ""
    return (
        f"{facts['out']}: {facts['layers']} layers, {facts['weight_bits']}-bit weights, "
        f"{facts['average_activation_bits']:.4g}-bit activations on average, {facts['bytes'] / 1e6:.1f} MB; "
        f"{facts['denoiser_passes_per_prompt']:g} denoiser passes a prompt in {facts['seconds']:.0f} s{resumed}."
    )
