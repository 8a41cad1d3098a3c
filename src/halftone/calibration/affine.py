"""Gain and bias for each channel of a prediction, from sums over prompts and pixels.

Three numbers belong together at every pixel: what was ``seen`` (the quantized model's prediction e), what was
``wanted`` in its place (w), and the ``signal`` (s, the full-precision model's prediction). A bias alone makes the means
of e + b and w equal. A gain takes more thought.

Least squares, g = cov(e, w) / var(e), takes quantization noise for signal that is too large: with e = w + n and noise
of variance v it gives var(w) / (var(w) + v) < 1, less error at once but too small a prediction, in the same direction
at every step, where the noise itself would have averaged out over the steps. That is its shrinking towards the mean.

The unbiased gain asks that the error which is left, g e + b - w, has nothing of the signal in it, cov(g e - w, s) = 0:

    g = cov(w, s) / cov(e, s)

With s as an instrument (Fuller, "Measurement Error Models", 1987, section 1.4) noise in e and noise in w both drop
out, and a prediction that is k times too large gets 1/k whatever the noise. Where w = s, it inverts the regression of
e on w. All of that holds for noise that is uncorrelated with s, so for predictions at the same input. Where e was
predicted at other latents than s ('drift'), they differ because the trajectories have parted: of e with correlation r
and of the size of s it makes e / r, farther from w than e is. There least squares is the nearer one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Moments"]

GainRule = Literal["none", "unbiased", "least_squares"]
_KEY = "correction"
_ROWS = 8  # count, sums of e, w, s, and of their products
_ROUNDING = 1e-9
_PIXELS_AT_ONCE = 1 << 16


class Moments:
    """Sums over pixels by channel, for one slot; more pixels may be added at any time.

    Args:
        channels: of the prediction.
    """

    def __init__(self, channels: int) -> None:
        self.sums = torch.zeros(_ROWS, channels, dtype=torch.float64)

    def add(self, seen: Tensor, wanted: Tensor, signal: Tensor, weight: float = 1.0) -> None:
        """Adds the pixels of three tensors of one shape, channels last, any floating dtype and device.

        Args:
            weight: of a squared error in these pixels, against those of other calls.
        """
        flat = (value.detach().reshape(-1, value.shape[-1]).split(_PIXELS_AT_ONCE) for value in (seen, wanted, signal))
        for part in zip(*flat, strict=True):
            e, w, s = (value.to(torch.float64) for value in part)
            products = (torch.ones_like(e), e, w, s, e * e, e * w, e * s, w * s)
            self.sums += weight * torch.stack([product.sum(0) for product in products]).cpu()

    def fit(self, rule: GainRule, max_gain: float) -> tuple[Tensor, Tensor]:
        """Gain and bias of each channel.

        Args:
            rule: see the module; "none" leaves the gain at 1.
            max_gain: the gain stays between 1/max_gain and max_gain. Where it is not defined, as for a channel that
                never changes, it is 1.

        Returns:
            float64 ``[channels]`` each.
        """
        count, e, w, s, ee, ew, es, ws = self.sums
        count = torch.where(count > 0, count, torch.ones_like(count))
        gain = torch.ones_like(e)
        if rule == "least_squares":
            gain = _ratio(ew - e * w / count, ee - e * e / count, ee)
        elif rule == "unbiased":
            gain = _ratio(ws - w * s / count, es - e * s / count, es)
        gain = gain.clamp(1 / max_gain, max_gain)
        return gain, (w - gain * e) / count

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint; the name is no layer's."""
        return {_KEY: self.sums}

    def load_state(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Undoes `state_dict`; returns what else was stored."""
        self.sums = stored[_KEY].clone()
        return {name: value for name, value in stored.items() if name != _KEY}


def _ratio(above: Tensor, below: Tensor, uncentred: Tensor) -> Tensor:
    """A quotient of covariances, 1 where it is not positive or where the one below is rounding alone."""
    is_defined = (below > _ROUNDING * uncentred.abs()) & (above > 0)
    return torch.where(is_defined, above / below, torch.ones_like(above))
