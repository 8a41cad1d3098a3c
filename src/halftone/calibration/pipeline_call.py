"""The one call of the unmodified pipeline that calibration consists of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from halftone.calibration.settings import CalibrationSettings
from halftone.microbatch import in_micro_batches, replaced_forward


def call_pipeline(pipeline: Any, settings: CalibrationSettings, prompts: Sequence[str]) -> torch.Tensor:
    """Calls the pipeline once with all prompts, for latents; returns them.

    Prompt i gets a generator of its own, seeded with ``settings.seed + i``, so that its noise does not depend on
    how many prompts there are. Text encoders walk the prompts `settings.batch_size` at a time.
    """
    generators = [torch.Generator().manual_seed(settings.seed + index) for index in range(len(prompts))]
    arguments: dict[str, Any] = dict(settings.call_kwargs)
    if settings.guidance_scale is not None:
        arguments["guidance_scale"] = settings.guidance_scale
    with torch.inference_mode(), _text_encoders_in_micro_batches(pipeline, settings.batch_size):
        output = pipeline(
            prompt=list(prompts),
            num_inference_steps=settings.num_inference_steps,
            generator=generators,
            output_type="latent",
            **arguments,
        )
    latents: torch.Tensor = output.images
    return latents


@contextmanager
def _text_encoders_in_micro_batches(pipeline: Any, rows: int) -> Iterator[None]:
    with ExitStack() as stack:
        for name, component in pipeline.components.items():
            if name.startswith("text_encoder") and isinstance(component, nn.Module):
                stack.enter_context(replaced_forward(component, in_micro_batches(component.forward, rows)))
        yield
