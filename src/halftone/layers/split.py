"""A convolution of two joined tensors, each with ranges and weights of its own.

Li et al., "Q-Diffusion: Quantizing Diffusion Models" (ICCV 2023, arXiv 2302.04304), on shortcut layers: what an
up-block takes in is a skip connection joined to the hidden states, two tensors of different ranges for one scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from typing_extensions import Self

from halftone.errors import InputError
from halftone.layers.base import ExecutionMode, QuantizedLayer

__all__ = ["SplitConv2d", "split_convolutions"]


class SplitConv2d(nn.Module):
    """``conv(x) = hidden(x[:, :n]) + skip(x[:, n:])``: the sum over input channels, cut in two.

    Either part is a layer of its own: in floating point at first, then quantized. In integers the output is ``s1 * acc1
    + s2 * acc2 + bias``, the accumulators exact and all else in float32, also for inputs of other dtypes.

    Args:
        hidden: of the first channels; has the bias.
        skip: of the others, of the same geometry and without bias.
    """

    def __init__(self, hidden: nn.Conv2d, skip: nn.Conv2d) -> None:
        super().__init__()
        self.hidden, self.skip = hidden, skip

    @classmethod
    def of(cls, conv: nn.Conv2d, channels: int) -> Self:
        """A convolution as two, of copies of its weights.

        Args:
            channels: of the first half.

        Raises:
            InputError: there would be nothing in one of the halves, or the convolution has groups.
        """
        if not 0 < channels < conv.in_channels or conv.groups != 1:
            raise InputError(
                f"a convolution of {conv.in_channels} channels in {conv.groups} groups cannot be split at {channels}"
            )
        first, second = conv.weight.split([channels, conv.in_channels - channels], dim=1)
        return cls(_part(conv, first, conv.bias), _part(conv, second, None)).train(conv.training)

    @property
    def channels(self) -> int:
        """Channels of the first half."""
        return self.hidden.in_channels

    def forward(self, input: Tensor) -> Tensor:
        """``[n, in, h, w]`` to ``[n, out, h', w']`` in the dtype of the input."""
        first, second = input.split([self.channels, self.skip.in_channels], dim=-3)
        total = _run(self.hidden, first) + _run(self.skip, second)
        return total.to(input.dtype)


def _run(part: nn.Module, x: Tensor) -> Tensor:
    """A half's share of the sum: in float32 where it is computed in integers, which are exact until the sum."""
    if isinstance(part, QuantizedLayer) and part.mode is ExecutionMode.INTEGER:
        x = x.to(torch.float32)
    result: Tensor = part(x)
    return result


def split_convolutions(model: nn.Module) -> Iterator[tuple[str, SplitConv2d]]:
    """Dotted names and split convolutions of a model, in the order of its modules."""
    for name, module in model.named_modules():
        if isinstance(module, SplitConv2d):
            yield name, module


def _part(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """A convolution of the same geometry with other weights."""
    pair = tuple[int, int]
    part = nn.Conv2d(
        weight.shape[1],
        conv.out_channels,
        cast(pair, conv.kernel_size),
        cast(pair, conv.stride),
        cast("pair | str", conv.padding),
        cast(pair, conv.dilation),
        bias=bias is not None,
        padding_mode=conv.padding_mode,
        device="meta",
    )
    part.weight = nn.Parameter(weight.detach().clone(), requires_grad=conv.weight.requires_grad)
    if bias is not None:
        part.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    return part
