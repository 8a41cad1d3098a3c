"""An affine correction of the denoiser's output, one row of gains and biases for each timestep slot."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from typing_extensions import Self

from halftone.errors import InputError

__all__ = ["OUTPUT_CORRECTION", "OutputCorrection", "by_channel", "channel_dim"]

#: The name under which a denoiser holds its correction; the tensors are stored under it.
OUTPUT_CORRECTION = "output_correction"


class OutputCorrection(nn.Module):
    """``gain * prediction + bias`` for every channel, by slot; the identity until rows are set.

    Buffers (``[num_slots, channels]``, float32 also after ``.to(bfloat16)``):
        output_gain, output_bias.

    Args:
        num_slots: rows of the tables.
        channels: of the denoiser's output; 0 makes empty tables, which loading fills.
    """

    output_gain: Tensor
    output_bias: Tensor

    def __init__(self, num_slots: int, channels: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.register_buffer("output_gain", torch.ones(num_slots, channels, dtype=torch.float32, device=device))
        self.register_buffer("output_bias", torch.zeros(num_slots, channels, dtype=torch.float32, device=device))

    @property
    def num_slots(self) -> int:
        """Rows of the tables."""
        return len(self.output_gain)

    def set_row(self, slot: int, gain: Tensor, bias: Tensor) -> None:
        """Fixes the correction of a slot.

        Args:
            gain, bias: of the first channels, ``[n]``; channels that follow (a predicted variance) stay as they are.
        """
        with torch.no_grad():
            self.output_gain[slot, : len(gain)] = gain.to(self.output_gain)
            self.output_bias[slot, : len(bias)] = bias.to(self.output_bias)

    def extremes(self) -> dict[str, list[float]]:
        """Smallest and largest gain and bias over all slots and channels, JSON-ready."""
        tables = {"gain": self.output_gain, "bias": self.output_bias}
        return {name: [float(table.min()), float(table.max())] for name, table in tables.items()}

    def forward(self, prediction: Tensor, slot: int) -> Tensor:
        """The corrected prediction, computed in float32, in the dtype of ``prediction``.

        Raises:
            InputError: the prediction has another number of channels than the tables.
        """
        values = by_channel(prediction)
        if values.shape[-1] != self.output_gain.shape[-1]:
            raise InputError(
                f"the output correction is for {self.output_gain.shape[-1]} channels, and the denoiser's output has"
                f" {values.shape[-1]}"
            )
        corrected = values.float() * self.output_gain[slot] + self.output_bias[slot]
        return corrected.to(prediction.dtype).movedim(-1, channel_dim(prediction))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As in nn.Module, but the tables move without being cast."""
        originals = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, original in originals.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != original.dtype:
                self._buffers[name] = original.to(moved.device)
        return self

    def extra_repr(self) -> str:
        return f"num_slots={self.num_slots}, channels={self.output_gain.shape[-1]}"


def by_channel(prediction: Tensor) -> Tensor:
    """A view with the channels last."""
    return prediction.movedim(channel_dim(prediction), -1)


def channel_dim(prediction: Tensor) -> int:
    """Where the channels are: of images and videos ``[n, c, …]`` the second dimension, of sequences ``[n, tokens, c]``
    and vectors ``[n, c]`` the last."""
    return 1 if prediction.ndim >= 4 else -1
