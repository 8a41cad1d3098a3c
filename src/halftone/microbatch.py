"""Walks a module's forward over slices of a batch, so that a large batch costs the memory of a small one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Forward = Callable[..., Any]

# Arguments of diffusers' denoisers that describe positions and hold for every row: their first dimension counts tokens
# and may equal the batch's rows by chance.
UNBATCHED = frozenset({"img_ids", "txt_ids", "image_rotary_emb"})


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
        return _like(value, [take(item, start, stop, total) for item in value])
    return value


def pick(value: Any, rows: Sequence[int], total: int) -> Any:
    """Copies of some rows of every tensor whose first dimension is `total`, nested ones too, and of other tensors."""
    if isinstance(value, torch.Tensor):
        chosen = value.detach()
        return chosen[list(rows)] if value.ndim > 0 and value.shape[0] == total else chosen.clone()
    if isinstance(value, Mapping):
        return {key: pick(item, rows, total) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return _like(value, [pick(item, rows, total) for item in value])
    return value


def pick_arguments(
    args: Sequence[Any], kwargs: Mapping[str, Any], rows: Sequence[int], total: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with `total` rows, for some of its rows only."""
    named = {name: value if name in UNBATCHED else pick(value, rows, total) for name, value in kwargs.items()}
    return pick(tuple(args), rows, total), named


def join(parts: Sequence[Any]) -> Any:
    """Undoes `take` on outputs: tensors are joined along the first dimension, containers item by item."""
    first = parts[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(parts)) if first.ndim > 0 else first
    if isinstance(first, Mapping):
        items = {key: join([part[key] for part in parts]) for key in first}
        return items if type(first) is dict else type(first)(**items)
    if isinstance(first, list | tuple):
        return _like(first, [join(items) for items in zip(*parts, strict=True)])
    return first


def micro_batches(
    args: Sequence[Any], kwargs: Mapping[str, Any], rows: int
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of a call in slices of at most `rows` rows of the batch, in order."""
    total = batch_size(args, kwargs)
    for start in range(0, total, rows):
        part = take(tuple(args), start, start + rows, total)
        named = {
            name: value if name in UNBATCHED else take(value, start, start + rows, total)
            for name, value in kwargs.items()
        }
        yield part, named


def in_micro_batches(forward: Forward, rows: int) -> Forward:
    """`forward`, walked `rows` rows at a time."""

    def walk(*args: Any, **kwargs: Any) -> Any:
        if batch_size(args, kwargs) <= rows:
            return forward(*args, **kwargs)
        return join([forward(*part, **named) for part, named in micro_batches(args, kwargs, rows)])

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


def _like(container: Any, items: Iterable[Any]) -> Any:
    """A list, tuple or named tuple of the kind of `container`."""
    return type(container)._make(items) if hasattr(container, "_fields") else type(container)(items)
