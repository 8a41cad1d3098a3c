"""Finds the denoiser in a diffusers pipeline, its quantizable layers, and the timestep in its arguments."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from halftone.errors import InputError
from halftone.layers import OUTPUT_CORRECTION, OutputCorrection, is_quantizable, set_clock
from halftone.timesteps import SlotClock

# The names under which diffusers pipelines keep their denoiser, most common first.
DENOISER_NAMES = ("unet", "transformer", "prior")
#: Modules whose layers are rounded together, by the names of their classes in diffusers.
BLOCK_TYPES = frozenset({"ResnetBlock2D", "BasicTransformerBlock", "JointTransformerBlock"})
_CLOCK = "halftone_clock"


@dataclass(frozen=True)
class Denoiser:
    """A pipeline's denoiser: the component's name in the pipeline and the module itself."""

    name: str
    module: nn.Module


@dataclass(frozen=True)
class LayerChoice:
    """Which layers get quantized (name -> module, in module order) and why the others are left out."""

    chosen: Mapping[str, nn.Module]
    left_out: Mapping[str, str]


def find_denoiser(pipeline: Any) -> Denoiser:
    """The pipeline's denoiser.

    Raises:
        InputError: the pipeline has none of the components that diffusers uses as denoisers.
    """
    components: dict[str, Any] = getattr(pipeline, "components", {})
    for name in DENOISER_NAMES:
        if isinstance(components.get(name), nn.Module):
            return Denoiser(name, components[name])
    raise InputError(
        f"{type(pipeline).__name__} has no denoiser to quantize: none of {', '.join(DENOISER_NAMES)} is among its"
        f" components ({', '.join(sorted(components)) or 'none'}); give a text-to-image pipeline."
    )


def place_of(module: nn.Module) -> tuple[str, torch.dtype]:
    """The device type that a module is on, and the dtype of what of it is not quantized."""
    parameters = list(module.parameters())
    device = parameters[0].device.type if parameters else "cpu"
    return device, next((one.dtype for one in parameters if one.is_floating_point()), torch.float32)


def choose_layers(module: nn.Module, exclude: Sequence[str]) -> LayerChoice:
    """Sorts every Linear and Conv2d of `module` into quantized and left out.

    Args:
        exclude: glob patterns over module names; a pattern that matches a parent covers all below it.
    """
    chosen: dict[str, nn.Module] = {}
    left_out: dict[str, str] = {}
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        pattern = _matching(name, exclude)
        reason = f"excluded by the recipe ({pattern})" if pattern else is_quantizable(layer)
        if reason is None:
            chosen[name] = layer
        else:
            left_out[name] = reason
    if not chosen:
        raise InputError(
            f"{type(module).__name__} has no Linear or Conv2d layer left to quantize; check the recipe's exclude list."
        )
    return LayerChoice(chosen, left_out)


def find_blocks(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Dotted names and modules of a denoiser's blocks, in module order; none lies within another."""
    inside = None
    for name, part in module.named_modules():
        if inside is not None and name.startswith(inside):
            continue
        if type(part).__name__ in BLOCK_TYPES:
            inside = f"{name}."
            yield name, part


def timestep_of(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The `timestep` argument of a call of `module.forward`, as the pipeline passed it.

    Raises:
        InputError: the denoiser's forward has no parameter of that name.
    """
    if "timestep" in kwargs:
        return kwargs["timestep"]
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    if "timestep" in names and names.index("timestep") < len(args):
        return args[names.index("timestep")]
    raise InputError(f"{type(module).__name__} was called without a `timestep`; Halftone needs it to choose the slot.")


def as_output(prediction: Tensor, kwargs: Mapping[str, Any]) -> Any:
    """A prediction in the form that a denoiser's forward would return: a tuple, or an object with `sample`."""
    if kwargs.get("return_dict", True):
        return Transformer2DModelOutput(sample=prediction)
    return (prediction,)


def choose_slots(module: nn.Module, clock: SlotClock) -> None:
    """Sets the clock of all quantized layers from the `timestep` of every call of the denoiser, and corrects what the
    call returns if the denoiser holds an `OutputCorrection`.

    The module holds the clock, and the hooks ask the module that is called: a deep copy of it has layers with a clock
    of their own, and would otherwise move that of the original.
    """
    set_clock(module, clock)
    if _CLOCK not in module.__dict__:
        module.register_forward_pre_hook(_set_slot, with_kwargs=True)
        if output_correction(module) is not None:
            module.register_forward_hook(_correct)
    module.__dict__[_CLOCK] = clock


def with_prediction(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """What a denoiser returned, a tensor, a tuple or an object of diffusers, with its first tensor, the prediction,
    changed."""
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, tuple):
        return (change(output[0]), *output[1:])
    name = next(iter(output))
    output[name] = change(output[name])
    return output


def _set_slot(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    clock: SlotClock = called.__dict__[_CLOCK]
    clock.set_timestep(timestep_of(called, args, kwargs))


def output_correction(module: nn.Module) -> OutputCorrection | None:
    """The correction of a denoiser's output, or None if it has none."""
    found = module._modules.get(OUTPUT_CORRECTION)
    return found if isinstance(found, OutputCorrection) else None


def _correct(called: nn.Module, _: tuple[Any, ...], output: Any) -> Any:
    """The output with its prediction corrected."""
    correction, clock = output_correction(called), called.__dict__[_CLOCK]
    assert correction is not None
    return with_prediction(output, partial(correction, slot=clock.current))


def set_submodule(root: nn.Module, name: str, module: nn.Module) -> None:
    """Replaces the submodule at dotted `name` of `root`."""
    parent, _, child = name.rpartition(".")
    owner = root.get_submodule(parent) if parent else root
    setattr(owner, child, module)


def _matching(name: str, patterns: Sequence[str]) -> str | None:
    parts = name.split(".")
    prefixes = [".".join(parts[: length + 1]) for length in range(len(parts))]
    for pattern in patterns:
        if any(fnmatch.fnmatchcase(prefix, pattern) for prefix in prefixes):
            return pattern
    return None
