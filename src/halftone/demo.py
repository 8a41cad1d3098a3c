"""The demonstration: quantize a bundled model, paint the same prompts with both models, compare, make the page."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halftone.artifact.inspection import inspect_artifact
from halftone.artifact.load import artifact_config, load
from halftone.artifact.manifest import MANIFEST
from halftone.calibration.settings import CalibrationSettings
from halftone.denoiser import find_denoiser
from halftone.errors import InputError
from halftone.files import output_errors, output_folder
from halftone.generation import GenerationSettings
from halftone.layers import quantized_layers
from halftone.locks import only_writer
from halftone.prompts import read_prompts
from halftone.qdiffbench.bench import BenchOutcome, BenchRequest, bench
from halftone.qdiffbench.ranks import Ranks, processes
from halftone.qdiffbench.request import claim
from halftone.quantization import quantize
from halftone.recipe import Recipe
from halftone.report import ActivationRange, QuantizationFacts, write_page
from halftone.report.outcome import page_of
from halftone.sources import content_sha256, open_pipeline

MODEL = "bundled:mini-sd"
CLIP = "bundled:mini-clip"
CALIBRATION = "bundled:calibration"
EVALUATION = "bundled:scenes"

ProgressBar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True)
class DemoSettings:
    """What the demonstration does; the defaults take about three minutes on two cores."""

    recipe: str = "pcr-w8a8"
    calibration_prompts: int = 64
    images: int = 64
    noise_images: int = 16
    steps: int = 20
    guidance: float = 4.0
    seed: int = 0
    batch_size: int = 16


@dataclass(frozen=True)
class DemoOutcome:
    """Where the page is, and the benchmark's outcome."""

    page: Path
    outcome: BenchOutcome


def run_demo(
    out: Path,
    settings: DemoSettings,
    progress: ProgressBar,
    announce: Callable[[str], None] | None = None,
    source: str = MODEL,
    clip: str = CLIP,
) -> DemoOutcome:
    """Leaves in ``out``: ``model`` (the artifact), ``images``, ``results.json`` and ``report.html``.

    Interrupted, it goes on where it was.

    Raises:
        InputError: ``out`` holds the demonstration of other settings, or something else.
    """
    if processes() > 1:
        raise InputError("The demonstration runs in one process; start it without torchrun.")
    recipe = Recipe.load(settings.recipe)
    claim(out)
    artifact = out / "model"
    with only_writer(output_folder(artifact)):
        _quantize(source, artifact, recipe, settings, progress, announce)
    request = BenchRequest(
        reference=source,
        candidates=(f"{_label(recipe)}={artifact}",),
        prompt_sets={"in-domain": EVALUATION},
        out=out,
        settings=GenerationSettings(settings.steps, settings.guidance, seed=EVALUATION_SEED),
        cache=out / "images",
        num_images=settings.images,
        features=(f"clip:{clip}",),
        clip=clip,
        noise_floor=("dtype",),
        noise_images=settings.noise_images,
        commands=_commands(source, artifact, settings),
    )
    outcome = bench(request, progress, Ranks())
    assert outcome is not None  # only other ranks get none
    facts = inspect_artifact(artifact)
    page = page_of(
        outcome,
        title=f"{source.removeprefix('bundled:')}, quantized with {recipe.name}",
        activation_ranges=activation_ranges(load(artifact)),
        quantization=quantization_facts(facts),
    )
    with output_errors(f"The report in {out}"):
        return DemoOutcome(write_page(page, out), outcome)


EVALUATION_SEED = 10_000  # far from the seeds of the calibration


def activation_ranges(pipeline: Any) -> Mapping[str, Sequence[ActivationRange]]:
    """What each layer's slot tables can represent, slot by slot: the calibrated ranges."""
    module, config = find_denoiser(pipeline).module, artifact_config(pipeline)
    if config is None:
        return {}
    slots = config.slots
    ranges = {}
    for name, layer in quantized_layers(module):
        if layer.num_slots != len(slots) or layer.form.measured:
            continue
        columns = (layer.input_scale, layer.input_zero_point, layer.input_num_bits)
        rows = zip(slots.timesteps, *(column.tolist() for column in columns), strict=True)
        ranges[name] = [
            ActivationRange(timestep, -zero_point * scale, (2**bits - 1 - zero_point) * scale)
            for timestep, scale, zero_point, bits in rows
        ]
    return ranges


def quantization_facts(facts: Mapping[str, Any]) -> QuantizationFacts:
    """What the page says of an artifact, from what `inspect_artifact` found."""
    calibration = facts["calibration"]
    return QuantizationFacts(
        weight_bits=facts["weight_bits"],
        slot_timesteps=[slot["timestep"] for slot in facts["slots"]],
        slot_bits=[slot["bits"] for slot in facts["slots"]],
        layers_quantized=len(facts["layers"]),
        left_out=facts["left_out"],
        denoiser_passes_per_prompt=calibration["denoiser_passes_per_prompt"],
        calibration_prompts=calibration["prompts"],
        recipe=facts["recipe"]["name"],
    )


def _quantize(
    source: str,
    artifact: Path,
    recipe: Recipe,
    settings: DemoSettings,
    progress: ProgressBar,
    announce: Callable[[str], None] | None,
) -> None:
    prompts = read_prompts(CALIBRATION, limit=settings.calibration_prompts)
    if (artifact / MANIFEST).is_file():
        _check_same(artifact, source, recipe, prompts, settings)
        return
    checkpoint = artifact.with_name(artifact.name + ".unfinished")
    with progress("calibrating") as advance:
        result = quantize(
            open_pipeline(source, progress_bar=False),
            recipe,
            prompts,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            seed=settings.seed,
            batch_size=settings.batch_size,
            checkpoint_folder=checkpoint,
            progress=advance,
            announce=announce,
            source_sha256=content_sha256(source),
        )
    result.save(artifact)


def _check_same(artifact: Path, source: str, recipe: Recipe, prompts: Sequence[str], settings: DemoSettings) -> None:
    wanted = CalibrationSettings(
        tuple(prompts), settings.steps, settings.guidance, settings.seed, settings.batch_size
    ).to_dict()
    facts = inspect_artifact(artifact)
    stored = {key: facts["calibration"].get(key) for key in wanted}
    if stored != wanted or facts["recipe"] != recipe.to_dict():
        raise InputError(f"{artifact} was made with other settings; choose another --out or delete that folder.")
    if facts["calibration"].get("source_sha256") != content_sha256(source):
        raise InputError(
            f"{artifact} was made from another model than what {source} is now; choose another --out or delete that"
            " folder."
        )


def _label(recipe: Recipe) -> str:
    """The recipe's name without what NAME=SOURCE gives a meaning."""
    return re.sub(r"[=/\\]+", "-", recipe.name) or "quantized"


def _commands(source: str, artifact: Path, settings: DemoSettings) -> tuple[str, ...]:
    shared = f"--steps {settings.steps} --guidance {settings.guidance:g}"
    return (
        f"halftone quantize {source} --recipe {settings.recipe} --prompts {CALIBRATION} "
        f"--num-prompts {settings.calibration_prompts} {shared} --seed {settings.seed} "
        f"--batch-size {settings.batch_size} --out {artifact.name}",
        f"halftone bench {source} {artifact.name} --prompts in-domain={EVALUATION} --num-images {settings.images} "
        f"{shared} --seed {EVALUATION_SEED} --noise-floor dtype --noise-images {settings.noise_images} --out bench",
    )
