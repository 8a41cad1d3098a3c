"""Watches the inputs of layers while the denoiser runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from halftone.errors import NonFiniteError
from halftone.observers import Observer

Observers = dict[str, Observer]


@contextmanager
def observing(layers: Mapping[str, nn.Module], observers: Observers, step: str) -> Iterator[None]:
    """Within the context every call of a layer shows its input to the observer of the same name.

    Args:
        step: what is running, for the message when an input is not finite ("step 3 of 20, timestep 851").

    Raises:
        NonFiniteError: an input has NaN or infinite values; says at which layer and step.
    """
    with ExitStack() as stack:
        for name, layer in layers.items():
            handle = layer.register_forward_pre_hook(_show(name, observers[name], step))
            stack.callback(handle.remove)
        yield


def _show(name: str, observer: Observer, step: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        value: Tensor = args[0]
        try:
            observer.observe(value)
        except NonFiniteError as error:
            raise NonFiniteError(f"The input of layer {name} is not finite in {step}: {error}") from error

    return hook


def to_tensors(observers: Observers) -> dict[str, Tensor]:
    """State of all observers in one flat mapping, for a checkpoint."""
    return {
        f"{name}|{key}": value for name, observer in observers.items() for key, value in observer.state_dict().items()
    }


def load_tensors(observers: Observers, tensors: Mapping[str, Tensor]) -> None:
    """Undoes `to_tensors`."""
    states: dict[str, dict[str, Tensor]] = {name: {} for name in observers}
    for flat, value in tensors.items():
        name, _, key = flat.partition("|")
        states[name][key] = value
    for name, observer in observers.items():
        observer.load_state(states[name])
