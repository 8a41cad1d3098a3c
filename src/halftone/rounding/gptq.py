"""GPTQ: columns rounded one after the other, each error made good by the columns that are still free.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2022, arXiv
2210.17323), algorithm 1, after Optimal Brain Surgeon. It needs the second moments of the layer's inputs, no gradients
and one pass over the columns.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from halftone.errors import NonFiniteError
from halftone.numerics import weight_limit
from halftone.rounding.moments import SecondMoments, grouped_weight, moments_bytes
from halftone.rounding.rule import Unit, check_option, is_count, register_rounding

__all__ = ["GPTQ", "gptq"]

_TRIES = 8


@register_rounding("gptq")
class GPTQ:
    """Second-order rounding, layer by layer.

    Args:
        num_samples: (prompt, step) pairs of the full-precision trajectory whose inputs are seen.
        damping: share of the mean diagonal element that is added to the diagonal of the moments.
        ordered: 1 to round the columns with the largest inputs first, 0 to go from left to right.
        block_size: columns whose errors are gathered before they reach the rest; speed only.
        positions_per_row: tokens or pixels seen of each row; see `SecondMoments`.
    """

    blocks = False

    def __init__(
        self,
        num_samples: int = 256,
        damping: float = 0.01,
        ordered: int = 1,
        block_size: int = 128,
        positions_per_row: int = 256,
    ):
        check_option("gptq", "num_samples", num_samples, is_count(num_samples), "an integer, at least 1")
        check_option("gptq", "damping", damping, 0 < damping <= 1, "a number over 0 and up to 1")
        check_option("gptq", "ordered", ordered, ordered in (0, 1), "0 or 1")
        check_option("gptq", "block_size", block_size, is_count(block_size), "an integer, at least 1")
        check_option("gptq", "positions_per_row", positions_per_row, is_count(positions_per_row), "1 or more")
        self.num_samples, self.damping, self.ordered = num_samples, damping, bool(ordered)
        self.block_size, self.positions_per_row = block_size, positions_per_row

    def memory_bytes(self, unit: Unit, bytes_per_row: int, rows: int) -> int:
        return sum(moments_bytes(layer) for layer in unit.layers.values())

    def collector(self, unit: Unit, rows: int, kept_rows: int) -> SecondMoments:
        (name, layer), *_ = unit.layers.items()
        return SecondMoments(layer, name, self.positions_per_row)

    def round(
        self,
        unit: Unit,
        scales: Mapping[str, Tensor],
        num_bits: int,
        seen: SecondMoments,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        (name, layer), *_ = unit.layers.items()
        moments = seen.mean()
        weights = grouped_weight(layer, layer.weight.detach().to(torch.float64))
        steps = scales[name].to(torch.float64).view(len(moments), -1)
        try:
            integers = [
                gptq(weight, step, moment, num_bits, self.damping, self.ordered, self.block_size)
                for weight, step, moment in zip(weights, steps, moments, strict=True)
            ]
        except NonFiniteError as error:
            raise NonFiniteError(f"The rounding of layer {name} failed: {error}") from error
        return {name: torch.stack(integers).reshape(layer.weight.shape)}


def gptq(
    weight: Tensor,
    scale: Tensor,
    moments: Tensor,
    num_bits: int,
    damping: float = 0.01,
    ordered: bool = True,
    block_size: int = 128,
) -> Tensor:
    """Integers ``q`` whose ``scale * q`` has a small output error on inputs of the given second moments.

    Columns without input (a zero on the diagonal) are rounded to nearest and push their error nowhere.

    Args:
        weight: float64 ``[out, d]``.
        scale: float64 ``[out]``.
        moments: ``E[x x^T]``, float64 ``[d, d]``.
        num_bits: 2 to 8.

    Returns:
        int8 ``[out, d]``.

    Raises:
        NonFiniteError: the moments cannot be factorized, however much they are damped.
    """
    order = torch.argsort(moments.diagonal(), descending=True, stable=True) if ordered else None
    if order is not None:
        weight, moments = weight[:, order], moments[order][:, order]
    factor = _factor(moments, damping)
    integers = _round_columns(weight.clone(), scale, factor, weight_limit(num_bits), block_size)
    if order is not None:
        integers = integers[:, torch.argsort(order)]
    return integers


def _round_columns(weight: Tensor, scale: Tensor, factor: Tensor, limit: int, block_size: int) -> Tensor:
    """Algorithm 1 of the paper; ``weight`` is used up.

    Args:
        factor: upper triangular ``U`` with ``U^T U`` the inverse of the damped moments.
    """
    length = weight.shape[1]
    integers = torch.empty_like(weight, dtype=torch.int8)
    for start in range(0, length, block_size):
        stop = min(start + block_size, length)
        errors = torch.empty_like(weight[:, start:stop])
        for column in range(start, stop):
            rounded = torch.round(weight[:, column] / scale).clamp(-limit, limit)
            integers[:, column] = rounded.to(torch.int8)
            error = (weight[:, column] - rounded * scale) / factor[column, column]
            weight[:, column:stop] -= error[:, None] * factor[column, column:stop]
            errors[:, column - start] = error
        weight[:, stop:] -= errors @ factor[start:stop, stop:]
    return integers


def _factor(moments: Tensor, damping: float) -> Tensor:
    """Upper triangular ``U`` with ``U^T U = (H + damping)^-1``; damped ten times more for as long as that fails."""
    mean = float(moments.diagonal().mean())
    dead = moments.diagonal() == 0
    for attempt in range(_TRIES):
        added = damping * 10.0**attempt * mean
        damped = moments + torch.diag(torch.where(dead, 1.0, added).to(moments))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not bool(failed):
            factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not bool(failed) and bool(torch.isfinite(factor).all()):
                return factor
    raise NonFiniteError("the second moments of its inputs cannot be factorized")
