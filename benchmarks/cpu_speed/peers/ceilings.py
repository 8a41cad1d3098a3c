"""What the machine's arithmetic gives at best: large matrix products, timed in the same rounds as the models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.cpu_speed.jobs import Built, Call, Job

#: Rows, columns and length of the sums: large enough that memory does not matter, small enough to be quick.
SIZE = 4096


def build(job: Job) -> Built:
    """Square products in each arithmetic; of int8 the two ways that torch has, of which the faster one counts."""
    operations = 2 * SIZE**3
    makers: dict[str, Callable[[], Callable[[], Any]]] = {
        "float32": lambda: _product(torch.float32),
        "bfloat16": lambda: _product(torch.bfloat16),
        "int8": _onednn_int8,
        "int8 by torch._int_mm": _torch_int8,
    }
    calls, failures = {}, {}
    for name, make in makers.items():
        try:
            calls[name] = Call(make(), timestep=None, operations=operations)
        except (RuntimeError, AttributeError, TypeError) as error:  # an operator that this torch or CPU has not
            failures[name] = str(error).splitlines()[0]
    return Built(calls, failures)


def _product(dtype: torch.dtype) -> Callable[[], Any]:
    a, b = (torch.randn(SIZE, SIZE).to(dtype) for _ in range(2))
    out = torch.empty(SIZE, SIZE, dtype=dtype)
    return lambda: torch.mm(a, b, out=out)


def _onednn_int8() -> Callable[[], Any]:
    """u8 times s8 to float32, scaled by row of the weights: what Halftone's layers call."""
    codes = torch.randint(0, 256, (SIZE, SIZE), dtype=torch.uint8)
    weight = torch.randint(-127, 128, (SIZE, SIZE), dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack.default(weight, None)
    scale, zeros = torch.ones(SIZE), torch.zeros(SIZE, dtype=torch.int32)
    multiply = torch.ops.onednn.qlinear_pointwise.default
    run = lambda: multiply(codes, 1.0, 128, packed, scale, zeros, None, 1.0, 0, torch.bfloat16, "none", [], "")  # noqa: E731
    run()
    return run


def _torch_int8() -> Callable[[], Any]:
    a, b = (torch.randint(-127, 128, (SIZE, SIZE), dtype=torch.int8) for _ in range(2))
    torch._int_mm(a[:32, :32].contiguous(), b[:32, :32].contiguous())
    return lambda: torch._int_mm(a, b)
