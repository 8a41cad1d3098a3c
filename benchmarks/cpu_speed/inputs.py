"""What the denoisers are called with: random numbers that are the same in every process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.cpu_speed.models import BATCH, Model

_SEED_OF_TEST = 1000


def inputs_of(model: Model, seed: int = _SEED_OF_TEST) -> dict[str, Any]:
    """Arguments of a call besides the timestep, in float32.

    Args:
        seed: the default is that of the input which is timed and compared; calibration takes others.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(BATCH, *shape, generator=generator)  # noqa: E731
    inputs: dict[str, Any] = {
        "sample": draw(4, model.latents, model.latents),
        "encoder_hidden_states": draw(*model.text),
    }
    if model.pooled:
        size = 8 * model.latents
        time_ids = torch.tensor([[size, size, 0, 0, size, size]] * BATCH, dtype=torch.float32)
        inputs["added_cond_kwargs"] = {"text_embeds": draw(model.pooled), "time_ids": time_ids}
    return inputs


def flat_tensors(inputs: Mapping[str, Any], timestep: int) -> tuple[Tensor, ...]:
    """The arguments as tensors in a fixed order, for graphs whose inputs have no structure."""
    extra = inputs.get("added_cond_kwargs", {})
    return (
        inputs["sample"],
        torch.tensor(float(timestep)),
        inputs["encoder_hidden_states"],
        *(extra[name] for name in ("text_embeds", "time_ids") if name in extra),
    )


class Flat(torch.nn.Module):
    """A UNet with the tensors of `flat_tensors` as its arguments, for libraries that trace or export it."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor, *extra: Tensor) -> Tensor:
        """The predicted noise."""
        added = dict(zip(("text_embeds", "time_ids"), extra, strict=True)) if extra else None
        result: Tensor = self.unet(sample, timestep, text, added_cond_kwargs=added, return_dict=False)[0]
        return result
