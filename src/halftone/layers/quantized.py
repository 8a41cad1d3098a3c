"""QuantizedLinear and QuantizedConv2d: they are nn.Linear and nn.Conv2d, so that PEFT and others find them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from halftone.errors import InputError
from halftone.kernels import ConvGeometry
from halftone.layers.base import ExecutionMode, QuantizedLayer
from halftone.layers.form import LayerForm
from halftone.timesteps import SlotClock

__all__ = [
    "QuantizedConv2d",
    "QuantizedLinear",
    "is_quantizable",
    "quantize_layer",
    "quantized_layers",
    "set_clock",
    "set_mode",
]

_Pair = tuple[int, int]
_PLAIN = LayerForm()


class QuantizedLinear(QuantizedLayer, nn.Linear):
    """``y = x @ w.T + b`` with integer weights and inputs; empty until loaded or made by `from_float`.

    Args:
        in_features, out_features, bias: as in nn.Linear.
        num_bits: weight bits, 2 to 8.
        num_slots: rows of the activation table; 1 serves all timesteps.
        layer_name: dotted name, for messages.
        form: what else the layer is; see `LayerForm`.
        device, dtype: of the bias; the default device context (``torch.device("meta")``) is honoured.
    """

    operation = "linear"
    range_dims = (-1,)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        num_bits: int,
        num_slots: int = 1,
        layer_name: str = "",
        form: LayerForm = _PLAIN,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias, device="meta")
        shape = (out_features, in_features)
        self._init_quantized(shape, bias, num_bits, num_slots, layer_name, form, device, dtype)

    @classmethod
    def empty_like(
        cls, module: nn.Linear, num_bits: int, num_slots: int, layer_name: str = "", form: LayerForm = _PLAIN
    ) -> QuantizedLinear:
        """An empty layer of the shape, device and dtype of a float one."""
        return cls(
            module.in_features,
            module.out_features,
            module.bias is not None,
            num_bits=num_bits,
            num_slots=num_slots,
            layer_name=layer_name,
            form=form,
            device=module.weight.device,
            dtype=module.weight.dtype,
        )

    @classmethod
    def from_float(
        cls,
        module: nn.Linear,
        num_bits: int,
        num_slots: int,
        layer_name: str = "",
        rounded: tuple[Tensor, ...] | None = None,
        form: LayerForm = _PLAIN,
    ) -> QuantizedLinear:
        """Quantizes a float layer; see `quantize_layer`."""
        return cls.empty_like(module, num_bits, num_slots, layer_name, form)._take(module, rounded)

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]`` in the dtype of the input."""
        if self.mode is ExecutionMode.WEIGHT_ONLY:
            bias = None if self.bias is None else self.bias.to(input.dtype)
            return functional.linear(input, self.dequantized_weight(input.dtype), bias)
        return self.run_integer(input)


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):
    """2-D convolution with integer weights and inputs; empty until loaded or made by `from_float`.

    Args:
        in_channels ... bias: as in nn.Conv2d; padding_mode is 'zeros'.
        num_bits, num_slots, layer_name, form, device, dtype: as in `QuantizedLinear`.

    Called as nn.Conv2d is, without ``num_bits``, the class makes an nn.Conv2d: PEFT builds the two convolutions
    of a LoRA adapter by calling the type of the layer that it adapts.
    """

    operation = "conv2d"
    range_dims = (-3, -2, -1)

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """A quantized layer, or an nn.Conv2d if there are arguments but no ``num_bits`` among them."""
        if (args or kwargs) and "num_bits" not in kwargs:
            return nn.Conv2d(*args, **kwargs)
        return super().__new__(cls)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        num_bits: int,
        num_slots: int = 1,
        layer_name: str = "",
        form: LayerForm = _PLAIN,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Conv2d.__init__(
            self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device="meta"
        )
        shape = tuple(self.weight.shape)
        self._init_quantized(shape, bias, num_bits, num_slots, layer_name, form, device, dtype)

    @classmethod
    def empty_like(
        cls, module: nn.Conv2d, num_bits: int, num_slots: int, layer_name: str = "", form: LayerForm = _PLAIN
    ) -> QuantizedConv2d:
        """An empty layer of the shape, device and dtype of a float one."""
        return cls(
            module.in_channels,
            module.out_channels,
            cast(_Pair, module.kernel_size),
            cast(_Pair, module.stride),
            cast("_Pair | str", module.padding),
            cast(_Pair, module.dilation),
            module.groups,
            module.bias is not None,
            num_bits=num_bits,
            num_slots=num_slots,
            layer_name=layer_name,
            form=form,
            device=module.weight.device,
            dtype=module.weight.dtype,
        )

    @classmethod
    def from_float(
        cls,
        module: nn.Conv2d,
        num_bits: int,
        num_slots: int,
        layer_name: str = "",
        rounded: tuple[Tensor, ...] | None = None,
        form: LayerForm = _PLAIN,
    ) -> QuantizedConv2d:
        """Quantizes a float layer; see `quantize_layer`."""
        return cls.empty_like(module, num_bits, num_slots, layer_name, form)._take(module, rounded)

    def geometry(self) -> ConvGeometry:
        """Geometry with the padding resolved to pixels ('same' and 'valid' too)."""
        left, right, top, bottom = self._reversed_padding_repeated_twice
        stride, dilation = cast(_Pair, self.stride), cast(_Pair, self.dilation)
        return ConvGeometry(stride, (left, right, top, bottom), dilation, self.groups)

    def forward(self, input: Tensor) -> Tensor:
        """``[n, in, h, w]`` to ``[n, out, h', w']`` in the dtype of the input."""
        if self.mode is ExecutionMode.WEIGHT_ONLY:
            bias = None if self.bias is None else self.bias.to(input.dtype)
            return self._conv_forward(input, self.dequantized_weight(input.dtype), bias)
        return self.run_integer(input)


def is_quantizable(module: nn.Module) -> str | None:
    """None if a module can be quantized, else the reason why it is left as it is."""
    if type(module) is nn.Linear:
        return None
    if type(module) is nn.Conv2d:
        if module.padding_mode != "zeros":
            return f"its padding mode is {module.padding_mode!r}; only 'zeros' is supported"
        return None
    return f"it is a {type(module).__name__}; only nn.Linear and nn.Conv2d are quantized"


def quantize_layer(
    module: nn.Module,
    num_bits: int,
    num_slots: int,
    layer_name: str = "",
    rounded: tuple[Tensor, ...] | None = None,
    form: LayerForm = _PLAIN,
) -> QuantizedLayer:
    """The quantized form of an nn.Linear or nn.Conv2d.

    Args:
        rounded: codes, scales and, if the form has them, zero points of the weights (see `halftone.weight_grid`), if a
            rounding rule has made them; else the weights are rounded to nearest.
        form: what else the layer is; see `LayerForm`.

    Raises:
        InputError: `is_quantizable` gives a reason against it.
        NonFiniteError: its weights have NaN or infinite elements.
    """
    reason = is_quantizable(module)
    if reason is not None:
        raise InputError(f"layer {layer_name!r} cannot be quantized: {reason}")
    if isinstance(module, nn.Linear):
        return QuantizedLinear.from_float(module, num_bits, num_slots, layer_name, rounded, form)
    return QuantizedConv2d.from_float(cast(nn.Conv2d, module), num_bits, num_slots, layer_name, rounded, form)


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLayer]]:
    """Dotted names and quantized layers of a model, in the order of its modules."""
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLayer):
            yield name, module


def set_clock(model: nn.Module, clock: SlotClock) -> None:
    """Gives all quantized layers of a model the same clock."""
    for _, layer in quantized_layers(model):
        layer.clock = clock


def set_mode(model: nn.Module, mode: ExecutionMode) -> None:
    """Sets how all quantized layers of a model run."""
    for _, layer in quantized_layers(model):
        layer.mode = mode
