"""Quantized layers: drop-in Linear and Conv2d with integer weights and a table of activation parameters."""

from halftone.layers.base import ExecutionMode, QuantizedLayer
from halftone.layers.quantized import (
    QuantizedConv2d,
    QuantizedLinear,
    is_quantizable,
    quantize_layer,
    quantized_layers,
    set_clock,
    set_mode,
)
from halftone.layers.table import SlotRow, SlotTable

__all__ = [
    "ExecutionMode",
    "QuantizedConv2d",
    "QuantizedLayer",
    "QuantizedLinear",
    "SlotRow",
    "SlotTable",
    "is_quantizable",
    "quantize_layer",
    "quantized_layers",
    "set_clock",
    "set_mode",
]
