"""Layers in floating point that compute as if they were quantized: their inputs, or weights and inputs, go through
integers and back. Nothing in the model is replaced, so that a scan may ask about one layer after another."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from halftone.calibration.observation import Observers
from halftone.layers import QuantizedConv2d, QuantizedLinear
from halftone.numerics import QParams, dequantize, measured_qparams, quantize, range_to_qparams
from halftone.recipe import ActivationScheme
from halftone.weight_grid import WeightGrid

__all__ = ["Table", "find_measured", "find_ranges", "rounded_forward", "rounding_inputs", "table_of"]

Layer = nn.Linear | nn.Conv2d
Table = dict[str, QParams]
FindRange = Callable[[Tensor], QParams]


def find_ranges(observers: Observers, scheme: ActivationScheme, bits: int) -> tuple[Tensor, Tensor]:
    """Scales (float32) and zero points (int32) of what observers saw, one each in their order."""
    ranges = [observer.range(bits, scheme.symmetric) for observer in observers.values()]
    made = [range_to_qparams(lo, hi, bits, scheme.symmetric) for lo, hi in ranges]
    return torch.stack([one.scale for one in made]), torch.stack([one.zero_point for one in made])


def table_of(names: Collection[str], scales: Tensor, zeros: Tensor, bits: int) -> Table:
    """What `find_ranges` found, by layer."""
    return {name: QParams(scale, zero, bits) for name, scale, zero in zip(names, scales, zeros, strict=True)}


@contextmanager
def rounding_inputs(layers: Mapping[str, nn.Module], table: Table) -> Iterator[None]:
    """Within the context the input of every layer goes through its integers and back before the layer gets it."""

    def rounding(qparams: QParams) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        return lambda _, args: (_rounded(args[0], qparams), *args[1:])

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(rounding(table[name])).remove)
        yield


def rounded_forward(layer: Layer, grid: WeightGrid, find_range: FindRange) -> Callable[[Tensor], Tensor]:
    """The forward of a layer with its weights on a grid, to nearest, and its input through integers and back.

    The weights are rounded in each call, so that their rounded copy lives no longer than that.
    """

    def forward(input: Tensor) -> Tensor:
        weight = grid.values(grid.codes(layer.weight)).to(layer.weight.dtype)
        x = _rounded(input, find_range(input)) if input.numel() else input
        if isinstance(layer, nn.Conv2d):
            return layer._conv_forward(x, weight, layer.bias)
        return functional.linear(x, weight, layer.bias)

    return forward


def find_measured(layer: Layer, scheme: ActivationScheme) -> FindRange:
    """Finds the range of each row of a linear layer's input, of each image of a convolution's, as layers that measure
    at inference do."""
    return partial(_measured, layer, num_bits=scheme.num_bits, symmetric=scheme.symmetric)


def _measured(layer: Layer, x: Tensor, num_bits: int, symmetric: bool) -> QParams:
    dims = (QuantizedConv2d if isinstance(layer, nn.Conv2d) else QuantizedLinear).range_dims
    return measured_qparams(x.amin(dims, keepdim=True), x.amax(dims, keepdim=True), num_bits, symmetric)


def _rounded(x: Tensor, qparams: QParams) -> Tensor:
    scale, zero = qparams.scale.to(x.device), qparams.zero_point.to(x.device)
    return dequantize(quantize(x, scale, zero, qparams.num_bits), scale, zero).to(x.dtype)
