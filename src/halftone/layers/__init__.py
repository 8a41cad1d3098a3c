"""Quantized layers: drop-in Linear and Conv2d with integer weights and a table of activation parameters."""

from halftone.layers.base import ExecutionMode, QuantizedLayer
from halftone.layers.correction import OUTPUT_CORRECTION, OutputCorrection, by_channel, channel_dim
from halftone.layers.form import LayerForm
from halftone.layers.quantized import (
    QuantizedConv2d,
    QuantizedLinear,
    is_quantizable,
    quantize_layer,
    quantized_layers,
    set_clock,
    set_mode,
)
from halftone.layers.split import SplitConv2d, split_convolutions
from halftone.layers.table import SlotRow, SlotTable

__all__ = [
    "OUTPUT_CORRECTION",
    "ExecutionMode",
    "LayerForm",
    "OutputCorrection",
    "QuantizedConv2d",
    "QuantizedLayer",
    "QuantizedLinear",
    "SlotRow",
    "SlotTable",
    "SplitConv2d",
    "by_channel",
    "channel_dim",
    "is_quantizable",
    "quantize_layer",
    "quantized_layers",
    "set_clock",
    "set_mode",
    "split_convolutions",
]
