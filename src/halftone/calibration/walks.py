"""Which units are rounded after the same walk through the denoiser, so that all of it stays within a memory budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from halftone.errors import CalibrationError
from halftone.microbatch import batch_size, micro_batches
from halftone.rounding import RoundingRule, Unit, UnitCost

__all__ = ["UnitSize", "Walks", "measure_units", "watching_units"]


@dataclass(frozen=True)
class UnitSize:
    """What a unit needs.

    Attributes:
        row_bytes: of the tensors in its call and output, for one row of the batch.
        cost: of its rounding.
    """

    row_bytes: int
    cost: UnitCost


def measure_units(
    module: nn.Module, units: Sequence[Unit], rule: RoundingRule, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, UnitSize]:
    """Sizes of all units, from one pass of a micro-batch through the denoiser; its tensors may be fake.

    Raises:
        CalibrationError: a unit is never called.
    """
    sizes: dict[str, UnitSize] = {}
    begun: set[str] = set()

    def measure(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        if name in begun:  # the rule calls the unit once more to find out
            return
        begun.add(name)
        size = sum(leaf.nbytes for leaf in tree_leaves((args, dict(kwargs), output)) if isinstance(leaf, Tensor))
        one = next(micro_batches(args, kwargs, 1))
        sizes[name] = UnitSize(-(-size // max(1, batch_size(args, kwargs))), rule.cost(by_name[name], *one))

    by_name = {unit.name: unit for unit in units}
    with watching_units(units, measure):
        module(*args, **kwargs)
    silent = next((unit.name for unit in units if unit.name not in sizes), None)
    if silent is not None:
        raise CalibrationError(f"{silent} is never called by the pipeline; add it to the recipe's exclude list.")
    return sizes


class Walks:
    """Groups of units, in order, each for one walk.

    What the collectors of a group keep and what the rounding of any one of them takes on top is within the budget. A
    unit that needs more than that is alone in its group, and a block keeps as many rows of its calls as there is room
    for, though never fewer than half the budget would hold.

    Args:
        rows: rows of the batch that are walked.
        budget: bytes.

    Attributes:
        groups: numbers of the units.
        peak_bytes: the most that a group takes.
        largest: the unit that takes most by itself.
    """

    def __init__(
        self, units: Sequence[Unit], sizes: Mapping[str, UnitSize], rule: RoundingRule, rows: int, budget: int
    ):
        self._sizes, self._rows, self._budget = sizes, rows, budget
        self.groups: list[list[int]] = []
        self.peak_bytes = 0
        self.largest = ""
        kept = working = alone = 0
        for number, unit in enumerate(units):
            size = sizes[unit.name]
            need = rule.memory_bytes(unit, size.row_bytes, self.kept_rows(unit))
            if not self.groups or kept + need + max(working, size.cost.peak_bytes) > budget:
                self.groups.append([])
                kept = working = 0
            self.groups[-1].append(number)
            kept, working = kept + need, max(working, size.cost.peak_bytes)
            self.peak_bytes = max(self.peak_bytes, kept + working)
            if need + size.cost.peak_bytes > alone:
                alone, self.largest = need + size.cost.peak_bytes, unit.name

    def kept_rows(self, unit: Unit) -> int:
        """Rows of a unit's calls that there is room for, at least one."""
        size = self._sizes[unit.name]
        room = max(self._budget // 2, self._budget - size.cost.peak_bytes)
        return max(1, min(self._rows, room // max(1, size.row_bytes)))


@contextmanager
def watching_units(
    units: Sequence[Unit], see: Callable[[str, tuple[Any, ...], Mapping[str, Any], Any], None]
) -> Iterator[None]:
    """Within the context ``see`` gets name, arguments and output of every call of a unit."""

    def hook(name: str) -> Callable[..., None]:
        return lambda _, args, kwargs, output: see(name, args, kwargs, output)

    with ExitStack() as stack:
        for unit in units:
            stack.callback(unit.module.register_forward_hook(hook(unit.name), with_kwargs=True).remove)
        yield
