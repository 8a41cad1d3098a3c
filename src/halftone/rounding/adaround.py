"""AdaRound: each weight up or down, whichever the outputs of its layer, or of its whole block, ask for.

Nagel et al. 2020 (arXiv 2004.10568) for layers; Li et al., "BRECQ" (2021, arXiv 2102.05426) for blocks, whose layers
are rounded together so that one makes good what another does. Inputs and outputs are the full-precision model's.

For a single layer the error depends on its inputs through their second moments alone, so that every iteration sees all
inputs at once, at the cost of one product of the weight's error with the moments.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from halftone.errors import NonFiniteError
from halftone.numerics import quantize_weight
from halftone.rounding.calls import CallCache, to_float32
from halftone.rounding.moments import SecondMoments, grouped_weight, moment_shape, moments_bytes
from halftone.rounding.rule import Unit, UnitCost, check_counts, check_option, register_rounding
from halftone.rounding.soft import Schedule, SoftWeight, optimize

__all__ = ["AdaRound"]

# Measured (tests/rounding/test_rounding_memory.py): alpha and its moments, what each function of it keeps, gradients.
_BYTES_PER_LAYER_WEIGHT = 90
_BYTES_PER_BLOCK_WEIGHT = 60
_BEYOND_GRAPH = 2.5  # what a block's backward takes at most, by what autograd keeps: gradients, reordered images
_OPERATIONS_PER_WEIGHT = 2000  # as many take the time of one weight's elementwise functions in an iteration
_BYTES_PER_PART = 256 * 1024**2  # of a batch; larger parts are hardly faster


@register_rounding("adaround")
class AdaRound:
    """Learned rounding.

    Args:
        num_samples: (prompt, step) pairs of the full-precision trajectory that are seen.
        blocks: 1 to round the layers of a block together, 0 to round every layer by itself.
        iterations: steps of Adam for each unit.
        batch_size: rows of a block's inputs in each iteration.
        learning_rate: of Adam.
        regularization: lambda, how strongly every weight is drawn to one of its two integers; see `Schedule`.
        positions_per_row: tokens or pixels seen of each row by a single layer; see `SecondMoments`.
    """

    any_grid = False

    def __init__(
        self,
        num_samples: int = 256,
        blocks: int = 1,
        iterations: int = 1000,
        batch_size: int = 32,
        learning_rate: float = 1e-2,
        regularization: float = 100.0,
        positions_per_row: int = 256,
    ):
        counts = {"iterations": iterations, "batch_size": batch_size, "positions_per_row": positions_per_row}
        check_counts("adaround", num_samples=num_samples, **counts)
        check_option("adaround", "blocks", blocks, blocks in (0, 1), "0 or 1")
        check_option("adaround", "learning_rate", learning_rate, 0 < learning_rate <= 1, "a number over 0 and up to 1")
        check_option("adaround", "regularization", regularization, 0 <= regularization < 1e6, "a number, 0 or more")
        self.num_samples, self.blocks, self.batch_size = num_samples, bool(blocks), batch_size
        self.positions_per_row = positions_per_row
        self.schedule = Schedule(iterations, learning_rate, regularization)

    def memory_bytes(self, unit: Unit, bytes_per_row: int, rows: int) -> int:
        if unit.is_layer:
            return sum(moments_bytes(layer) for layer in unit.layers.values())
        return bytes_per_row * rows

    def cost(self, unit: Unit, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> UnitCost:
        """What learning needs of each weight; for a block also its copy in float32, and a part of a batch."""
        weights, iterations = sum(layer.weight.numel() for layer in unit.layers.values()), self.schedule.iterations
        if unit.is_layer:
            ((_, layer),) = unit.layers.items()
            operations = iterations * weights * (6 * moment_shape(layer)[1] + _OPERATIONS_PER_WEIGHT)
            return UnitCost(_BYTES_PER_LAYER_WEIGHT * weights, operations)
        kept, flops = graph_cost(unit, args, kwargs)
        per_row = int(_BEYOND_GRAPH * kept)
        part = max(per_row, min(_BYTES_PER_PART, self.batch_size * per_row))
        copied = 4 * sum(parameter.numel() for parameter in unit.module.parameters())
        operations = iterations * (3 * self.batch_size * flops + _OPERATIONS_PER_WEIGHT * weights)
        return UnitCost(_BYTES_PER_BLOCK_WEIGHT * weights + copied + part, operations)

    def collector(self, unit: Unit, rows: int, kept_rows: int) -> SecondMoments | CallCache:
        if unit.is_layer:
            (name, layer), *_ = unit.layers.items()
            return SecondMoments(layer, name, self.positions_per_row)
        return CallCache(rows, kept_rows)

    def round(
        self,
        unit: Unit,
        scales: Mapping[str, Tensor],
        num_bits: int,
        seen: SecondMoments | CallCache,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        nearest = {n: quantize_weight(layer.weight, num_bits, scales[n])[0] for n, layer in unit.layers.items()}
        error: _LayerError | _BlockError
        if isinstance(seen, SecondMoments):
            error = _LayerError(unit, seen)
        else:
            error = _BlockError(unit, seen, self.batch_size, generator)
        before = error.whole(_values(nearest, scales))
        if not math.isfinite(before):
            raise NonFiniteError(f"The outputs of {unit.name} became NaN or infinite with rounded weights.")
        if before <= 0:  # weights on the grid, or no input at all; below zero by the moments' own rounding
            return nearest
        soft = {name: SoftWeight(layer.weight, scales[name], num_bits) for name, layer in unit.layers.items()}
        per_weight = sum(weight.alpha.numel() for weight in soft.values()) / before

        def loss_of(fractions: Sequence[Tensor]) -> Tensor:
            pairs = zip(soft.items(), fractions, strict=True)
            return per_weight * error.part({name: weight.value(h) for (name, weight), h in pairs})

        with torch.enable_grad():
            optimize(list(soft.values()), loss_of, self.schedule, unit.name)
        learned = {name: weight.integers() for name, weight in soft.items()}
        # A schedule that is too short can end worse than it began.
        return learned if error.whole(_values(learned, scales)) < before else nearest


def _values(integers: Mapping[str, Tensor], scales: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value * scales[name].view(-1, *[1] * (value.dim() - 1)) for name, value in integers.items()}


class _LayerError:
    """Mean squared error of a layer's output, summed over channels, by the second moments of its inputs."""

    def __init__(self, unit: Unit, seen: SecondMoments):
        ((self.name, self.layer),) = unit.layers.items()
        self.moments = seen.mean()

    def part(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Over all inputs; its gradient is that of the quadratic form, at half the cost of deriving it twice."""
        off = grouped_weight(self.layer, weights[self.name] - self.layer.weight.detach().to(torch.float32))
        slope = torch.bmm(off.detach(), self.moments)
        return 2.0 * (slope * off).sum() - (slope * off.detach()).sum()

    @torch.no_grad()
    def whole(self, weights: Mapping[str, Tensor]) -> float:
        return float(self.part(weights))


class _BlockError:
    """Mean squared error of a block's outputs, summed over channels, on the calls that were kept."""

    def __init__(self, unit: Unit, seen: CallCache, batch_size: int, generator: torch.Generator):
        self.unit, self.seen, self.batch_size, self.generator = unit, seen, batch_size, generator
        self.block = copy.deepcopy(unit.module).to(torch.float32).eval().requires_grad_(False)
        self.device = next(self.block.parameters()).device
        self.parameters = _parameter_names(unit)
        args, kwargs, _ = seen.rows(torch.tensor([0]), self.device)
        per_row = _BEYOND_GRAPH * graph_cost(unit, args, kwargs)[0]
        self.rows_at_a_time = max(1, min(batch_size, int(_BYTES_PER_PART / max(1.0, per_row))))

    def part(self, weights: Mapping[str, Tensor]) -> Tensor:
        """On a batch drawn at random. The gradient is gathered from as many rows at a time as fit in memory, since
        autograd keeps the inputs of everything in the block."""
        rows = torch.randperm(self.seen.kept, generator=self.generator)[: self.batch_size].sort().values
        leaves = {name: value.detach().requires_grad_() for name, value in weights.items()}
        total = torch.zeros((), device=self.device)
        for some in rows.tensor_split(-(-len(rows) // self.rows_at_a_time)):
            error = self._error(leaves, some) * (len(some) / len(rows))
            error.backward()
            total += error.detach()
        for name, leaf in leaves.items():
            if leaf.grad is not None:
                total = total + (leaf.grad * (weights[name] - weights[name].detach())).sum()  # adds 0 to the value
        return total

    @torch.no_grad()
    def whole(self, weights: Mapping[str, Tensor]) -> float:
        """On all calls that were kept."""
        parts = torch.arange(self.seen.kept).split(self.rows_at_a_time)
        return sum(float(self._error(weights, rows)) * len(rows) for rows in parts) / self.seen.kept

    def _error(self, weights: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        args, kwargs, expected = self.seen.rows(rows, self.device)
        replaced = {self.parameters[name]: value for name, value in weights.items()}
        output = torch.func.functional_call(self.block, replaced, args, kwargs)
        pairs = zip(_tensors(to_float32(output)), _tensors(expected), strict=True)
        errors = [(found - wanted).square().sum(dim=_channels(found)).mean() for found, wanted in pairs]
        return torch.stack(errors).sum()


def _parameter_names(unit: Unit) -> dict[str, str]:
    """Names of the weights within the unit's module, by the names of their layers in the denoiser."""
    prefix = len(unit.name) + 1
    return {name: f"{name[prefix:]}.weight" for name in unit.layers}


def graph_cost(unit: Unit, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, int]:
    """Of a block's call in float32: bytes that autograd keeps for the gradients of the weights, other than weights; and
    floating-point operations."""
    module = unit.module
    state = {name: to_float32(value.detach()) for name, value in [*module.named_parameters(), *module.named_buffers()]}
    for name in _parameter_names(unit).values():
        state[name].requires_grad_()
    own = {value.untyped_storage()._cdata for value in state.values()}
    kept: dict[int, int] = {}

    def keep(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return saved

    flops = FlopCounterMode(display=False)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved), flops:
        graph = torch.func.functional_call(module, state, *to_float32((args, dict(kwargs))))
    del graph  # what it kept has an address of its own until now
    return sum(kept.values()), flops.get_total_flops()


def _channels(output: Tensor) -> int:
    """Dimension of the channels: second of an image, last of tokens."""
    return 1 if output.dim() == 4 else -1


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors of a block's output: one, or several in a tuple in which some may be None."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping | list | tuple):
        for item in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(item)
