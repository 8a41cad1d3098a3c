"""Walks a module's forward over slices of a batch, so that a large batch costs the memory of a small one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Forward = Callable[..., Any]


def batch_size(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Rows of the batch: the first dimension of the first tensor argument that has one."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor) and value.ndim > 0:
            return int(value.shape[0])
    return 1


def take(value: Any, start: int, stop: int, total: int) -> Any:
    """Rows start…stop of every tensor whose first dimension is `total`, in nested tuples, lists and dicts too."""
    if isinstance(value, torch.Tensor):
        return value[start:stop] if value.ndim > 0 and value.shape[0] == total else value
    if isinstance(value, Mapping):
        return {key: take(item, start, stop, total) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([take(item, start, stop, total) for item in value])
    return value


def join(parts: Sequence[Any]) -> Any:
    """Undoes `take` on outputs: tensors are joined along the first dimension, containers item by item."""
    first = parts[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(parts)) if first.ndim > 0 else first
    if isinstance(first, Mapping):
        return type(first)(**{key: join([part[key] for part in parts]) for key in first})
    if isinstance(first, list | tuple):
        return type(first)([join(items) for items in zip(*parts, strict=True)])
    return first


def in_micro_batches(forward: Forward, rows: int) -> Forward:
    """`forward`, walked `rows` rows at a time."""

    def walk(*args: Any, **kwargs: Any) -> Any:
        total = batch_size(args, kwargs)
        if total <= rows:
            return forward(*args, **kwargs)
        return join(
            [
                forward(*take(tuple(args), start, start + rows, total), **take(kwargs, start, start + rows, total))
                for start in range(0, total, rows)
            ]
        )

    return walk


@contextmanager
def replaced_forward(module: nn.Module, forward: Forward) -> Iterator[None]:
    """Within the context, calling `module` runs `forward` (hooks of the module still run around it)."""
    previous = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if previous is None:
            del module.__dict__["forward"]
        else:
            module.forward = previous
