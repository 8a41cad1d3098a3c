"""Which implementation runs an operation: by device type, activation bits, availability and priority.

A kernel is a callable that takes a layer's `LayerWeights` once and returns a `PreparedKernel`, which
then runs on every input. The choice is logged once, with the reasons why faster kernels were passed over;
``HALFTONE_KERNELS=<name>`` (e.g. ``reference``) allows only the kernels of that name.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from halftone.errors import InputError, suggest

__all__ = [
    "ENVIRONMENT_VARIABLE",
    "ConvGeometry",
    "Kernel",
    "LayerWeights",
    "PreparedKernel",
    "kernel_report",
    "register_kernel",
    "select",
]

ENVIRONMENT_VARIABLE = "HALFTONE_KERNELS"
OPERATIONS = ("linear", "conv2d")
_logger = logging.getLogger("halftone.kernels")


@dataclass(frozen=True)
class ConvGeometry:
    """The shape of a 2-D convolution.

    Attributes:
        stride, dilation: (vertical, horizontal).
        padding: (left, right, top, bottom), in pixels of real zero.
        groups: number of groups.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """What of a layer does not change between calls.

    Attributes:
        weight: int8 ``[out, in]`` or ``[out, in / groups, height, width]``.
        scale: float32 ``[out]``.
        bias: floating point ``[out]``, or None.
        geometry: of a convolution; None for linear.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None = None
    geometry: ConvGeometry | None = None


class PreparedKernel(Protocol):
    """A kernel bound to one layer's weights."""

    def __call__(self, x: Tensor, input_scale: float, input_zero_point: int, num_bits: int) -> Tensor:
        """``layer(x)`` in the dtype of ``x``, its input quantized with these parameters."""


@dataclass(frozen=True)
class Kernel:
    """A registered implementation; see `register_kernel` for the fields."""

    operation: str
    name: str
    device_types: frozenset[str]
    max_num_bits: int
    priority: int
    available: Callable[[], str | None]
    accelerators: Mapping[str, Callable[[], str | None]]
    prepare: Callable[[LayerWeights], PreparedKernel]


@dataclass(frozen=True)
class _Choice:
    kernel: Kernel | None
    passed_over: tuple[tuple[str, str], ...]
    accelerators: tuple[str, ...] = ()


_KERNELS: list[Kernel] = []
_choices: dict[tuple[str, str, int, str], _Choice] = {}


_NONE: Mapping[str, Callable[[], str | None]] = {}


def _always() -> str | None:
    return None


def register_kernel(
    operation: str,
    name: str,
    device_types: Collection[str],
    *,
    priority: int,
    available: Callable[[], str | None] = _always,
    max_num_bits: int = 16,
    accelerators: Mapping[str, Callable[[], str | None]] = _NONE,
) -> Callable[[Callable[[LayerWeights], PreparedKernel]], Callable[[LayerWeights], PreparedKernel]]:
    """Decorator that registers an implementation of an operation.

    Args:
        operation: ``"linear"`` or ``"conv2d"``.
        name: short name, the same for all operations of one family ("reference", "onednn", ...).
        device_types: torch device types it runs on; empty means all.
        priority: higher wins; the reference has 0.
        available: None if it can run on this machine, else the reason why not.
        max_num_bits: most activation bits it can run.
        accelerators: what makes it faster and may be absent, by name: None if it is there, else the reason why not.

    Raises:
        InputError: unknown operation.
    """
    if operation not in OPERATIONS:
        raise InputError(f"no operation {operation!r}; {suggest(operation, OPERATIONS)}")

    def register(prepare: Callable[[LayerWeights], PreparedKernel]) -> Callable[[LayerWeights], PreparedKernel]:
        types = frozenset(device_types)
        _KERNELS.append(Kernel(operation, name, types, max_num_bits, priority, available, accelerators, prepare))
        _KERNELS.sort(key=lambda kernel: -kernel.priority)
        _choices.clear()
        return prepare

    return register


def select(operation: str, device_type: str, num_bits: int = 8) -> Kernel:
    """The kernel of highest priority that runs this operation here; decided and logged once.

    Args:
        operation: ``"linear"`` or ``"conv2d"``.
        device_type: such as ``"cpu"`` or ``"cuda"``.
        num_bits: activation bits, 2 to 16.

    Raises:
        InputError: none can, or the environment asks for an unknown kernel.
    """
    forced = os.environ.get(ENVIRONMENT_VARIABLE, "")
    key = (operation, device_type, num_bits, forced)
    choice = _choices.get(key)
    if choice is None:
        choice = _choices[key] = _choose(*key)
        _log(key, choice)
    if choice.kernel is None:
        reasons = "; ".join(f"{name}: {why}" for name, why in choice.passed_over) or "none is registered"
        raise InputError(f"no kernel runs {operation} with {num_bits}-bit inputs on {device_type} ({reasons})")
    return choice.kernel


def kernel_report() -> dict[str, dict[str, object]]:
    """What `select` decided so far, for `inspect` and model cards.

    Returns:
        ``"linear on cpu, 8 bits"`` to
        ``{"kernel": name or None, "with": [accelerator], "passed_over": {name: reason}}``;
        what is passed over is a kernel, or an accelerator of the kernel that was taken.
    """
    return {
        f"{operation} on {device_type}, {num_bits} bits": {
            "kernel": choice.kernel and choice.kernel.name,
            "with": list(choice.accelerators),
            "passed_over": dict(choice.passed_over),
        }
        for (operation, device_type, num_bits, _), choice in _choices.items()
    }


def _choose(operation: str, device_type: str, num_bits: int, forced: str) -> _Choice:
    """The first kernel, by priority, that nothing speaks against."""
    names = {kernel.name for kernel in _KERNELS}
    if forced and forced not in names:
        raise InputError(f"{ENVIRONMENT_VARIABLE} asks for kernel {forced!r}; {suggest(forced, names)}")
    passed_over: list[tuple[str, str]] = []
    for kernel in _KERNELS:
        if kernel.operation != operation:
            continue
        reason = _reason_against(kernel, device_type, num_bits, forced)
        if reason is None:
            absent = {name: why for name, ask in kernel.accelerators.items() if (why := ask()) is not None}
            present = tuple(name for name in kernel.accelerators if name not in absent)
            return _Choice(kernel, (*passed_over, *absent.items()), present)
        passed_over.append((kernel.name, reason))
    return _Choice(None, tuple(passed_over))


def _reason_against(kernel: Kernel, device_type: str, num_bits: int, forced: str) -> str | None:
    """Why a kernel cannot be taken; None if it can."""
    if forced and kernel.name != forced:
        return f"{ENVIRONMENT_VARIABLE}={forced}"
    if kernel.device_types and device_type not in kernel.device_types:
        return f"does not run on {device_type}"
    if num_bits > kernel.max_num_bits:
        return f"at most {kernel.max_num_bits} bits"
    return kernel.available()


def _log(key: tuple[str, str, int, str], choice: _Choice) -> None:
    """One line a decision: what runs, and why not something faster."""
    operation, device_type, num_bits, _ = key
    name = " with ".join((choice.kernel.name if choice.kernel else "no", *choice.accelerators))
    reasons = "".join(f"; {other}: {why}" for other, why in choice.passed_over)
    _logger.info("%s on %s with %d-bit inputs: %s kernel%s", operation, device_type, num_bits, name, reasons)
