"""What a model's weights take, also where a library wraps them in tensors that pretend to be floating-point ones."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from halftone.layers import quantized_layers

_NO_WEIGHTS = (
    *("weight_scale", "weight_zero_point"),
    *("input_scale", "input_zero_point", "input_num_bits"),
    *("output_scale", "output_gain", "output_bias"),
)


def stored_bytes(module: nn.Module) -> int:
    """Of all that the module holds, scales and tables included."""
    return sum(_bytes(plain) for _, tensor in _held(module) for plain in _plain_tensors(tensor))


def average_weight_bits(module: nn.Module) -> float:
    """Mean over the weights; scales and tables are not weights.

    Of a tensor that wraps others, the largest of those holds the weights and the rest are scales.
    """
    bits = count = 0
    narrow = {f"{name}.weight": layer.weight_num_bits for name, layer in quantized_layers(module)}
    for name, tensor in _held(module):
        if name.rpartition(".")[2] not in _NO_WEIGHTS:
            count += tensor.numel()
            largest = max(_bytes(plain) for plain in _plain_tensors(tensor))
            bits += tensor.numel() * narrow[name] if name in narrow else 8 * largest
    return bits / max(1, count)


def wrapped_layers(module: nn.Module) -> int:
    """Number of layers whose weight a library has wrapped."""
    weights = (getattr(layer, "weight", None) for layer in module.modules())
    return sum(isinstance(weight, torch.Tensor) and _is_wrapper(weight) for weight in weights)


def _held(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _plain_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensor itself, or those in which a wrapper keeps its data."""
    if not _is_wrapper(tensor):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    for name in names:
        yield from _plain_tensors(getattr(tensor, name))


def _is_wrapper(tensor: torch.Tensor) -> bool:
    """PyTorch's protocol of tensor subclasses, which torchao and quanto follow."""
    return hasattr(type(tensor), "__tensor_flatten__")


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
