"""Which implementation runs an operation: by device type, activation bits, features, availability and priority.

A kernel is a callable that takes a layer's `LayerWeights` once and returns a `PreparedKernel`, which
then runs on every input. The choice is logged once, with the reasons why faster kernels were passed over;
``HALFTONE_KERNELS=<name>`` (e.g. ``reference``) allows only the kernels of that name.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from halftone.errors import InputError, suggest

__all__ = [
    "ENVIRONMENT_VARIABLE",
    "ROW_SCALES",
    "WEIGHT_GROUPS",
    "WIDE_WEIGHTS",
    "ConvGeometry",
    "Kernel",
    "LayerWeights",
    "PreparedKernel",
    "check_device",
    "kernel_report",
    "register_kernel",
    "select",
]

Scale = float | Tensor
ZeroPoint = int | Tensor

ENVIRONMENT_VARIABLE = "HALFTONE_KERNELS"
OPERATIONS = ("linear", "conv2d")
#: Feature: scale and zero point of the input are tensors, of each row of a linear layer or each image of a convolution.
ROW_SCALES = "row scales"
#: Feature: groups of the weights of an output channel have scales of their own.
WEIGHT_GROUPS = "weight groups"
#: Feature: weights, their zero points subtracted, are of up to 9 bits, as int16.
WIDE_WEIGHTS = "9-bit weights"
#: Devices that no kernel runs on, and why: a kernel for all devices, such as the reference, needs not know them.
_UNSUITED = {"mps": "it has no float64, in which exact sums and weight scales are computed"}
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
        weight: int8 ``[out, in]`` or ``[out, in / groups, height, width]``; with the feature `WIDE_WEIGHTS` int16.
        scale: float32 ``[out]``; with the feature `WEIGHT_GROUPS` ``[out, groups]``.
        bias: floating point ``[out]``, or None.
        geometry: of a convolution; None for linear.
        group_size: weights of a group, in the order of memory; None for all of an output channel.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None = None
    geometry: ConvGeometry | None = None
    group_size: int | None = None


class PreparedKernel(Protocol):
    """A kernel bound to one layer's weights."""

    def __call__(self, x: Tensor, input_scale: Scale, input_zero_point: ZeroPoint, num_bits: int) -> Tensor:
        """``layer(x)`` in the dtype of ``x``, its input quantized with these parameters.

        Args:
            input_scale: a float32 value; with the feature `ROW_SCALES` a float32 tensor of one for each row of the
                flattened input of a linear layer, or each image of a convolution.
            input_zero_point: a code, or as many, int32.
        """


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
    features: Mapping[str, str | None]
    prepare: Callable[[LayerWeights], PreparedKernel]


@dataclass(frozen=True)
class _Choice:
    kernel: Kernel | None
    passed_over: tuple[tuple[str, str], ...]
    accelerators: tuple[str, ...] = ()


_KERNELS: list[Kernel] = []
_Key = tuple[str, str, int, frozenset[str], str]
_choices: dict[_Key, _Choice] = {}


_NONE: Mapping[str, Any] = {}
_PLAIN: frozenset[str] = frozenset()


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
    features: Mapping[str, str | None] = _NONE,
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
        features: what not every kernel can do (`ROW_SCALES`, ...): None if it can, else the reason why not. What is not
            named it cannot do.

    Raises:
        InputError: unknown operation.
    """
    if operation not in OPERATIONS:
        raise InputError(f"no operation {operation!r}; {suggest(operation, OPERATIONS)}")

    def register(prepare: Callable[[LayerWeights], PreparedKernel]) -> Callable[[LayerWeights], PreparedKernel]:
        types = frozenset(device_types)
        limits = (types, max_num_bits, priority, available, accelerators, features)
        _KERNELS.append(Kernel(operation, name, *limits, prepare))
        _KERNELS.sort(key=lambda kernel: -kernel.priority)
        _choices.clear()
        return prepare

    return register


def check_device(device_type: str) -> None:
    """Refuses a device that quantized layers cannot run on, before anything is moved there.

    Raises:
        InputError: it is one of those.
    """
    reason = _UNSUITED.get(device_type)
    if reason is not None:
        raise InputError(f"Halftone does not run on {device_type!r}: {reason}; choose 'cpu' or 'cuda'.")


def select(operation: str, device_type: str, num_bits: int = 8, features: frozenset[str] = _PLAIN) -> Kernel:
    """The kernel of highest priority that runs this operation here; decided and logged once.

    Args:
        operation: ``"linear"`` or ``"conv2d"``.
        device_type: such as ``"cpu"`` or ``"cuda"``.
        num_bits: activation bits, 2 to 16.
        features: what the layer needs besides, such as `ROW_SCALES`.

    Raises:
        InputError: none can, the device is refused, or the environment asks for an unknown kernel.
    """
    forced = os.environ.get(ENVIRONMENT_VARIABLE, "")
    key = (operation, device_type, num_bits, features, forced)
    choice = _choices.get(key)
    if choice is None:
        choice = _choices[key] = _choose(*key)
        _log(key, choice)
    if choice.kernel is None:
        reasons = "; ".join(f"{name}: {why}" for name, why in choice.passed_over) or "none is registered"
        raise InputError(f"no kernel runs {_words(key)} ({reasons})")
    return choice.kernel


def kernel_report() -> dict[str, dict[str, object]]:
    """What `select` decided so far, for `inspect` and model cards.

    Returns:
        ``"linear on cpu, 8 bits"`` (and features, if any) to
        ``{"kernel": name or None, "with": [accelerator], "passed_over": {name: reason}}``;
        what is passed over is a kernel, or an accelerator of the kernel that was taken.
    """
    return {
        _words(key): {
            "kernel": choice.kernel and choice.kernel.name,
            "with": list(choice.accelerators),
            "passed_over": dict(choice.passed_over),
        }
        for key, choice in _choices.items()
    }


def _words(key: _Key) -> str:
    operation, device_type, num_bits, features, _ = key
    return ", ".join((f"{operation} on {device_type}", f"{num_bits} bits", *sorted(features)))


def _choose(operation: str, device_type: str, num_bits: int, features: frozenset[str], forced: str) -> _Choice:
    """The first kernel, by priority, that nothing speaks against."""
    check_device(device_type)
    names = {kernel.name for kernel in _KERNELS}
    if forced and forced not in names:
        raise InputError(f"{ENVIRONMENT_VARIABLE} asks for kernel {forced!r}; {suggest(forced, names)}")
    passed_over: list[tuple[str, str]] = []
    for kernel in _KERNELS:
        if kernel.operation != operation:
            continue
        reason = _reason_against(kernel, device_type, num_bits, features, forced)
        if reason is None:
            absent = {name: why for name, ask in kernel.accelerators.items() if (why := ask()) is not None}
            present = tuple(name for name in kernel.accelerators if name not in absent)
            return _Choice(kernel, (*passed_over, *absent.items()), present)
        passed_over.append((kernel.name, reason))
    return _Choice(None, tuple(passed_over))


def _reason_against(
    kernel: Kernel, device_type: str, num_bits: int, features: frozenset[str], forced: str
) -> str | None:
    """Why a kernel cannot be taken; None if it can."""
    if forced and kernel.name != forced:
        return f"{ENVIRONMENT_VARIABLE}={forced}"
    if kernel.device_types and device_type not in kernel.device_types:
        return f"does not run on {device_type}"
    if num_bits > kernel.max_num_bits:
        return f"at most {kernel.max_num_bits} bits"
    for feature in sorted(features):
        reason = kernel.features.get(feature, f"no {feature}")
        if reason is not None:
            return reason
    return kernel.available()


def _log(key: _Key, choice: _Choice) -> None:
    """One line a decision: what runs, and why not something faster."""
    name = " with ".join((choice.kernel.name if choice.kernel else "no", *choice.accelerators))
    reasons = "".join(f"; {other}: {why}" for other, why in choice.passed_over)
    _logger.info("%s: %s kernel%s", _words(key), name, reasons)
