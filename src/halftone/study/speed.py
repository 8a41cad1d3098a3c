"""How fast this machine is at what a study consists of, from a few denoiser calls timed here."""

from __future__ import annotations

import io
import itertools
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from halftone.denoiser import find_denoiser
from halftone.generation import GenerationSettings, paint
from halftone.qdiffbench.bench import load_judges
from halftone.qdiffbench.contestants import Contestant
from halftone.qdiffbench.fidelity import psnr, ssim
from halftone.quantization import quantize
from halftone.schedulers import use_scheduler
from halftone.sources import open_pipeline
from halftone.study.plan import TablePlan
from halftone.study.request import StudyRequest

__all__ = ["Speed", "measured_speed"]

_TIMED_STEPS = 4
_TIMED_RECIPE = "minmax-w8a8"  # one pass a step, nothing to round by


@dataclass(frozen=True)
class Speed:
    """What was timed here, in seconds, and weighed.

    Attributes:
        float_step, quantized_step: a sampler step of one image, with quantized layers if they run 8 bits.
        image: what an image takes besides its steps.
        features: one image's features.
        pair: comparing two images.
        image_bytes: of an image's file.
        latent_bytes: of the latents of one image after a step, as they are kept.
        denoiser_weights: numbers in the denoiser.
        other_bytes: of all other components.
    """

    float_step: float
    quantized_step: float
    image: float
    features: float
    pair: float
    image_bytes: int
    latent_bytes: int
    denoiser_weights: int
    other_bytes: int


def measured_speed(request: StudyRequest, source: Contestant, table: TablePlan) -> Speed:
    """Times a few images of few steps in full precision and quantized, and the judges of images.

    Args:
        table: whose guidance is taken.

    Raises:
        InputError: the model cannot be opened or painted with.
    """
    pipeline = open_pipeline(source.model_source, dtype=request.dtype, device=request.device, progress_bar=False)
    if request.scheduler is not None:
        use_scheduler(pipeline, request.scheduler)
    settings = replace(request.settings_of(table), num_inference_steps=_TIMED_STEPS)
    (prompt,) = request.calibration_texts(1)
    denoiser = find_denoiser(pipeline)
    weights = sum(tensor.numel() for tensor in denoiser.module.parameters())
    modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    others = [part for part in modules if part is not denoiser.module]
    other_bytes = sum(t.numel() * t.element_size() for part in others for t in part.state_dict().values())
    in_float = _timed(pipeline, prompt, settings)
    sides: dict[str, Any] = {
        name: side for name, side in (("height", settings.height), ("width", settings.width)) if side is not None
    }
    quantize(
        pipeline,
        _TIMED_RECIPE,
        [prompt],
        num_inference_steps=_TIMED_STEPS,
        guidance_scale=settings.guidance_scale,
        seed=request.seed,
        **sides,
    )
    in_integers = _timed(pipeline, prompt, settings)
    features, pair = _timed_judges(request, table, in_float.image)
    return Speed(
        float_step=in_float.step,
        quantized_step=in_integers.step,
        image=in_float.rest,
        features=features,
        pair=pair,
        image_bytes=_png_bytes(in_float.image),
        latent_bytes=in_float.latent_bytes,
        denoiser_weights=weights,
        other_bytes=other_bytes,
    )


@dataclass(frozen=True)
class _Timed:
    """An image that was painted, and how long a step took and the rest of it."""

    image: Any
    step: float
    rest: float
    latent_bytes: int


def _timed(pipeline: Any, prompt: str, settings: GenerationSettings) -> _Timed:
    paint(pipeline, prompt, settings.seed, settings)  # the first call of a model takes longer
    marks, sizes = [], []

    def on_step(step: int, latents: torch.Tensor) -> None:
        marks.append(time.perf_counter())
        sizes.append(2 * latents[0].numel())  # kept in half precision

    began = time.perf_counter()
    image = paint(pipeline, prompt, settings.seed, settings, on_step)
    whole = time.perf_counter() - began
    spans = [after - before for before, after in itertools.pairwise(marks)]
    step = statistics.median(spans) if spans else whole / settings.num_inference_steps
    rest = max(0.0, whole - step * settings.num_inference_steps)
    return _Timed(image, step, rest, sizes[0] if sizes else 0)


def _timed_judges(request: StudyRequest, table: TablePlan, image: Any) -> tuple[float, float]:
    """Seconds for one image's features under all extractors, and for comparing a pair."""
    judges = load_judges(request.bench_request(table, ()))
    pixels = np.asarray(image.convert("RGB"))
    count = 16  # as many as extractors see at a time
    began = time.perf_counter()
    for extractor in judges.extractors.values():
        extractor.extract([pixels] * count, [""] * count)
    features = (time.perf_counter() - began) / count
    began = time.perf_counter()
    psnr(pixels, pixels)
    ssim(pixels, pixels)
    return features, time.perf_counter() - began


def _png_bytes(image: Any) -> int:
    data = io.BytesIO()
    image.save(data, format="PNG")
    return len(data.getvalue())
