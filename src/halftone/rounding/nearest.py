"""Rounding to nearest: no calibration, and the ablation of every other rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from halftone.rounding.rule import Collector, Unit, UnitCost, register_rounding
from halftone.weight_grid import WeightGrid

__all__ = ["Nearest"]


@register_rounding("nearest")
class Nearest:
    """Every weight goes to the nearest number of its grid."""

    num_samples = 0
    blocks = False
    any_grid = True

    def memory_bytes(self, unit: Unit, bytes_per_row: int, rows: int) -> int:
        return 0

    def cost(self, unit: Unit, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> UnitCost:
        return UnitCost(0, 0.0)

    def collector(self, unit: Unit, rows: int, kept_rows: int) -> Collector:
        raise NotImplementedError("rounding to nearest looks at nothing but the weights")

    def round(
        self,
        unit: Unit,
        scales: Mapping[str, Tensor | WeightGrid],
        num_bits: int,
        seen: Any,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        grids = {
            name: WeightGrid(num_bits, scale) if isinstance(scale, Tensor) else scale for name, scale in scales.items()
        }
        return {name: grids[name].codes(layer.weight) for name, layer in unit.layers.items()}
