"""What a quantized layer is besides its float twin's shape, its bits and its slots."""

from __future__ import annotations

from dataclasses import dataclass

from halftone.kernels import ROW_SCALES, WEIGHT_GROUPS, WIDE_WEIGHTS
from halftone.recipe import Recipe

__all__ = ["LayerForm"]


@dataclass(frozen=True)
class LayerForm:
    """How the layers of a recipe are built.

    Attributes:
        measured: whether the range of an input is measured in each call, for each row of a linear layer and each image
            of a convolution, instead of taken from the table. The table then has one row, whose bits alone count.
        symmetric: whether a measured range is made symmetric around zero.
        group_size: weights of an output channel that share a scale, in the order of memory; None for all of them.
        has_weight_zero_points: whether the weights' grid is asymmetric.
    """

    measured: bool = False
    symmetric: bool = False
    group_size: int | None = None
    has_weight_zero_points: bool = False

    @classmethod
    def of(cls, recipe: Recipe) -> LayerForm:
        """The form of a recipe's layers."""
        activations, weights = recipe.activations, recipe.weights
        return cls(
            measured=activations.granularity == "token",
            symmetric=activations.symmetric,
            group_size=weights.group_size,
            has_weight_zero_points=not weights.symmetric,
        )

    def features(self, weight_bits: int) -> frozenset[str]:
        """What a kernel has to know to run layers with weights of that many bits; see `halftone.kernels.select`."""
        needed = {
            ROW_SCALES: self.measured,
            WEIGHT_GROUPS: self.group_size is not None,
            WIDE_WEIGHTS: self.has_weight_zero_points and weight_bits == 8,
        }
        return frozenset(feature for feature, is_needed in needed.items() if is_needed)
