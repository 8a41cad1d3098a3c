"""What a calibration is asked to do and what it reports: small frozen records."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from PIL import Image

from halftone.errors import InputError

DEFAULT_MEMORY_BUDGET = 2 * 1024**3


@dataclass(frozen=True)
class CalibrationSettings:
    """Everything besides model and recipe that determines the calibrated parameters.

    Attributes:
        prompts: calibration prompts, in order; prompt i starts from noise seeded with ``seed + i``.
        num_inference_steps: sampler steps.
        guidance_scale: classifier-free guidance, or None for the pipeline's own default.
        seed: seed of the first prompt.
        batch_size: prompts that the denoiser walks at a time (memory); changes results in the last bits only.
        call_kwargs: further arguments of the pipeline's call (height, negative_prompt, …).
        memory_budget: bytes that rounding rules may take for what they keep of the inputs of layers and blocks.
    """

    prompts: tuple[str, ...]
    num_inference_steps: int = 50
    guidance_scale: float | None = None
    seed: int = 0
    batch_size: int = 4
    call_kwargs: Mapping[str, Any] = field(default_factory=dict)
    memory_budget: int = DEFAULT_MEMORY_BUDGET

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, the prompts as count and SHA-256 of each, so that a record reveals no prompt text.

        Raises:
            InputError: a further argument is of a kind that cannot be recorded.
        """
        data: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        data["call_kwargs"] = {key: described(key, value) for key, value in sorted(self.call_kwargs.items())}
        data["prompts"] = len(self.prompts)
        data["prompts_sha256"] = [hashlib.sha256(text.encode()).hexdigest() for text in self.prompts]
        return data


def described(name: str, value: Any) -> str:
    """An argument of the pipeline's call in words that are the same in every process: of tensors and images a digest.

    Raises:
        InputError: it is of another kind, a function say, of which there are no such words.
    """
    if value is None or isinstance(value, str | int | float | torch.dtype):
        return repr(value)
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"tensor({value.dtype}, {tuple(value.shape)}, {_sha256(data)})"
    if isinstance(value, np.ndarray) and value.dtype != object:
        return f"array({value.dtype}, {value.shape}, {_sha256(value.tobytes())})"
    if isinstance(value, Image.Image):
        return f"image({value.mode}, {value.size}, {_sha256(value.tobytes())})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {described(name, item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        inside = ", ".join(described(name, item) for item in value)
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    raise InputError(
        f"{name} is or holds a {type(value).__name__}, of which the record of a calibration could not tell what it was;"
        " give numbers, texts, tensors or images."
    )


def _sha256(data: bytes) -> str:
    return f"sha256 {hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True)
class CalibrationResult:
    """What a calibration did.

    Attributes:
        timesteps: timestep of every denoiser call of the pipeline, in order.
        denoiser_passes_per_prompt: how often each prompt went through the denoiser, counted while it happened; without
            what the rounding of the weights took.
        ranges: observed (lo, hi) of every layer's input by slot, before any relaxation: layer -> [(lo, hi), …]; empty
            if ranges are measured at inference.
        seconds: wall time of this process, without what an earlier, interrupted one had done.
        resumed_calls: denoiser calls replayed from disk.
    """

    timesteps: tuple[float, ...]
    denoiser_passes_per_prompt: float
    ranges: Mapping[str, tuple[tuple[float, float], ...]]
    seconds: float
    resumed_calls: int
