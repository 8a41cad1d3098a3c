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
from halftone.layers.form import LayerForm
from halftone.layers.table import DerivedCache, SlotTable
from halftone.numerics import QParams, measured_qparams
from halftone.weight_grid import WeightGrid, group_count, range_grid

__all__ = ["ExecutionMode", "QuantizedLayer"]

_FLOAT32_BUFFERS = ("weight_scale", "input_scale")


class ExecutionMode(enum.Enum):
    """How a quantized layer runs."""

    INTEGER = "integer"
    """Input quantized with the current slot's row, or with its own range, integer product."""
    WEIGHT_ONLY = "weight_only"
    """Input left in floating point, weights dequantized on the fly: while a step is being observed."""


class QuantizedLayer(SlotTable):
    """What both kinds of layer share; see `SlotTable` for the activation parameters.

    Attributes:
        weight: int8 parameter, no gradient, shape as in the float layer: codes of `grid`.
        weight_scale: float32 buffer ``[out]``, or ``[out, groups]``; like ``input_scale`` it stays float32 in
            ``.to(bfloat16)``.
        bias: parameter in the module's floating dtype, or None.
        weight_num_bits: 2 to 8; weights of fewer than 8 bits are stored unpacked in int8.
        weight_zero_point: int8 buffer of the shape of ``weight_scale``; None where the grid is symmetric.
        mode: see `ExecutionMode`.
        form: what else it is; see `LayerForm`.
    """

    weight: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor | None
    bias: Any
    operation: str
    #: Dimensions of the input over which a measured range goes.
    range_dims: tuple[int, ...]

    def _init_quantized(
        self,
        shape: tuple[int, ...],
        bias: bool,
        num_bits: int,
        num_slots: int,
        layer_name: str,
        form: LayerForm,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Replaces the parameters that the float class made (on meta) by empty quantized ones."""
        if not 2 <= num_bits <= 8:
            raise InputError(f"layer {layer_name!r}: weights of {num_bits} bits; allowed are 2 to 8")
        self.weight = nn.Parameter(torch.zeros(shape, dtype=torch.int8, device=device), requires_grad=False)
        zeros = torch.zeros(shape[0], dtype=dtype, device=device)
        self.bias = nn.Parameter(zeros, requires_grad=False) if bias else None
        groups = () if form.group_size is None else (group_count(shape, form.group_size),)
        scale = torch.ones(shape[0], *groups, dtype=torch.float32, device=device)
        zero_point = torch.zeros_like(scale, dtype=torch.int8) if form.has_weight_zero_points else None
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_zero_point", zero_point)
        self.weight_num_bits = num_bits
        self.mode = ExecutionMode.INTEGER
        self.form = form
        self.features = form.features(num_bits)
        self._prepared: DerivedCache[PreparedKernel] = DerivedCache()
        self._init_table(num_slots, layer_name, device)

    def reset_parameters(self) -> None:
        """Does nothing: integers are not initialized at random."""

    def geometry(self) -> ConvGeometry | None:
        """Stride, padding and so on of a convolution; None for linear."""
        return None

    @property
    def grid(self) -> WeightGrid:
        """What the codes in ``weight`` stand for."""
        return WeightGrid(self.weight_num_bits, self.weight_scale, self.weight_zero_point, self.form.group_size)

    def dequantized_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The real values of ``weight`` in ``dtype``, in its shape."""
        return self.grid.values(self.weight).to(dtype)

    def run_integer(self, x: Tensor) -> Tensor:
        """The layer in integers, with the current slot's row or, if it measures, the ranges of the input itself.

        Raises:
            CalibrationError: the current slot is not calibrated.
        """
        row = self.current_row()
        kernel = select(self.operation, "cpu" if x.is_cpu else x.device.type, row.num_bits, self.features)
        # Not by attribute: nn.Module searches for those, at every call of every layer.
        weight, scale, bias = self._parameters["weight"], self._buffers["weight_scale"], self._parameters["bias"]
        assert weight is not None and scale is not None
        sources: tuple[Tensor, ...] = (weight, scale) if bias is None else (weight, scale, bias)
        weight_zero_point = self._buffers["weight_zero_point"]
        if weight_zero_point is not None:
            sources = (*sources, weight_zero_point)
        prepared = self._prepared.get(kernel.name, sources, lambda: kernel.prepare(self._layer_weights()))
        if self.form.measured and x.numel():
            found = self._measured(x, row.num_bits)
            zero_point = 2 ** (row.num_bits - 1) if self.form.symmetric else found.zero_point
            return prepared(x, found.scale, zero_point, row.num_bits)
        return prepared(x, row.scale, row.zero_point, row.num_bits)

    def set_measured_bits(self, num_bits: int) -> None:
        """Makes the layer ready to run, if it measures its ranges."""
        self.set_row(0, QParams(torch.tensor(1.0), torch.tensor(0), num_bits))

    def _measured(self, x: Tensor, num_bits: int) -> QParams:
        """Parameters ``[rows]`` of each row of the flattened input, or of each image."""
        values = x.detach()
        lo, hi = values.amin(self.range_dims).reshape(-1), values.amax(self.range_dims).reshape(-1)
        return measured_qparams(lo, hi, num_bits, self.form.symmetric)

    def _layer_weights(self) -> LayerWeights:
        if self.weight.dtype != torch.int8 or self.weight_scale.dtype != torch.float32:
            raise InputError(
                f"layer {self.layer_name!r} holds {self.weight.dtype} weights and {self.weight_scale.dtype} "
                "scales; they must be int8 and float32: something cast them after loading"
            )
        weight = self.grid.centred(self.weight.detach())
        return LayerWeights(weight, self.weight_scale, self.bias, self.geometry(), self.form.group_size)

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
        measured = ", measured=True" if self.form.measured else ""
        return f"{super().extra_repr()}, weight_num_bits={self.weight_num_bits}, num_slots={self.num_slots}{measured}"

    def _take(self, module: nn.Linear | nn.Conv2d, rounded: tuple[Tensor, ...] | None = None) -> Self:
        """Takes the weights of a float layer, as ``rounded`` (codes, scales, zero points if any), or to nearest."""
        if rounded is None:
            form = self.form
            grid = range_grid(module.weight, self.weight_num_bits, form.group_size, not form.has_weight_zero_points)
            rounded = grid.codes(module.weight), *grid.tensors
        places = (self.weight, self.weight_scale, self.weight_zero_point)
        with torch.no_grad():
            for place, values in zip((place for place in places if place is not None), rounded, strict=True):
                place.copy_(values)
            if self.bias is not None and module.bias is not None:
                self.bias.copy_(module.bias)
        return self.train(module.training)
