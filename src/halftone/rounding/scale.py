"""The scale of each output channel of a weight: from its range, or from a search for the least error."""

from __future__ import annotations

import torch
from torch import Tensor

from halftone.errors import InputError, suggest
from halftone.numerics import quantize_weight, weight_limit

__all__ = ["SCALE_SEARCHES", "weight_scale"]

SCALE_SEARCHES = ("range", "mse")

#: Exponent of the error that the search minimizes. Above 2, as usual in the field (METHOD: L_2.4): the few large
#: weights that a smaller scale clips count more than their squared error says.
_EXPONENT = 2.4
#: Fractions of the range's scale that are tried: one grid, then a finer one around the best.
_COARSE = [1.0 - 0.05 * step for step in range(17)]
_FINE = [0.01 * step for step in (-4, -3, -2, -1, 1, 2, 3, 4)]
_CHUNK = 1 << 22  # weights at a time


def weight_scale(weight: Tensor, num_bits: int, search: str = "range") -> Tensor:
    """Scales of symmetric signed weights, one per output channel.

    ``range``: the largest magnitude of the channel is the largest integer. ``mse``: the fraction of that scale, from
    0.16 to 1, with the least ``sum |w - s * clamp(round(w / s))| ** 2.4``; a tie leaves the one tried first.

    Args:
        weight: floating point, ``[out, ...]``.
        num_bits: 2 to 8.

    Returns:
        float32 ``[out]``; 1 for a channel that is all zero.

    Raises:
        NonFiniteError: the weight has NaN or infinite elements.
        InputError: ``num_bits`` is not 2 to 8, or the search is unknown.
    """
    if search not in SCALE_SEARCHES:
        raise InputError(f"unknown search {search!r} for a weight's scale; {suggest(search, SCALE_SEARCHES)}")
    scale = quantize_weight(weight, num_bits)[1]
    if search == "range":
        return scale
    rows = weight.detach().to(torch.float32).flatten(1)
    step = max(1, _CHUNK // max(1, rows.shape[1]))
    parts = zip(rows.split(step), scale.split(step), strict=True)
    return torch.cat([_least_error(part, largest, weight_limit(num_bits)) for part, largest in parts])


def _least_error(rows: Tensor, largest: Tensor, limit: int) -> Tensor:
    """Best scale of each row of ``rows`` (float32 ``[n, d]``), at most ``largest`` (float32 ``[n]``)."""
    best, error = largest.clone(), _error(rows, largest, largest, limit)

    def consider(scale: Tensor) -> None:
        nonlocal best, error
        candidate = torch.where((scale > 0) & (scale <= largest), scale, largest)
        found = _error(rows, candidate, largest, limit)
        better = found < error
        best, error = torch.where(better, candidate, best), torch.where(better, found, error)

    for fraction in _COARSE[1:]:
        consider(largest * fraction)
    around = best
    for fraction in sorted(_FINE, reverse=True):
        consider(around + largest * fraction)
    return best


def _error(rows: Tensor, scale: Tensor, unit: Tensor, limit: int) -> Tensor:
    """Sum of ``|(w - w') / unit| ** 2.4`` of each row, float32 ``[n]``; the unit keeps tiny weights from vanishing."""
    scaled = rows / scale[:, None]
    off = scaled - torch.round(scaled).clamp(-limit, limit)
    return off.abs().pow(_EXPONENT).sum(dim=1) * (scale / unit).pow(_EXPONENT)
