"""Where the time of a call goes, by kind of operator."""

from __future__ import annotations

import ctypes
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

GROUPS = ("convolution", "linear", "attention", "quantization", "norms", "elementwise", "copies", "other", "outside")
#: A group's pattern in the names of operators; the first that fits decides.
_PATTERNS = (
    ("attention", r"attention|softmax|\bbmm|baddbmm"),
    ("convolution", r"conv(?!ert)"),
    ("linear", r"linear|addmm|\bmm\b|matmul|_int_mm|::mv\b"),
    ("quantization", r"quant|encode|codes"),
    ("norms", r"norm"),
    ("copies", r"copy|clone|contiguous|\bcat\b|::to\b|upsample|\bpad\b|fill|zero|im2col|resize|empty"),
    ("elementwise", r"add|mul|sub|div|silu|gelu|sigmoid|exp|sin|cos|clamp|round|pow|tanh|chunk|geglu"),
)
#: Operators that are told one by one.
_TOLD = 15
_NATIVE = "halftone_"


class Event(NamedTuple):
    """An operator over a whole call: seconds in itself, without the operators that it calls."""

    name: str
    seconds: float
    calls: int


def group_of(name: str) -> str:
    """The group that an operator belongs to."""
    return next((group for group, pattern in _PATTERNS if re.search(pattern, name)), "other")


def shares(events: Iterable[Event], wall: float) -> dict[str, dict[str, float]]:
    """Seconds and share of each group; what is in no operator (Python, and native code that is not recorded) is
    "outside"."""
    seconds: dict[str, float] = defaultdict(float)
    for event in events:
        seconds[group_of(event.name)] += event.seconds
    seconds["outside"] = max(0.0, wall - sum(seconds.values()))
    total = sum(seconds.values())
    return {name: {"seconds": seconds[name], "share": seconds[name] / total} for name in GROUPS if seconds[name] > 0}


def profile(run: Callable[[], Any]) -> dict[str, Any]:
    """One call under torch's profiler, after one without; the profiler itself takes some of the time."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    run()
    with profiler(activities=[ProfilerActivity.CPU]) as recorded:
        start = time.perf_counter()
        run()
        wall = time.perf_counter() - start
    averages = recorded.key_averages()
    events = [Event(one.key, one.self_cpu_time_total / 1e6, one.count) for one in averages]
    events.sort(key=lambda event: -event.seconds)
    return {
        "seconds": wall,
        "groups": shares(events, wall),
        "operators": [event._asdict() for event in events[:_TOLD]],
    }


def record_native_calls() -> None:
    """Lets the profiler see the functions of Halftone's native library, which are called past torch. To be called
    before the library is loaded."""
    original = ctypes.CDLL.__getitem__

    def recording(library: ctypes.CDLL, name: Any) -> Any:
        function = original(library, name)
        return _Recorded(function, name) if str(name).startswith(_NATIVE) else function

    ctypes.CDLL.__getitem__ = recording  # type: ignore[method-assign]


class _Recorded:
    """A C function that tells the profiler when it runs."""

    def __init__(self, function: Any, name: str) -> None:
        self.__dict__.update(_function=function, _name=name)

    def __call__(self, *args: Any) -> Any:
        from torch.profiler import record_function

        with record_function(self._name):
            return self._function(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._function, name, value)
