"""Calls of a block that are kept: arguments and output, row by row of the batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["CallCache", "to_float32"]


class CallCache:
    """A collector that keeps calls in memory, on the CPU, in the dtype of the model.

    Args:
        rows: rows that will be seen.
        kept_rows: rows to keep, evenly spread over those seen; all if there are not more.

    Attributes:
        kept: rows kept so far.
    """

    def __init__(self, rows: int, kept_rows: int):
        kept_rows = max(1, min(rows, kept_rows))
        self._wanted = {row * rows // kept_rows for row in range(kept_rows)}
        self._calls: list[tuple[Any, Any, Any]] = []
        self._place: list[tuple[int, int]] = []
        self._seen = 0

    @property
    def kept(self) -> int:
        return len(self._place)

    def see(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        """Keeps the wanted rows of a call; rows are the first dimension of its first tensor."""
        total = _rows_of((args, kwargs))
        wanted = [row for row in range(total) if self._seen + row in self._wanted]
        self._seen += total
        if not wanted:
            return
        index = torch.tensor(wanted)
        self._calls.append(tuple(_pick(part, index, total, torch.device("cpu")) for part in (args, kwargs, output)))
        self._place.extend((len(self._calls) - 1, row) for row in range(len(wanted)))

    def rows(self, index: Tensor, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        """``(args, kwargs, output)`` of some rows, in float32 on a device.

        Args:
            index: int64, in increasing order.
        """
        by_call: dict[int, list[int]] = {}
        for call, row in (self._place[position] for position in index.tolist()):
            by_call.setdefault(call, []).append(row)
        parts = []
        for call, rows in by_call.items():
            total = _rows_of(self._calls[call])
            parts.append(_pick(self._calls[call], torch.tensor(rows), total, device))
        args, kwargs, output = to_float32(_join(parts))
        return args, kwargs, output


def to_float32(value: Any) -> Any:
    """Every floating-point tensor, in nested containers too, as float32."""
    if isinstance(value, Tensor):
        return value.to(torch.float32) if value.is_floating_point() else value
    return _mapped(value, to_float32)


def _pick(value: Any, index: Tensor, total: int, device: torch.device) -> Any:
    """A copy of the rows ``index`` of every tensor that has ``total`` rows, and of every other tensor as it is."""
    if isinstance(value, Tensor):
        batched = value.dim() > 0 and value.shape[0] == total
        return (value.detach()[index.to(value.device)] if batched else value.detach()).to(device, copy=not batched)
    return _mapped(value, lambda item: _pick(item, index, total, device))


def _join(parts: list[Any]) -> Any:
    """Tensors of several picks, joined along the rows; whatever is no tensor is that of the first."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts) if first.dim() > 0 else first
    if isinstance(first, Mapping):
        return {key: _join([part[key] for part in parts]) for key in first}
    if isinstance(first, list | tuple):
        return tuple(_join(list(items)) for items in zip(*parts, strict=True))
    return first


def _mapped(value: Any, change: Any) -> Any:
    """``change`` of every item of a container; anything else as it is. Containers become plain dicts and tuples."""
    if isinstance(value, Mapping):
        return {key: change(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(change(item) for item in value)
    return value


def _rows_of(value: Any) -> int:
    """First dimension of the first tensor that has one."""
    if isinstance(value, Tensor):
        return value.shape[0] if value.dim() > 0 else 0
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return next((rows for rows in map(_rows_of, items) if rows), 0)
