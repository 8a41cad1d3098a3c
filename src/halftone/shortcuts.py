"""The convolutions of a UNet that see a skip connection joined to the hidden states, and their division in two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from halftone.denoiser import set_submodule
from halftone.layers import SplitConv2d

__all__ = ["joined_convolutions", "split_layers"]

#: Of an up-block's resnet: the first convolution sees the joined tensor normalized, the shortcut sees it as it is.
_JOINED = ("conv1", "conv_shortcut")


def joined_convolutions(module: nn.Module) -> dict[str, int]:
    """Which convolutions of a denoiser see joined tensors, and how many channels of those are the hidden states'.

    It is read off the UNet's channel counts: every resnet of the up-blocks takes the newest output of the down path
    that no other has taken. What is left of its input must be what the module before it puts out; where that does not
    hold the module is not built like the UNets of diffusers, and nothing is known of it.

    Returns:
        Dotted name -> channels of the first half, in module order; empty if there are no such convolutions.
    """
    skips, found = _skip_channels(module), {}
    for name, resnet, before in _up_resnets(module):
        skip = skips.pop() if skips else 0
        if skip <= 0 or before <= 0 or getattr(resnet, "in_channels", 0) != before + skip:
            return {}
        for part in _JOINED:
            convolution = getattr(resnet, part, None)
            if isinstance(convolution, nn.Conv2d | SplitConv2d):
                found[f"{name}.{part}"] = before
    return found


def split_layers(module: nn.Module, splits: Mapping[str, int]) -> None:
    """Replaces convolutions by two each, in place.

    Args:
        splits: dotted name -> channels of the first half. What is split already stays as it is.
    """
    for name, channels in splits.items():
        layer = module.get_submodule(name)
        if isinstance(layer, nn.Conv2d):
            set_submodule(module, name, SplitConv2d.of(layer, channels))


def _skip_channels(module: nn.Module) -> list[int]:
    """Channels of everything that the down path keeps for the up path, in the order in which it is made."""
    first = getattr(module, "conv_in", None)
    if not isinstance(first, nn.Conv2d):
        return []
    channels = [first.out_channels]
    for block in _blocks(module, "down_blocks"):
        channels += [_channels_out(resnet) for resnet in block.resnets]
        if getattr(block, "downsamplers", None) is not None:
            channels.append(channels[-1])
    return channels


def _up_resnets(module: nn.Module) -> Iterator[tuple[str, Any, int]]:
    """Name, module, and the channels of what comes from the module before, of the up-blocks' resnets in order."""
    middle = getattr(module, "mid_block", None)
    before = [*_blocks(module, "down_blocks"), *([middle] if getattr(middle, "resnets", None) else [])]
    channels = _channels_out(before[-1].resnets[-1]) if before else 0
    for number, block in enumerate(_blocks(module, "up_blocks")):
        for place, resnet in enumerate(block.resnets):
            yield f"up_blocks.{number}.resnets.{place}", resnet, channels
            channels = _channels_out(resnet)


def _channels_out(resnet: Any) -> int:
    """0 for modules that do not tell."""
    return int(getattr(resnet, "out_channels", 0))


def _blocks(module: nn.Module, name: str) -> Sequence[Any]:
    """The blocks of one side of a UNet; none if any of them has no resnets."""
    blocks = getattr(module, name, None)
    found = list(blocks) if isinstance(blocks, nn.ModuleList) else []
    return found if all(len(getattr(block, "resnets", ())) > 0 for block in found) else []
