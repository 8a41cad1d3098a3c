"""What a calibration will cost, told before it starts, without one pass through the denoiser.

The denoiser's forward runs on fake tensors, which have shapes and no data: that gives its multiplications, its
number of operations and the most memory alive at a time. Two small products, timed here, turn them into seconds.
"""

from __future__ import annotations

import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from halftone.calibration.settings import CalibrationSettings
from halftone.calibration.trace import Trace
from halftone.kernels import LayerWeights, select
from halftone.microbatch import batch_size
from halftone.quantities import memory_text, time_text

_SECONDS_PER_OPERATION = 2e-5
_PROBE = 768  # side of the timed products


@dataclass(frozen=True)
class CostEstimate:
    """What a calibration will take.

    Attributes:
        passes: of a prompt through the denoiser, all prompts together.
        seconds: wall time, None if the denoiser cannot be traced; right within a factor of about two.
        memory_bytes: the pipeline's weights, one micro-batch's working set and the latents of all prompts.
        passes_done: those that an interrupted run has left on disk; ``seconds`` are of the others.
        pass_seconds: of one pass of all prompts in floating point, over all calls; None if not known.
    """

    passes: int
    seconds: float | None
    memory_bytes: int
    passes_done: int = 0
    pass_seconds: float | None = None

    def sentence(self) -> str:
        """One line for the person who waits."""
        memory = memory_text(self.memory_bytes)
        if not self.passes:
            return f"No pass through the denoiser: ranges are measured at inference; {memory} of memory."
        done = f", {self.passes_done} of them done" if self.passes_done else ""
        opening = f"{self.passes} passes through the denoiser{done}"
        if self.seconds is None:
            return f"{opening}; at least {memory} of memory."
        return f"{opening}: about {time_text(self.seconds)} and {memory} of memory."


def estimate_cost(
    pipeline: Any,
    module: nn.Module,
    settings: CalibrationSettings,
    trace: Trace,
    passes_per_call: int,
    kept_bytes: int = 0,
    passes_done: int = 0,
) -> CostEstimate:
    """Time and memory of a calibration on this machine.

    Args:
        module: the denoiser, still in floating point.
        trace: its calls.
        passes_per_call: 2 in lockstep (observe, then run quantized), 1 where only the float model is observed, 0 where
            nothing is; what is more than 2 runs in floating point.
        kept_bytes: what else is kept until the end.
        passes_done: of each prompt, by an interrupted run.
    """
    prompts, calls = len(settings.prompts), len(trace.timesteps)
    rows = min(settings.batch_size, prompts) * max(1, trace.rows)
    weights = sum(_bytes(part) for part in pipeline.components.values() if isinstance(part, nn.Module))
    kept = prompts * _argument_bytes(trace) + kept_bytes if passes_per_call else 0
    traced = _run_on_fakes(module, trace, rows)
    passes, passes_done = prompts * calls * passes_per_call, prompts * passes_done
    if traced is None:
        return CostEstimate(passes, None, weights + kept, passes_done)
    micro_batches = -(-prompts // settings.batch_size) * calls
    in_float, in_integers = (
        micro_batches * (traced.flops / rate + traced.operations * _SECONDS_PER_OPERATION)
        for rate in _rates(next(module.parameters()).device)
    )
    if not passes:
        return CostEstimate(0, 0.0, weights, pass_seconds=in_float)
    seconds = in_float if passes_per_call == 1 else in_float * (passes_per_call - 1) + in_integers
    left = seconds * (1 - passes_done / passes)
    return CostEstimate(passes, left, weights + kept + traced.peak_bytes, passes_done, in_float)


@dataclass(frozen=True)
class _Traced:
    flops: int
    operations: int
    peak_bytes: int


class _LiveBytes(TorchDispatchMode):
    """Counts operations and the bytes of results that are alive at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.live = 0
        self.peak = 0
        self._users: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor)
        self.peak = max(self.peak, self.live)
        return result

    def _watch(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if self._users[key] == 0:
            self.live += size
        self._users[key] += 1
        weakref.finalize(tensor, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._users[key] -= 1
        if self._users[key] == 0:
            self.live -= size


def _run_on_fakes(module: nn.Module, trace: Trace, rows: int) -> _Traced | None:
    """Traces one forward of `rows` rows; None if this denoiser needs real data to run."""
    total = batch_size(trace.args, trace.kwargs)
    watch, flops = _LiveBytes(), FlopCounterMode(display=False)
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            fake = tree_map(faker(total, rows), (trace.args, dict(trace.kwargs)))
            with flops, watch:
                type(module).forward(module, *fake[0], **fake[1])
    except Exception:  # whatever a model does that needs data: the estimate is a courtesy, not a condition
        return None
    return _Traced(flops.get_total_flops(), watch.operations, watch.peak)


def faker(total: int, rows: int) -> Callable[[Any], Any]:
    """Makes tensors like those of a call with ``total`` rows, for ``rows`` rows; in a `FakeTensorMode` without data."""

    def fake(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        shape = (rows, *value.shape[1:]) if value.ndim > 0 and value.shape[0] == total else tuple(value.shape)
        return torch.empty(shape, dtype=value.dtype, device=value.device)

    return fake


def _rates(device: torch.device) -> tuple[float, float]:
    """Floating-point operations a second of (the float product, the integer kernel), measured on one product each."""
    x = torch.randn(_PROBE, _PROBE, device=device)
    weight = torch.ones(_PROBE, _PROBE, dtype=torch.int8, device=device)
    scale = torch.ones(_PROBE, device=device)
    run = select("linear", device.type).prepare(LayerWeights(weight, scale))
    return _rate(lambda: x @ x), _rate(lambda: run(x, 0.05, 128, 8))


def _rate(product: Callable[[], torch.Tensor]) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        product()[0, 0].item()  # waits for an accelerator too
        times.append(time.perf_counter() - start)
    return 2.0 * _PROBE**3 / min(times)


def _bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def _argument_bytes(trace: Trace) -> int:
    """Of one prompt's latents and text states, in the call's arguments and in its output."""
    arguments: Mapping[str, Any] = {"args": trace.args, "kwargs": dict(trace.kwargs)}
    tensors = [value for value in tree_leaves(arguments) if isinstance(value, torch.Tensor)]
    return 2 * sum(tensor.numel() * tensor.element_size() for tensor in tensors)
