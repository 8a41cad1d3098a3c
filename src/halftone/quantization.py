"""`halftone.quantize`: layers chosen, calibrated in lockstep, attached; the one call behind the command."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halftone.artifact.attach import attach
from halftone.artifact.config import HalftoneConfig, quantized_digest
from halftone.artifact.inspection import inspect_artifact
from halftone.artifact.load import artifact_config
from halftone.artifact.manifest import MANIFEST
from halftone.artifact.save import check_free, save
from halftone.calibration import CalibrationResult, CalibrationSettings, calibrate
from halftone.calibration.announcement import announcement
from halftone.calibration.checkpoint import Checkpoint, is_unfinished, read_command
from halftone.calibration.correction_plan import CorrectionPlan, plan_correction
from halftone.calibration.protection_scan import ProtectedLayers, ProtectionPlan, find_protected_layers
from halftone.calibration.record import circumstances, fingerprint, make_record
from halftone.calibration.relaxation_scan import RelaxedSteps, ScanPlan, find_relaxed_steps, needs_scan
from halftone.calibration.run import make_slots
from halftone.calibration.settings import DEFAULT_MEMORY_BUDGET, described
from halftone.calibration.stages import LOCKSTEP, TRAJECTORY, Follow, Progress, Stages
from halftone.calibration.trace import Trace, trace_calls
from halftone.calibration.trajectory import follow_full_precision
from halftone.calibration.weights import RoundedWeights, count_units, round_weights
from halftone.denoiser import Denoiser, choose_layers, find_denoiser
from halftone.errors import HalftoneError, InputError, suggest
from halftone.files import output_folder
from halftone.generation import check_count, check_guidance, check_seed, default_guidance
from halftone.image_size import with_both_sides
from halftone.layers import quantized_layers, split_convolutions
from halftone.locks import only_writer
from halftone.prompts import check_prompts
from halftone.recipe import Recipe
from halftone.shortcuts import joined_convolutions, split_layers
from halftone.timesteps import SlotClock

_OWN_ARGUMENTS = ("prompt", "generator", "num_images_per_prompt", "output_type", "return_dict")


@dataclass(frozen=True)
class QuantizationResult:
    """A quantized pipeline and how it came about.

    Attributes:
        pipeline: the pipeline that was given, its denoiser now quantized in place.
        config: what is stored with the denoiser: recipe, slots and bits, layers and why others were left out, record.
        calibration: counted passes, observed ranges, wall time.
        rounding: what the rounding of the weights took; nothing if the recipe's rule looks at no inputs.
        relaxed: the steps that a scan chose; None if the recipe names them.
        protected: the layers that a scan left in floating point; None if the recipe asks for none.
        checkpoint: the finished steps on disk, which `save` removes.
    """

    pipeline: Any
    config: HalftoneConfig
    calibration: CalibrationResult
    checkpoint: Checkpoint = field(repr=False)
    rounding: RoundedWeights = field(default_factory=RoundedWeights, repr=False)
    relaxed: RelaxedSteps | None = field(default=None, repr=False)
    protected: ProtectedLayers | None = field(default=None, repr=False)

    @property
    def average_activation_bits(self) -> float:
        """Mean over the denoiser calls of the calibrated trajectory."""
        bits = [self.config.slots.num_bits[self.config.slots.slot_of(t)] for t in self.calibration.timesteps]
        return sum(bits) / len(bits)

    @property
    def seconds(self) -> float:
        """Wall time of this process, from the first scan to the last call of the calibration."""
        protecting = 0.0 if self.protected is None else self.protected.seconds
        relaxing = 0.0 if self.relaxed is None else self.relaxed.seconds
        return protecting + relaxing + self.rounding.seconds + self.calibration.seconds

    def save(self, path: str | Path) -> Path:
        """Writes the artifact atomically, then removes the finished steps; see `halftone.artifact.save.save`.

        A folder that holds this very artifact already is left as it is: a run that was killed after writing it and
        before removing the finished steps ends well when it is started again.
        """
        with only_writer(output_folder(path)):
            target = save(self.pipeline, path, self.config.calibration)
            self.checkpoint.discard()
        return target


def check_target(path: str | Path, checkpoint_folder: str | Path | None = None) -> None:
    """Refuses, before hours of work, a folder that `QuantizationResult.save` would refuse after them.

    Raises:
        InputError: it is a file, cannot be replaced, or holds something other than the artifact that the unfinished
            work was made into.
    """
    target = output_folder(path)
    if checkpoint_folder is None or not _was_made_from(target, Path(checkpoint_folder)):
        check_free(target)


def _was_made_from(target: Path, checkpoint_folder: Path) -> bool:
    """Whether a folder is the artifact of a command that was killed before it removed its finished steps."""
    if not (target / MANIFEST).is_file() or not is_unfinished(checkpoint_folder):
        return False
    try:
        facts = inspect_artifact(target)
    except HalftoneError:
        return False
    made = {**facts["calibration"], "recipe": facts["recipe"]}
    command = read_command(checkpoint_folder)
    return all(made[key] == command[key] for key in {*made} & {*command})


def find_made(
    path: str | Path,
    pipeline: Any,
    recipe: Recipe,
    prompts: Iterable[str],
    *,
    source_sha256: str,
    num_inference_steps: int,
    guidance_scale: float | None,
    seed: int,
    batch_size: int,
    memory_budget: int,
    **call_kwargs: Any,
) -> dict[str, Any] | None:
    """What `inspect_artifact` says of a folder, if `quantize` with these arguments has made it; None if it holds
    something else, or is damaged."""
    counts = (num_inference_steps, seed, batch_size, memory_budget)
    settings = _settings(pipeline, prompts, guidance_scale, call_kwargs, *counts)
    wanted = {
        **settings.to_dict(),
        **circumstances(pipeline, find_denoiser(pipeline), recipe),
        "source_sha256": source_sha256,
    }
    try:
        facts = inspect_artifact(path)
    except HalftoneError:
        return None
    stored = {key: facts["calibration"].get(key) for key in wanted}
    is_same = stored == json.loads(json.dumps(wanted)) and facts["recipe"] == recipe.to_dict()
    return facts if is_same else None


def quantize(
    pipeline: Any,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    prompts: Iterable[str],
    *,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    seed: int = 0,
    batch_size: int = 4,
    checkpoint_folder: str | Path | None = None,
    progress: Progress = lambda done, total: None,
    follow: Follow = lambda advance: None,
    announce: Callable[[str], None] | None = None,
    source_sha256: str | None = None,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
    **call_kwargs: Any,
) -> QuantizationResult:
    """Quantizes the denoiser of a diffusers pipeline, in place.

    Args:
        pipeline: any diffusers pipeline with a UNet or transformer denoiser.
        recipe: preset name, path of a recipe file, a mapping as such a file holds it, or a Recipe.
        prompts: calibration prompts; their order and number are part of the result.
        num_inference_steps: sampler steps to calibrate, one slot each.
        guidance_scale: None for the pipeline's default.
        seed: prompt i starts from noise seeded with ``seed + i``.
        batch_size: prompts in the denoiser at a time.
        checkpoint_folder: where finished steps are kept, to go on after an interruption; None keeps none. For one
            process at a time.
        progress: called with (finished denoiser calls, all calls); a layer or block that a rounding rule works on
            counts as one.
        follow: called with the same in detail, an `Advance` for each piece of each stage: its share of the work, and
            whether it was found on disk.
        announce: called once, before the calibration starts, with a line that estimates its time and memory;
            None saves the seconds that the estimate takes.
        source_sha256: of the full-precision model's content (`sources.content_sha256`), for the record.
        memory_budget: bytes that gptq and adaround may take beside the model, for what they keep of the inputs of
            layers and blocks and to work on one of them; less means more passes through the denoiser. A layer or block
            that needs more takes more, which ``announce`` is told.
        call_kwargs: further arguments of the pipeline's call: numbers, texts, tensors, images. A text such as
            `negative_prompt` holds for all prompts; a list has one for each.

    Raises:
        RecipeError, InputError: wrong arguments, in one sentence.
        NonFiniteError: NaN or infinity in weights or activations; says layer and step. The pipeline's denoiser may be
            half quantized then: open the pipeline again.
        OutputError: a finished step could not be written to the checkpoint folder.

    Example:
        >>> pipe = StableDiffusionPipeline.from_pretrained("./my-sd")  # doctest: +SKIP
        >>> result = halftone.quantize(pipe, "pcr-w8a8", prompts, num_inference_steps=20)  # doctest: +SKIP
        >>> result.save("./my-sd-w8a8")  # doctest: +SKIP
    """
    recipe = Recipe.load(recipe)
    denoiser = find_denoiser(pipeline)
    counts = (num_inference_steps, seed, batch_size, memory_budget)
    settings = _settings(pipeline, prompts, guidance_scale, call_kwargs, *counts)
    _check_settings(settings)
    _check_call_arguments(pipeline, call_kwargs)
    _check_not_quantized(pipeline, denoiser, recipe)
    known = circumstances(pipeline, denoiser, recipe)
    trace = trace_calls(pipeline, denoiser, settings)
    plan = plan_correction(pipeline, denoiser, recipe, settings)
    names, left_out = _choose(denoiser, recipe)
    units = count_units(denoiser.module, names, recipe)
    checkpoint = _checkpoint(checkpoint_folder, pipeline, denoiser, recipe, settings)
    if announce is not None:
        announce(announcement(pipeline, denoiser, names, recipe, settings, trace, plan, checkpoint))
    stages = Stages(_count_pieces(recipe, settings, trace, plan, units, len(names)), progress, follow)
    parts = (pipeline, denoiser, names, recipe, settings, trace, checkpoint, stages)
    protected = find_protected_layers(*parts) if recipe.protect is not None else None
    if protected is not None:
        names = tuple(name for name in names if name not in protected.layers)
        left_out = {**left_out, **protected.reasons()}
        stages.total -= units - count_units(denoiser.module, names, recipe)  # of which some have no layer left
    parts = (pipeline, denoiser, names, recipe, settings, trace, checkpoint, stages)
    relaxed = find_relaxed_steps(*parts) if needs_scan(recipe, trace) else None
    slots = make_slots(recipe, trace, None if relaxed is None else relaxed.slots)
    common = (pipeline, denoiser, names, recipe, settings, trace, SlotClock(slots), checkpoint)
    rounding = _round(*common, plan, stages)
    result = calibrate(*common, stages.calls(LOCKSTEP), rounding.integers, plan)
    record = make_record(denoiser, known, settings, trace, result, rounding, protected, relaxed)
    record["source_sha256"] = source_sha256
    splits = {name: split.channels for name, split in split_convolutions(denoiser.module)}
    config = HalftoneConfig(recipe, slots, names, left_out, record, quantized_digest(denoiser.module), splits)
    attach(denoiser.module, config)
    return QuantizationResult(pipeline, config, result, checkpoint, rounding, relaxed, protected)


def _count_pieces(
    recipe: Recipe, settings: CalibrationSettings, trace: Trace, plan: CorrectionPlan | None, units: int, layers: int
) -> int:
    """What `Stages` counts."""
    walked = len(trace.timesteps)
    scanned = len(ScanPlan.of(trace, settings).works) if needs_scan(recipe, trace) else 0
    scanned += 0 if recipe.protect is None else len(ProtectionPlan.of(trace, settings, layers).works)
    first = walked + units if units or (plan is not None and plan.path is not None) else 0
    return scanned + first + (0 if recipe.calibration == "none" else walked)


def _choose(denoiser: Denoiser, recipe: Recipe) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """Names of the layers to quantize, and why others are not (no layers: who holds those keeps their float weights).

    Convolutions of joined tensors are split here, in place, if the recipe wants it and quantizes them.
    """
    choice = choose_layers(denoiser.module, recipe.exclude)
    if recipe.split_shortcuts:
        joined = joined_convolutions(denoiser.module)
        split_layers(denoiser.module, {name: joined[name] for name in joined if name in choice.chosen})
        choice = choose_layers(denoiser.module, recipe.exclude)
    return tuple(choice.chosen), choice.left_out


def _round(
    pipeline: Any,
    denoiser: Denoiser,
    names: Sequence[str],
    recipe: Recipe,
    settings: CalibrationSettings,
    trace: Trace,
    clock: SlotClock,
    checkpoint: Checkpoint,
    plan: CorrectionPlan | None,
    stages: Stages,
) -> RoundedWeights:
    """Rounds the weights, and notes the full-precision path if the correction needs it: the trajectory of a rounding
    rule that looks at inputs serves both."""
    common = (pipeline, denoiser, recipe, settings, trace, clock, checkpoint)
    with nullcontext() if plan is None else plan.recording(pipeline.scheduler):
        rounding = round_weights(pipeline, denoiser, names, *common[2:], stages)
    if plan is not None and plan.path is not None and not plan.path.latents:
        follow_full_precision(*common, plan.path, stages.calls(TRAJECTORY))
    return rounding


def _checkpoint(
    folder: str | Path | None, pipeline: Any, denoiser: Denoiser, recipe: Recipe, settings: CalibrationSettings
) -> Checkpoint:
    """Finished steps in a folder; None keeps none, and saves hashing the weights."""
    if folder is None:
        return Checkpoint(None, {})
    return Checkpoint(Path(folder), fingerprint(pipeline, denoiser, recipe, settings))


def _settings(
    pipeline: Any,
    prompts: Iterable[str],
    guidance_scale: float | None,
    call_kwargs: Mapping[str, Any],
    num_inference_steps: int,
    seed: int,
    batch_size: int,
    memory_budget: int,
) -> CalibrationSettings:
    """What was asked for, with the pipeline's defaults where the record should tell them."""
    return CalibrationSettings(
        prompts=check_prompts(prompts),
        num_inference_steps=num_inference_steps,
        guidance_scale=default_guidance(pipeline) if guidance_scale is None else guidance_scale,
        seed=seed,
        batch_size=batch_size,
        call_kwargs=with_both_sides(pipeline, call_kwargs),
        memory_budget=memory_budget,
    )


def _check_settings(settings: CalibrationSettings) -> None:
    for name in ("num_inference_steps", "batch_size", "memory_budget"):
        check_count(name, getattr(settings, name))
    check_seed(settings.seed)
    check_guidance(settings.guidance_scale)


def _check_call_arguments(pipeline: Any, call_kwargs: Mapping[str, Any]) -> None:
    """Many pipelines swallow any keyword silently; a misspelt `height` would calibrate another size. What a record
    cannot tell, such as a function, could not be told from another one when a run is resumed."""
    parameters = inspect.signature(type(pipeline).__call__).parameters.values()
    known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "self"]
    for name in call_kwargs:
        if name in _OWN_ARGUMENTS:
            raise InputError(f"{name} cannot be set in a calibration; Halftone sets it itself.")
        if name not in known:
            raise InputError(f"{type(pipeline).__name__} has no argument {name!r}; {suggest(name, known)}")
        described(name, call_kwargs[name])


def _check_not_quantized(pipeline: Any, denoiser: Denoiser, recipe: Recipe) -> None:
    if artifact_config(pipeline) is not None:
        raise InputError("This pipeline is quantized already; start from the full-precision one.")
    is_split = next(split_convolutions(denoiser.module), None) is not None
    if next(quantized_layers(denoiser.module), None) is not None or (is_split and not recipe.split_shortcuts):
        raise InputError("A calibration of this pipeline failed and left it half quantized; open the pipeline again.")
