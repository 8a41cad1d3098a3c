"""What stands in for the denoiser's forward: in some steps it adds noise to the prediction, or runs a quantized one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from halftone.calibration.trace import first_tensor
from halftone.denoiser import with_prediction
from halftone.layers import channel_dim
from halftone.microbatch import Forward
from halftone.sensitivity.steps import StepOf

__all__ = ["mixed_forward", "noise_seed", "perturbed", "perturbed_forward"]


def perturbed_forward(
    forward: Forward, step_of: StepOf, steps: range, noise: float, image_seed: Callable[[], int]
) -> Forward:
    """`forward` with Gaussian noise on its prediction in some steps; a call is to be of one image.

    Args:
        steps: those with noise.
        noise: its standard deviation, in that of the prediction.
        image_seed: gives the seed of the image that is being painted: noise follows from it and from the step alone.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        output, step = forward(*args, **kwargs), step_of(args, kwargs)
        if step not in steps:
            return output
        channels, seed = _latent_channels(args, kwargs), noise_seed(image_seed(), step)
        return with_prediction(output, lambda prediction: perturbed(prediction, noise, seed, channels))

    return run


def mixed_forward(forward: Forward, quantized: nn.Module, step_of: StepOf, steps: range) -> Forward:
    """`forward` in some steps, a quantized denoiser in all others.

    Args:
        steps: those in floating point.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        chosen = forward if step_of(args, kwargs) in steps else quantized
        return chosen(*args, **kwargs)

    return run


def perturbed(prediction: Tensor, noise: float, seed: int, channels: int) -> Tensor:
    """The prediction of one image with noise on its first channels, in its own dtype.

    All rows get the same noise: the weights of guidance sum to 1, so that the guided prediction gets just this noise,
    whatever the guidance.

    Args:
        prediction: ``[rows, …]``, the rows being the halves of guidance.
        noise: standard deviation of the noise, in that of the prediction over all rows.
        channels: what follows them (a predicted variance) stays as it is.
    """
    dim = channel_dim(prediction)
    changed = prediction.clone()
    part = changed.narrow(dim, 0, min(channels, changed.shape[dim]))
    values = part.float()
    drawn = torch.randn(part.shape[1:], generator=torch.Generator().manual_seed(seed)).to(values.device)
    part.copy_(values + noise * values.std(correction=0) * drawn)
    return changed


def noise_seed(image_seed: int, step: int) -> int:
    """The seed of an image's noise in a step; hashed, or it would be the initial noise of another image."""
    digest = hashlib.sha256(f"sensitivity\0{image_seed}\0{step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # torch's seeds are signed in places


def _latent_channels(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Channels of the latents that a denoiser was called with."""
    latents = first_tensor(tuple(args), kwargs)
    return int(latents.shape[channel_dim(latents)])
