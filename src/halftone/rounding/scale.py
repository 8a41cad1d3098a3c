"""Scales (and zero points) of a weight: from its range, or from a search for the least error."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from halftone.errors import InputError, suggest
from halftone.weight_grid import WeightGrid, by_group, range_grid

__all__ = ["SCALE_SEARCHES", "weight_grid", "weight_scale"]

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
    return weight_grid(weight, num_bits, search).scale


def weight_grid(
    weight: Tensor, num_bits: int, search: str = "range", group_size: int | None = None, symmetric: bool = True
) -> WeightGrid:
    """`weight_scale` for every kind of grid. Zero points are those of the range: a range that shrinks towards zero by a
    fraction of its scale keeps its zero point.

    Args:
        group_size: see `WeightGrid`.

    Raises:
        NonFiniteError, InputError: as `weight_scale`.
    """
    if search not in SCALE_SEARCHES:
        raise InputError(f"unknown search {search!r} for a weight's scale; {suggest(search, SCALE_SEARCHES)}")
    grid = range_grid(weight, num_bits, group_size, symmetric)
    if search == "range":
        return grid
    rows = by_group(weight, group_size)
    zero = torch.zeros_like(grid.scale) if grid.zero_point is None else grid.zero_point.to(torch.float32)
    bounds = torch.stack([grid.lowest - zero, grid.highest - zero]).view(2, -1, 1)
    step = max(1, _CHUNK // max(1, rows.shape[1]))
    parts = zip(rows.split(step), grid.scale.view(-1).split(step), bounds.split(step, dim=1), strict=True)
    scale = torch.cat([_least_error(part, largest, *limits) for part, largest, limits in parts])
    return dataclasses.replace(grid, scale=scale.view(grid.scale.shape))


def _least_error(rows: Tensor, largest: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Best scale of each row of ``rows`` (float32 ``[n, d]``), at most ``largest`` (float32 ``[n]``).

    Args:
        low, high: float32 ``[n, 1]``, the bounds of the integers.
    """
    best, error = largest.clone(), _error(rows, largest, largest, low, high)

    def consider(scale: Tensor) -> None:
        nonlocal best, error
        candidate = torch.where((scale > 0) & (scale <= largest), scale, largest)
        found = _error(rows, candidate, largest, low, high)
        better = found < error
        best, error = torch.where(better, candidate, best), torch.where(better, found, error)

    for fraction in _COARSE[1:]:
        consider(largest * fraction)
    around = best
    for fraction in sorted(_FINE, reverse=True):
        consider(around + largest * fraction)
    return best


def _error(rows: Tensor, scale: Tensor, unit: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Sum of ``|(w - w') / unit| ** 2.4`` of each row, float32 ``[n]``; the unit keeps tiny weights from vanishing."""
    scaled = rows / scale[:, None]
    off = scaled - torch.round(scaled).clamp(low, high)
    return off.abs().pow(_EXPONENT).sum(dim=1) * (scale / unit).pow(_EXPONENT)
