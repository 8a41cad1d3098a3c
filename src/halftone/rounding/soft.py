"""Weights between two integers: what learned rounding optimizes, and its schedule.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (2020, arXiv 2004.10568), equations 21 to
24: ``w = s * clamp(floor(w / s) + h(a), -limit, limit)`` with the rectified sigmoid ``h(a) = clamp(1.2 sigmoid(a) -
0.1, 0, 1)`` and the regularizer ``sum (1 - |2h - 1|**beta)``, whose beta falls so that every h ends at 0 or 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from halftone.errors import NonFiniteError
from halftone.numerics import weight_limit

__all__ = ["Schedule", "SoftWeight", "optimize"]

_STRETCH, _SHIFT = 1.2, -0.1


class SoftWeight:
    """One layer's weights, each somewhere between the integer below and the integer above it.

    Args:
        weight: floating point, any shape ``[out, ...]``.
        scale: float32 ``[out]``.
        num_bits: 2 to 8.

    Attributes:
        alpha: float32 parameter of the weight's shape, started so that `value` is the weight itself (where its grid
            reaches so far).
    """

    def __init__(self, weight: Tensor, scale: Tensor, num_bits: int):
        self.scale = scale.view(-1, *[1] * (weight.dim() - 1))
        self.limit = weight_limit(num_bits)
        scaled = weight.detach().to(torch.float32) / self.scale
        self.floor = torch.floor(scaled)
        self.alpha = torch.nn.Parameter(_inverse(scaled - self.floor))

    def fraction(self) -> Tensor:
        """h, in 0 to 1, shape of the weight."""
        return (torch.sigmoid(self.alpha) * _STRETCH + _SHIFT).clamp(0.0, 1.0)

    def value(self, fraction: Tensor) -> Tensor:
        """The weight in float32 for a given h."""
        return (self.floor + fraction).clamp(-self.limit, self.limit) * self.scale

    def integers(self) -> Tensor:
        """int8: h taken to the nearer of 0 and 1."""
        return (self.floor + (self.fraction() >= 0.5)).clamp(-self.limit, self.limit).to(torch.int8)


@dataclass(frozen=True)
class Schedule:
    """How long, how fast, and how the regularizer sets in.

    Attributes:
        iterations: steps of Adam.
        learning_rate: of Adam.
        regularization: lambda, for a loss in which rounding to nearest has an error of 1 per weight.
        warmup: share of the iterations without the regularizer.
        start, end: beta at the end of the warm-up and in the last iteration.
    """

    iterations: int
    learning_rate: float
    regularization: float
    warmup: float = 0.2
    start: float = 20.0
    end: float = 2.0

    def beta(self, iteration: int) -> float | None:
        """Exponent of the regularizer in an iteration; None during the warm-up."""
        first = int(self.warmup * self.iterations)
        if iteration < first:
            return None
        passed = (iteration - first) / max(1, self.iterations - 1 - first)
        return self.start + (self.end - self.start) * passed


def optimize(
    soft: Sequence[SoftWeight], loss_of: Callable[[Sequence[Tensor]], Tensor], schedule: Schedule, name: str
) -> None:
    """Moves the alphas, with Adam, to where the loss is small and every h is near 0 or 1.

    Args:
        loss_of: the reconstruction error for the given h of each weight; differentiable.
        name: of what is being rounded, for messages.

    Raises:
        NonFiniteError: the loss became NaN or infinite.
    """
    optimizer = torch.optim.Adam([weight.alpha for weight in soft], lr=schedule.learning_rate)
    for iteration in range(schedule.iterations):
        fractions = [weight.fraction() for weight in soft]
        loss = loss_of(fractions)
        beta = schedule.beta(iteration)
        if beta is not None:
            loss = loss + schedule.regularization * sum(_undecided(fraction, beta) for fraction in fractions)
        if not bool(torch.isfinite(loss)):
            raise NonFiniteError(f"The rounding of {name} became NaN or infinite in iteration {iteration + 1}.")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _undecided(fraction: Tensor, beta: float) -> Tensor:
    return (1.0 - (2.0 * fraction - 1.0).abs().pow(beta)).sum()


def _inverse(fraction: Tensor) -> Tensor:
    """The alpha whose h is ``fraction``."""
    inner = (fraction - _SHIFT) / _STRETCH
    return torch.log(inner / (1.0 - inner))
