"""Second moments of a layer's inputs: all that its output error depends on.

For a layer ``y = W x`` and integers that give ``W'``, the mean squared output error over the inputs is the quadratic
form ``sum over channels of d H d^T`` with ``d = W'_i - W_i`` and ``H = E[x x^T]`` (Nagel et al. 2020, arXiv 2004.10568,
section 3). A convolution is the same with unfolded inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from halftone.errors import CalibrationError, NonFiniteError

__all__ = ["SecondMoments", "grouped_weight", "moment_shape", "moments_bytes"]


class SecondMoments:
    """A collector that sums ``x x^T`` over rows and positions of a layer's inputs.

    Args:
        layer: an nn.Linear or nn.Conv2d.
        name: for messages.
        positions_per_row: of a row's tokens or pixels at most so many are taken, evenly spaced, with another start in
            each row. Neighbours tell nearly the same, and the sum costs more than the layer itself.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, name: str, positions_per_row: int):
        self.layer, self.name, self.positions_per_row = layer, name, positions_per_row
        self.total: Tensor | None = None
        self.count = 0
        self._rows = 0

    def see(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        """Adds the layer's input, ``[rows, ..., in]`` or ``[rows, in, h, w]``; one row at a time, since what is
        unfolded is many times larger."""
        x: Tensor = args[0]
        if self.total is None:
            self.total = torch.zeros(moment_shape(self.layer), dtype=torch.float32, device=x.device)
        for row in x.split(1):
            vectors = _vectors(self.layer, row.to(torch.float32), self._picked)
            self.total.baddbmm_(vectors.transpose(1, 2), vectors)
            self.count += vectors.shape[1]
            self._rows += 1

    def mean(self) -> Tensor:
        """``E[x x^T]``: float32 ``[groups, d, d]``, on the layer's device. It takes the place of the sums, since two
        such matrices may not fit in memory; nothing can be seen afterwards.

        Raises:
            CalibrationError: the layer was never called.
            NonFiniteError: an input was not finite, or so large that its square was not.
        """
        if self.total is None:
            raise CalibrationError(f"Layer {self.name} was never called; add it to the recipe's exclude list.")
        if not all(bool(torch.isfinite(extreme)) for extreme in self.total.aminmax()):
            raise NonFiniteError(f"The second moments of the inputs of layer {self.name} are not finite.")
        self.total /= max(1, self.count)
        self.count = 1
        return self.total

    def _picked(self, positions: int) -> slice:
        """Which of a row's positions are taken."""
        stride = -(-positions // self.positions_per_row)
        return slice(self._rows % stride, None, stride)


def moment_shape(layer: nn.Linear | nn.Conv2d) -> tuple[int, int, int]:
    """``(groups, d, d)``: ``d`` weights for each output channel; every group of a convolution has its own inputs."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    length = layer.weight[0].numel()
    return groups, length, length


def moments_bytes(layer: nn.Linear | nn.Conv2d) -> int:
    """Memory of the moments in float32."""
    groups, length, _ = moment_shape(layer)
    return 4 * groups * length * length


def grouped_weight(layer: nn.Linear | nn.Conv2d, values: Tensor) -> Tensor:
    """A tensor of the layer's weight shape as ``[groups, out / groups, d]``, to go with its moments."""
    groups, length, _ = moment_shape(layer)
    return values.reshape(groups, -1, length)


def _vectors(layer: nn.Linear | nn.Conv2d, x: Tensor, picked: Callable[[int], slice]) -> Tensor:
    """The vectors that the weights of one row's outputs are multiplied with: ``[groups, positions, d]``.

    Args:
        picked: which of so many positions are taken.
    """
    if isinstance(layer, nn.Linear):
        vectors = x.reshape(1, -1, x.shape[-1])
        return vectors[:, picked(vectors.shape[1])]
    padded = functional.pad(x, layer._reversed_padding_repeated_twice)[0]  # 'same' is resolved in there
    windows = padded
    for dim, (length, dilation, stride) in enumerate(zip(layer.kernel_size, layer.dilation, layer.stride, strict=True)):
        windows = windows.unfold(1 + dim, dilation * (length - 1) + 1, stride)[..., ::dilation]
    height, width = windows.shape[1:3]  # of the output; nothing has been copied so far, and it need not be as a whole
    positions = torch.arange(height * width, device=x.device)[picked(height * width)]
    vectors = windows[:, positions // width, positions % width]
    return vectors.movedim(1, -1).reshape(layer.groups, -1, len(positions)).transpose(1, 2)
