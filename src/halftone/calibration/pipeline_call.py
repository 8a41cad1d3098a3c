"""The one call of the unmodified pipeline that calibration consists of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from halftone.calibration.settings import CalibrationSettings
from halftone.errors import InputError
from halftone.microbatch import in_micro_batches, replaced_forward, take

_TEXTS = ("prompt_2", "prompt_3", "negative_prompt", "negative_prompt_2", "negative_prompt_3")
_TENSORS = ("latents", "negative_prompt_embeds", "negative_pooled_prompt_embeds", "negative_prompt_attention_mask")


def call_pipeline(pipeline: Any, settings: CalibrationSettings, prompts: Sequence[str]) -> torch.Tensor:
    """Calls the pipeline once with all prompts, for latents; returns them.

    Prompt i gets a generator of its own, seeded with ``settings.seed + i``, so that its noise does not depend on
    how many prompts there are. Text encoders walk the prompts `settings.batch_size` at a time.

    Args:
        prompts: those of the settings, or the first of them.

    Raises:
        InputError: a further argument that is a list has not one text for each prompt of the settings.
    """
    generators = [torch.Generator().manual_seed(settings.seed + index) for index in range(len(prompts))]
    arguments = _arguments(settings, len(prompts))
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


def _arguments(settings: CalibrationSettings, count: int) -> dict[str, Any]:
    """The further arguments for the first `count` prompts; a single text holds for each of them."""
    total = len(settings.prompts)
    arguments: dict[str, Any] = {}
    for name, value in settings.call_kwargs.items():
        if name in _TEXTS and isinstance(value, str):
            value = [value] * count
        elif name in _TEXTS and isinstance(value, list | tuple):
            if len(value) != total:
                raise InputError(f"{name} has {len(value)} texts for {total} prompts; give one text, or one for each.")
            value = list(value[:count])
        elif name in _TENSORS:
            value = take(value, 0, count, total)
        arguments[name] = value
    return arguments


@contextmanager
def _text_encoders_in_micro_batches(pipeline: Any, rows: int) -> Iterator[None]:
    with ExitStack() as stack:
        for name, component in pipeline.components.items():
            if name.startswith("text_encoder") and isinstance(component, nn.Module):
                stack.enter_context(replaced_forward(component, in_micro_batches(component.forward, rows)))
        yield
