"""Weights of fewer than 8 bits in files: packed where a state dict is written, and nowhere else.

In memory, and in the state dict that PEFT and accelerate's offloading work with, they stay int8 in the layer's shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from halftone.artifact.config import HalftoneConfig
from halftone.errors import InputError
from halftone.packing import pack_bits

__all__ = ["pack_weights", "packed_state_dict"]

_WRAPPED = "base_layer"  # PEFT's name of the layer that an adapter wraps


def pack_weights(state_dict: Mapping[str, Tensor], config: HalftoneConfig) -> dict[str, Tensor]:
    """A denoiser's state dict with the weights of quantized layers as streams of bits, if they have fewer than 8.

    What is packed already stays as it is.

    Raises:
        InputError: adapters wrap some layers, under whose names no folder of a pipeline can be loaded again.
    """
    _check_unwrapped(state_dict)
    packed = dict(state_dict)
    num_bits = config.recipe.weights.num_bits
    if num_bits < 8:
        for key in (f"{name}.weight" for name in config.layers):
            if packed[key].dtype == torch.int8:
                packed[key] = pack_bits(packed[key], num_bits)
    return packed


def _check_unwrapped(state_dict: Mapping[str, Tensor]) -> None:
    wrapped = [name for name, _, rest in (key.partition(f".{_WRAPPED}.") for key in state_dict) if rest]
    if wrapped:
        raise InputError(
            f"The denoiser has adapters (LoRA), of {wrapped[0]} for one, which an artifact cannot hold; save them by"
            " themselves with the pipeline's save_lora_weights, take them out with its unload_lora_weights, and save it"
            " then."
        )


@contextmanager
def packed_state_dict(module: nn.Module, config: HalftoneConfig | None) -> Iterator[None]:
    """Within the context the module's `state_dict` is packed, so that every release of diffusers writes it so.

    Args:
        config: of the quantized denoiser; None changes nothing.
    """

    def pack(_: nn.Module, state_dict: dict[str, Tensor], prefix: str, __: Any) -> None:
        if config is not None and prefix == "":
            state_dict.update(pack_weights(state_dict, config))

    handle = module.register_state_dict_post_hook(pack)
    try:
        yield
    finally:
        handle.remove()
