"""Whole images of the bundled pipeline: text encoder, all steps with guidance, decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cpu_speed.jobs import Built, Call, Job
from benchmarks.cpu_speed.models import ORDINARY
from benchmarks.cpu_speed.unets import reference_file
from halftone.artifact.load import load
from halftone.prompts import read_prompts
from halftone.quantization import quantize
from halftone.sources import open_pipeline

PROMPT = "one large shiny cyan cone behind a small matte red cube, on a blue floor under a gray sky"
STEPS = 20
_RECIPE = "pcr-w8a8"
_CALIBRATION = {"num_inference_steps": STEPS, "guidance_scale": 4.0, "batch_size": 4}
_PROMPTS = ("bundled:calibration", 4)


def make_reference(job: Job, folder: Path) -> dict[str, Any]:
    """The image in full precision."""
    pipeline = open_pipeline(_source(job), progress_bar=False)
    np.save(reference_file(folder, ORDINARY), _paint(pipeline))
    return {}


def make_artifact(job: Job, folder: Path, dtype: str) -> dict[str, Any]:
    """The pipeline, quantized as a user would, in the dtype that it will run in."""
    pipeline = open_pipeline(_source(job), dtype=getattr(torch, dtype), progress_bar=False)
    quantize(pipeline, _RECIPE, read_prompts(*_PROMPTS), **_CALIBRATION).save(folder / "artifact")  # type: ignore[arg-type]
    return {}


def floating_point(job: Job, dtype: str) -> Built:
    """The pipeline as diffusers runs it, its images' channels last."""
    pipeline = open_pipeline(_source(job), dtype=getattr(torch, dtype), progress_bar=False)
    for part in (pipeline.unet, pipeline.vae):
        part.to(memory_format=torch.channels_last)
    return Built({"": Call(lambda: _paint(pipeline))})


def integers(job: Job, stage: str) -> Built:
    """A quantized pipeline as `halftone.load` gives it."""
    pipeline = load(job.folder(stage) / "artifact")
    pipeline.set_progress_bar_config(disable=True)
    return Built({"": Call(lambda: _paint(pipeline))})


def _source(job: Job) -> str:
    assert job.of.source is not None
    return job.of.source


def _paint(pipeline: Any) -> Any:
    """An image as numbers from 0 to 1."""
    generator = torch.Generator().manual_seed(0)
    image = pipeline(
        PROMPT, num_inference_steps=STEPS, guidance_scale=4.0, generator=generator, output_type="np"
    )  # fmt: skip
    return image.images
