"""What is asked for, and what can be found wrong with it before anything is painted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from halftone.artifact.inspection import quantized_component
from halftone.errors import ArtifactError, InputError, suggest
from halftone.generation import GenerationSettings, check_seed
from halftone.prompts import read_prompts
from halftone.qdiffbench.contestants import Contestant
from halftone.qdiffbench.ranks import processes
from halftone.qdiffbench.request import BenchRequest
from halftone.recipe import Recipe
from halftone.sensitivity.steps import divide
from halftone.sensitivity.variants import EXPERIMENTS, FLOAT

__all__ = ["CALIBRATION_SEED", "DEFAULT_RECIPE", "SensitivityRequest", "check_request", "full_precision"]

#: All steps alike and none relaxed, or the experiment would find the recipe's own choice of steps; each with ranges of
#: its own, or the steps would suffer from those of others; and 8-bit weights, which add almost no error themselves.
DEFAULT_RECIPE = "per-step-w8a8"
CALIBRATION_SEED = 500_009  # from the images' first seed: far from theirs, so that no noise is calibrated and measured


@dataclass(frozen=True)
class SensitivityRequest:
    """Which steps are to be tried, and on what.

    Attributes:
        source: SOURCE of the full-precision model.
        out: folder of the results; the variants' images and the quantized model lie in it.
        settings: of the pipeline's call.
        cache: where full precision's images are kept, also for `halftone bench`; None keeps them in `out`.
        prompts: FILE, FILE:COLUMN or bundled:NAME.
        num_images: how many of them.
        intervals: how many intervals the steps are divided into.
        experiments: of "perturb" and "float".
        noise: "perturb": standard deviation of the noise, in that of the denoiser's prediction.
        recipe: "float": a preset's name or a file.
        calibration_prompts, num_calibration_prompts: "float": what the quantized model is calibrated on.
        batch_size: prompts that its calibration walks at a time.
        scheduler: another sampler, by name.
        dtype: of everything that is not quantized.
        device: torch device.
        features: extractors NAME or NAME:SOURCE, the first one gives the main distances.
        clip: CLIPModel of the scores; None measures no text-image matching.
        bootstrap_seed: of the resampling.
        commands: command lines that reproduce this.
    """

    source: str
    out: Path
    settings: GenerationSettings
    cache: Path | None = None
    prompts: str = "bundled:scenes"
    num_images: int | None = 64
    intervals: int = 5
    experiments: Sequence[str] = EXPERIMENTS
    noise: float = 0.05
    recipe: str = DEFAULT_RECIPE
    calibration_prompts: str = "bundled:calibration"
    num_calibration_prompts: int | None = 64
    batch_size: int = 4
    scheduler: str | None = None
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    features: tuple[str, ...] = ("clip",)
    clip: str | None = None
    bootstrap_seed: int = 0
    commands: tuple[str, ...] = ()

    @property
    def set_name(self) -> str:
        """What the prompt set is called in the results."""
        return Path(self.prompts.removeprefix("bundled:")).stem

    def of_images(self) -> BenchRequest:
        """The part that a benchmark has too: what full precision paints, and who looks at images."""
        return BenchRequest(
            reference=self.source,
            candidates=(),
            prompt_sets={self.set_name: self.prompts},
            out=self.out,
            settings=self.settings,
            cache=self.cache or self.out / "images" / "full-precision",
            num_images=self.num_images,
            scheduler=self.scheduler,
            dtype=self.dtype,
            device=self.device,
            features=self.features,
            clip=self.clip,
            noise_floor=(),
            bootstrap_seed=self.bootstrap_seed,
            commands=self.commands,
        )

    def texts(self) -> tuple[str, ...]:
        """The calibration prompts.

        Raises:
            InputError: they cannot be read, or there are fewer.
        """
        return read_prompts(self.calibration_prompts, limit=self.num_calibration_prompts)


def check_request(request: SensitivityRequest) -> Contestant:
    """Tells what is wrong before hours of painting; the source.

    Raises:
        InputError, RecipeError, ArtifactError: in one sentence.
    """
    if processes() > 1:
        raise InputError("Sensitivity is measured in one process; start it without torchrun.")
    if not request.experiments:
        raise InputError(f"No experiment is asked for; known: {', '.join(EXPERIMENTS)}.")
    for name in request.experiments:
        if name not in EXPERIMENTS:
            raise InputError(f"There is no experiment {name!r}; {suggest(name, EXPERIMENTS)}")
    divide(request.settings.num_inference_steps, request.intervals)
    _check_noise(request.noise)
    if FLOAT in request.experiments:
        Recipe.load(request.recipe)
        request.texts()
        check_seed(request.settings.seed + CALIBRATION_SEED)
    return full_precision(request.source, "sensitivity")


def _check_noise(noise: float) -> None:
    is_number = isinstance(noise, int | float) and not isinstance(noise, bool)
    if not is_number or not math.isfinite(noise) or noise <= 0.0:
        raise InputError(f"noise is {noise!r}; it must be a finite number above 0.")


def full_precision(text: str, what: str) -> Contestant:
    """The contestant of a SOURCE that is no artifact, no other library's quantization, and no folder of images.

    Args:
        what: starts from it, for the message.

    Raises:
        InputError, ArtifactError: it is none, or cannot be used.
    """
    source = Contestant.parse(text)
    source.check()
    if source.is_images:
        raise InputError(f"{text} is a folder of images; {what} needs a model that can be run.")
    if source.library or _is_quantized(source.folder()):
        raise InputError(f"{text} is quantized; {what} starts from the full-precision model.")
    return source


def _is_quantized(folder: Path) -> bool:
    try:
        quantized_component(folder)
    except ArtifactError:
        return False
    return True
