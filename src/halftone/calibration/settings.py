"""What a calibration is asked to do and what it reports: small frozen records."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


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
    """

    prompts: tuple[str, ...]
    num_inference_steps: int = 50
    guidance_scale: float | None = None
    seed: int = 0
    batch_size: int = 4
    call_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, the prompts as count and SHA-256 of each, so that a record reveals no prompt text."""
        data: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        data["call_kwargs"] = {key: repr(value) for key, value in sorted(self.call_kwargs.items())}
        data["prompts"] = len(self.prompts)
        data["prompts_sha256"] = [hashlib.sha256(text.encode()).hexdigest() for text in self.prompts]
        return data


@dataclass(frozen=True)
class CalibrationResult:
    """What a calibration did.

    Attributes:
        timesteps: timestep of every denoiser call of the pipeline, in order.
        denoiser_passes_per_prompt: how often each prompt went through the denoiser, counted while it happened.
        ranges: observed (lo, hi) of every layer's input by slot, before any relaxation: layer -> [(lo, hi), …].
        seconds: wall time of this process, without what an earlier, interrupted one had done.
        resumed_calls: denoiser calls replayed from disk.
    """

    timesteps: tuple[float, ...]
    denoiser_passes_per_prompt: float
    ranges: Mapping[str, tuple[tuple[float, float], ...]]
    seconds: float
    resumed_calls: int
