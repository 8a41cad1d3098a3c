"""Rounding to nearest: no calibration, and the ablation of every other rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from halftone.numerics import quantize_weight
from halftone.rounding.rule import Collector, Unit, register_rounding

__all__ = ["Nearest"]


@register_rounding("nearest")
class Nearest:
    """Every weight goes to the nearest integer of its channel's grid."""

    num_samples = 0
    blocks = False

    def memory_bytes(self, unit: Unit, bytes_per_row: int, rows: int) -> int:
        return 0

    def collector(self, unit: Unit, rows: int, kept_rows: int) -> Collector:
        raise NotImplementedError("rounding to nearest looks at nothing but the weights")

    def round(
        self, unit: Unit, scales: Mapping[str, Tensor], num_bits: int, seen: Any, generator: torch.Generator
    ) -> dict[str, Tensor]:
        return {name: quantize_weight(layer.weight, num_bits, scales[name])[0] for name, layer in unit.layers.items()}
