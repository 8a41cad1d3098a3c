"""GPTQ: columns rounded one after the other, each error made good by the columns that are still free.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2022, arXiv
2210.17323), algorithm 1, after Optimal Brain Surgeon. It needs the second moments of the layer's inputs, no gradients
and one pass over the columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from halftone.errors import NonFiniteError
from halftone.numerics import weight_limit
from halftone.rounding.moments import SecondMoments, grouped_weight, moment_shape, moments_bytes
from halftone.rounding.rule import Unit, UnitCost, check_counts, check_option, register_rounding
from halftone.weight_grid import WeightGrid

__all__ = ["GPTQ", "gptq"]

_TRIES = 8
_GATHERED = 64  # rows at a time
_OPERATIONS_PER_COLUMN = 1e6  # as many take the time of the calls for a column


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
    any_grid = True

    def __init__(
        self,
        num_samples: int = 256,
        damping: float = 0.01,
        ordered: int = 1,
        block_size: int = 128,
        positions_per_row: int = 256,
    ):
        check_counts("gptq", num_samples=num_samples, block_size=block_size, positions_per_row=positions_per_row)
        check_option("gptq", "damping", damping, 0 < damping <= 1, "a number over 0 and up to 1")
        check_option("gptq", "ordered", ordered, ordered in (0, 1), "0 or 1")
        self.num_samples, self.damping, self.ordered = num_samples, damping, bool(ordered)
        self.block_size, self.positions_per_row = block_size, positions_per_row

    def memory_bytes(self, unit: Unit, bytes_per_row: int, rows: int) -> int:
        return sum(moments_bytes(layer) for layer in unit.layers.values())

    def cost(self, unit: Unit, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> UnitCost:
        """One group's moments once more, factorized; copies of the weights and of their grid, as it may be."""
        ((_, layer),) = unit.layers.items()
        groups, length, _ = moment_shape(layer)
        peak_bytes = 4 * length * (length + 2 * _GATHERED) + 32 * layer.weight.numel()
        factorizing, rounding = groups * length**3 / 3, 2 * layer.weight.numel() * length
        return UnitCost(peak_bytes, factorizing + rounding + groups * length * _OPERATIONS_PER_COLUMN)

    def collector(self, unit: Unit, rows: int, kept_rows: int) -> SecondMoments:
        (name, layer), *_ = unit.layers.items()
        return SecondMoments(layer, name, self.positions_per_row)

    def round(
        self,
        unit: Unit,
        scales: Mapping[str, Tensor | WeightGrid],
        num_bits: int,
        seen: SecondMoments,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        (name, layer), *_ = unit.layers.items()
        moments = seen.mean()
        weights = grouped_weight(layer, layer.weight.detach().to(torch.float32))
        steps, zero_points = _by_column(scales[name], layer, len(moments))
        options = num_bits, self.damping, self.ordered, self.block_size
        try:
            integers = [
                gptq(weight, step, moment, *options, zero)
                for weight, step, moment, zero in zip(weights, steps, moments, zero_points, strict=True)
            ]
        except NonFiniteError as error:
            raise NonFiniteError(f"The rounding of layer {name} failed: {error}") from error
        return {name: torch.stack(integers).reshape(layer.weight.shape)}


def _by_column(
    grid: Tensor | WeightGrid, layer: nn.Linear | nn.Conv2d, groups: int
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """Scales and zero points (if any) as `gptq` takes them, for each group of a convolution."""
    if isinstance(grid, Tensor):
        return grid.view(groups, -1), [None] * groups
    shape = layer.weight.shape
    scale, zero_point = (
        None if part is None else grouped_weight(layer, grid.spread(part, shape).expand(shape).to(torch.float32))
        for part in (grid.scale, grid.zero_point)
    )
    assert scale is not None
    return scale, [None] * groups if zero_point is None else list(zero_point)


def gptq(
    weight: Tensor,
    scale: Tensor,
    moments: Tensor,
    num_bits: int,
    damping: float = 0.01,
    ordered: bool = True,
    block_size: int = 128,
    zero_point: Tensor | None = None,
) -> Tensor:
    """Integers ``q`` whose ``scale * q`` has a small output error on inputs of the given second moments.

    Columns without input (a zero on the diagonal) are rounded to nearest and push their error nowhere.

    The paper takes what a column's error adds to the others from a factor of the inverse moments. A factor of the
    moments themselves tells the same (Chee et al., "QuIP", 2023, arXiv 2307.13304, theorem 6): it needs one matrix in
    memory instead of four, and single precision is enough for it.

    Args:
        weight: floating point ``[out, d]``.
        scale: ``[out]``, or ``[out, d]`` where columns have scales of their own; of the weight's dtype.
        moments: ``E[x x^T]`` times any number, ``[d, d]``, of the weight's dtype.
        num_bits: 2 to 8.
        zero_point: ``[out, d]`` in the weight's dtype, of an asymmetric grid, with a scale for each column: the error
            is then that of ``scale * (q - zero_point)``. See `halftone.weight_grid`.

    Returns:
        int8 ``[out, d]``.

    Raises:
        NonFiniteError: the moments cannot be factorized, however much they are damped.
    """
    diagonal = moments.diagonal()
    first_to_last = diagonal.argsort(descending=True, stable=True) if ordered else torch.arange(len(diagonal))
    order = first_to_last.to(weight.device).flip(0)  # so that a lower triangular factor goes with it
    factor = _factor(moments, order, damping)
    columns = _Columns(
        scale.view(-1, 1).expand(weight.shape) if scale.dim() == 1 else scale[:, order],
        None if zero_point is None else zero_point[:, order],
        weight_limit(num_bits),
    )
    return _round_columns(weight[:, order], columns, factor, block_size)[:, order.argsort()]


class _Columns(NamedTuple):
    """The grid of every column: float ``[out, d]``, and the largest code."""

    scale: Tensor
    zero_point: Tensor | None
    limit: int

    def round(self, values: Tensor, column: int) -> tuple[Tensor, Tensor]:
        """Codes of what a column should be, and what they stand for."""
        scale = self.scale[:, column]
        if self.zero_point is None:
            codes = torch.round(values / scale).clamp(-self.limit, self.limit)
            return codes, codes * scale
        zero_point = self.zero_point[:, column]
        codes = (torch.round(values / scale) + zero_point).clamp(-self.limit - 1, self.limit)
        return codes, (codes - zero_point) * scale


def _round_columns(weight: Tensor, columns: _Columns, factor: Tensor, block_size: int) -> Tensor:
    """From the last column to the first; what a column is rounded from makes good the errors of those behind it.

    Args:
        factor: unit lower triangular ``T`` with ``T D T^T`` the damped moments.
    """
    integers, errors = torch.empty_like(weight, dtype=torch.int8), torch.empty_like(weight)
    for stop in range(weight.shape[1], 0, -block_size):
        start = max(0, stop - block_size)
        wanted = weight[:, start:stop] + errors[:, stop:] @ factor[stop:, start:stop]
        for column in reversed(range(start, stop)):
            inside = errors[:, column + 1 : stop] @ factor[column + 1 : stop, column]
            codes, real = columns.round(wanted[:, column - start] + inside, column)
            integers[:, column] = codes.to(torch.int8)
            errors[:, column] = weight[:, column] - real
    return integers


def _factor(moments: Tensor, order: Tensor, damping: float) -> Tensor:
    """Unit lower triangular ``T`` with ``T D T^T = H + damping``, ``H`` being the moments with rows and columns in the
    given order; damped ten times more for as long as that fails. Takes the memory of one matrix."""
    mean = float(moments.diagonal().double().mean())
    dead = moments.diagonal()[order] == 0
    matrix = torch.empty_like(moments).mT  # by columns, as LAPACK does it: it is factorized in its place
    failed = torch.empty((), dtype=torch.int32, device=moments.device)
    for attempt in range(_TRIES):
        _gather(moments, order, mean or 1.0, matrix.mT)
        matrix.diagonal().add_(torch.where(dead, 1.0, damping * 10.0**attempt))
        torch.linalg.cholesky_ex(matrix, out=(matrix, failed))
        if not bool(failed) and all(bool(torch.isfinite(extreme)) for extreme in matrix.mT.aminmax()):
            return matrix.div_(matrix.diagonal().clone())
    raise NonFiniteError("the second moments of its inputs cannot be factorized")


def _gather(moments: Tensor, order: Tensor, divisor: float, out: Tensor) -> None:
    """Rows and columns in another order, divided by a number; a few rows at a time, to need no third matrix."""
    for start in range(0, len(order), _GATHERED):
        rows = moments.index_select(0, order[start : start + _GATHERED]).index_select(1, order)
        torch.div(rows, divisor, out=out[start : start + _GATHERED])
