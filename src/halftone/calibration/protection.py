"""Which layers stay in floating point: those whose rounding moves the denoiser's prediction most, under a budget.

Rounding errors of different layers are all but independent, so that the squares of what each does alone add up to the
square of what all do together. What a layer costs is its share of the multiplications. The most squared error for so
many multiplications is a knapsack problem, and two greedy choices are compared: by squared error for each
multiplication, and by squared error alone. The first one up to the first layer that does not fit, and that layer too,
would be at least as good as any choice within the budget; the second one begins with a layer at least as harmful as
that. So the better of the two has at least half of what the best choice has. The errors are measured
(`protection_scan`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

__all__ = ["LayerErrors", "LayerShares", "most_harmful", "settled"]


class LayerShares(NamedTuple):
    """What a layer has of the sums over all layers.

    Attributes:
        error: of the squared errors.
        operations: of the multiplications.
    """

    error: float
    operations: float


@dataclass(frozen=True)
class LayerErrors:
    """What the rounding of each layer alone does to the prediction.

    Attributes:
        names: of the layers, in module order.
        squared: square of the norm of the error of the prediction.
        multiplications: that the layer takes.
    """

    names: tuple[str, ...]
    squared: tuple[float, ...]
    multiplications: tuple[int, ...]

    def shares(self, name: str) -> LayerShares:
        """Of one layer; a sum that is 0 is divided among none."""
        layer = self.names.index(name)
        error = self.squared[layer] / (math.fsum(self.squared) or 1.0)
        return LayerShares(settled(error), settled(self.multiplications[layer] / (sum(self.multiplications) or 1)))


def most_harmful(errors: LayerErrors, operations: float) -> tuple[str, ...]:
    """The layers, in module order, that should stay in floating point.

    A layer is worth it only if it makes more than its fair share of the squared error, 1 / number of layers; so there
    is always one that is not taken. Of equal layers the first goes first.

    Args:
        operations: the largest share of the multiplications that they may have together.
    """
    squared, total = errors.squared, math.fsum(errors.squared)
    worth = [layer for layer, error in enumerate(squared) if error * len(squared) > total]
    orders = (
        sorted(worth, key=lambda layer: (-squared[layer] / max(1, errors.multiplications[layer]), layer)),
        sorted(worth, key=lambda layer: (-squared[layer], layer)),
    )
    # As it is written: 0.29 of 100 are 29, though the float 0.29 times 100 is a little less.
    limit = Fraction(repr(float(operations))) * sum(errors.multiplications)
    choices = [_fitting(order, errors.multiplications, limit) for order in orders]
    best = max(choices, key=lambda choice: math.fsum(squared[layer] for layer in choice))
    return tuple(errors.names[layer] for layer in sorted(best))


def _fitting(order: Iterable[int], multiplications: tuple[int, ...], limit: Fraction) -> list[int]:
    """Layers one after the other, as long as they are within the limit; what does not fit is passed over."""
    taken, used = [], 0
    for layer in order:
        if used + multiplications[layer] <= limit:
            taken.append(layer)
            used += multiplications[layer]
    return taken


def settled(value: float) -> float:
    """Six digits: the last bits of a sum depend on where in memory its numbers lie, and a run that is resumed has to
    choose, and to tell, the same."""
    return float(f"{value:.6g}")
