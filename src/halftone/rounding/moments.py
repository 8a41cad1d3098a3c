"""Second moments of a layer's inputs: all that its output error depends on.

For a layer ``y = W x`` and integers that give ``W'``, the mean squared output error over the inputs is the quadratic
form ``sum over channels of d H d^T`` with ``d = W'_i - W_i`` and ``H = E[x x^T]`` (Nagel et al. 2020, arXiv 2004.10568,
section 3). A convolution is the same with unfolded inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

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
        """Adds the layer's input, ``[rows, ..., in]`` or ``[rows, in, h, w]``; one row at a time, since unfolding makes
        an input many times larger."""
        x: Tensor = args[0]
        if self.total is None:
            self.total = torch.zeros(moment_shape(self.layer), dtype=torch.float32, device=x.device)
        for row in x.split(1):
            vectors = self._thinned(_vectors(self.layer, row.to(torch.float32)))
            self.total.baddbmm_(vectors.transpose(1, 2), vectors)
            self.count += vectors.shape[1]
            self._rows += 1

    def mean(self) -> Tensor:
        """``E[x x^T]``: float64 ``[groups, d, d]``, on the layer's device.

        Raises:
            CalibrationError: the layer was never called.
            NonFiniteError: an input was not finite, or so large that its square was not.
        """
        if self.total is None:
            raise CalibrationError(f"Layer {self.name} was never called; add it to the recipe's exclude list.")
        if not bool(torch.isfinite(self.total).all()):
            raise NonFiniteError(f"The second moments of the inputs of layer {self.name} are not finite.")
        return self.total.to(torch.float64) / max(1, self.count)

    def _thinned(self, vectors: Tensor) -> Tensor:
        stride = -(-vectors.shape[1] // self.positions_per_row)
        return vectors[:, self._rows % stride :: stride]


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


def _vectors(layer: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    """The vectors that the weights of one row's outputs are multiplied with: ``[groups, positions, d]``."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    padded = functional.pad(x, layer._reversed_padding_repeated_twice)  # 'same' is resolved in there
    pair = tuple[int, int]
    unfolded = functional.unfold(
        padded,
        cast(pair, layer.kernel_size),
        dilation=cast(pair, layer.dilation),
        stride=cast(pair, layer.stride),
    )
    return unfolded.view(layer.groups, -1, unfolded.shape[-1]).transpose(1, 2)
