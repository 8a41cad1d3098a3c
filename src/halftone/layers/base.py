"""What both kinds of quantized layer share: integer weights, execution modes, the choice of a kernel."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from halftone.errors import InputError
from halftone.kernels import ConvGeometry, LayerWeights, PreparedKernel, select
from halftone.layers.table import DerivedCache, SlotTable
from halftone.numerics import quantize_weight

__all__ = ["ExecutionMode", "QuantizedLayer"]

_FLOAT32_BUFFERS = ("weight_scale", "input_scale")


class ExecutionMode(enum.Enum):
    """How a quantized layer runs."""

    INTEGER = "integer"
    """Input quantized with the current slot's row, integer product."""
    WEIGHT_ONLY = "weight_only"
    """Input left in floating point, weights dequantized on the fly: while a step is being observed."""


class QuantizedLayer(SlotTable):
    """What both kinds of layer share; see `SlotTable` for the activation parameters.

    Attributes:
        weight: int8 parameter, no gradient, shape as in the float layer.
        weight_scale: float32 buffer ``[out]``; like ``input_scale`` it stays float32 in ``.to(bfloat16)``.
        bias: parameter in the module's floating dtype, or None.
        weight_num_bits: 2 to 8; weights of fewer than 8 bits are stored unpacked in int8.
        mode: see `ExecutionMode`.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Any
    operation: str

    def _init_quantized(
        self,
        shape: tuple[int, ...],
        bias: bool,
        num_bits: int,
        num_slots: int,
        layer_name: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Replaces the parameters that the float class made (on meta) by empty quantized ones."""
        if not 2 <= num_bits <= 8:
            raise InputError(f"layer {layer_name!r}: weights of {num_bits} bits; allowed are 2 to 8")
        self.weight = nn.Parameter(torch.zeros(shape, dtype=torch.int8, device=device), requires_grad=False)
        zeros = torch.zeros(shape[0], dtype=dtype, device=device)
        self.bias = nn.Parameter(zeros, requires_grad=False) if bias else None
        self.register_buffer("weight_scale", torch.ones(shape[0], dtype=torch.float32, device=device))
        self.weight_num_bits = num_bits
        self.mode = ExecutionMode.INTEGER
        self._prepared: DerivedCache[PreparedKernel] = DerivedCache()
        self._init_table(num_slots, layer_name, device)

    def reset_parameters(self) -> None:
        """Does nothing: integers are not initialized at random."""

    def geometry(self) -> ConvGeometry | None:
        """Stride, padding and so on of a convolution; None for linear."""
        return None

    def dequantized_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """``weight * weight_scale`` in ``dtype``, shape of ``weight``."""
        scale = self.weight_scale.view(-1, *[1] * (self.weight.dim() - 1))
        return (self.weight * scale).to(dtype)

    def run_integer(self, x: Tensor) -> Tensor:
        """The layer in integers, with the current slot's row.

        Raises:
            CalibrationError: the current slot is not calibrated.
        """
        row = self.current_row()
        kernel = select(self.operation, "cpu" if x.is_cpu else x.device.type, row.num_bits)
        # Not by attribute: nn.Module searches for those, at every call of every layer.
        weight, scale, bias = self._parameters["weight"], self._buffers["weight_scale"], self._parameters["bias"]
        assert weight is not None and scale is not None
        sources = (weight, scale) if bias is None else (weight, scale, bias)
        prepared = self._prepared.get(kernel.name, sources, lambda: kernel.prepare(self._layer_weights()))
        return prepared(x, row.scale, row.zero_point, row.num_bits)

    def _layer_weights(self) -> LayerWeights:
        if self.weight.dtype != torch.int8 or self.weight_scale.dtype != torch.float32:
            raise InputError(
                f"layer {self.layer_name!r} holds {self.weight.dtype} weights and {self.weight_scale.dtype} "
                "scales; they must be int8 and float32: something cast them after loading"
            )
        return LayerWeights(self.weight.detach(), self.weight_scale, self.bias, self.geometry())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As in nn.Module, but the scales move without being cast."""
        originals = {name: self._buffers[name] for name in _FLOAT32_BUFFERS}
        super()._apply(fn, recurse)
        self._prepared.clear()
        self._rows.clear()
        for name, original in originals.items():
            moved = self._buffers[name]
            if original is not None and moved is not None and moved.dtype != original.dtype:
                self._buffers[name] = original.to(moved.device)
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weight_num_bits={self.weight_num_bits}, num_slots={self.num_slots}"

    def _take(self, module: nn.Linear | nn.Conv2d, rounded: tuple[Tensor, Tensor] | None = None) -> Self:
        """Takes the weights of a float layer, as ``rounded`` (integers and scales), or else rounds them to nearest."""
        integers, scale = quantize_weight(module.weight, self.weight_num_bits) if rounded is None else rounded
        with torch.no_grad():
            self.weight.copy_(integers)
            self.weight_scale.copy_(scale)
            if self.bias is not None and module.bias is not None:
                self.bias.copy_(module.bias)
        return self.train(module.training)
