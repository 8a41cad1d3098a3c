"""Halftone: an artifact's denoiser with two slots, one of 8 and one of 10 bits, loaded as a pipeline would load it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cpu_speed.inputs import inputs_of
from benchmarks.cpu_speed.jobs import Built, Call, Job
from benchmarks.cpu_speed.models import ORDINARY, RELAXED
from benchmarks.cpu_speed.peers.openvino import CALIBRATION
from benchmarks.cpu_speed.peers.pytorch import compile_unet
from benchmarks.cpu_speed.unets import UNET, call_unet, cast, channels_last, open_unet, unet_in
from halftone.artifact.attach import attach
from halftone.artifact.config import HalftoneConfig
from halftone.attention import running_attention, use_attention
from halftone.denoiser import choose_layers, set_submodule
from halftone.errors import HalftoneError
from halftone.kernels import kernel_report
from halftone.layers import quantize_layer
from halftone.native import unavailable as native_unavailable
from halftone.numerics import range_to_qparams
from halftone.recipe import Recipe
from halftone.timesteps import TimestepSlots

#: With two slots the second is the relaxed one.
RECIPE = "pcr-w8a8"
#: Name of a variant -> attention, timestep.
_VARIANTS = {
    "float32": {
        "": ("auto", ORDINARY),
        "bfloat16 attention": ("bfloat16", ORDINARY),
        "int8 attention": ("int8", ORDINARY),
        "relaxed": ("auto", RELAXED),
    },
    "bfloat16": {"": ("auto", ORDINARY), "int8 attention": ("int8", ORDINARY), "relaxed": ("auto", RELAXED)},
}
_Ranges = dict[str, tuple[float, float]]


def make_artifact(job: Job, folder: Path) -> dict[str, Any]:
    """Quantizes the UNet with ranges of random inputs at both timesteps, and saves it as an artifact's denoiser."""
    recipe = Recipe.load(RECIPE)
    unet = channels_last(open_unet(job, torch.float32, own_memory=False))
    choice = choose_layers(unet, recipe.exclude)
    names, left_out = tuple(choice.chosen), choice.left_out
    slots = TimestepSlots((float(ORDINARY), float(RELAXED)), recipe.slot_bits(2))
    ranges = [_observe(job, unet, choice.chosen, int(timestep)) for timestep in slots.timesteps]
    del choice
    for name in names:
        layer = quantize_layer(unet.get_submodule(name), recipe.weights.num_bits, len(slots), name)
        for slot, bits in enumerate(slots.num_bits):
            lo, hi = ranges[slot][name]
            layer.set_row(slot, range_to_qparams(lo, hi, bits, recipe.activations.symmetric))
        set_submodule(unet, name, layer)
    attach(unet, HalftoneConfig(recipe, slots, names, left_out))
    unet.save_pretrained(folder / UNET)
    return {"layers": len(names), "bytes": sum(path.stat().st_size for path in (folder / UNET).iterdir())}


def build(job: Job, dtype: str) -> Built:
    """The loaded denoiser, with each attention that this machine can run."""
    unet = unet_in(job.folder("halftone") / UNET, getattr(torch, dtype))
    inputs = cast(inputs_of(job.of), unet.dtype)
    calls: dict[str, Call] = {}
    failures: dict[str, str] = {}
    for name, (attention, timestep) in _VARIANTS[dtype].items():
        try:
            use_attention(unet, attention)
        except HalftoneError as error:
            failures[name] = str(error)
            continue
        # kept and put back, not made anew: a processor remembers the text's keys and values
        prepare = partial(_set_processors, unet, dict(unet.attn_processors))
        calls[name] = Call(partial(call_unet, unet, inputs, timestep), timestep, prepare)
    return Built(calls, failures, partial(_notes, unet))


def build_compiled(job: Job, dtype: str) -> Built:
    """The same under torch.compile."""
    unet = compile_unet(unet_in(job.folder("halftone") / UNET, getattr(torch, dtype)))
    inputs = cast(inputs_of(job.of), unet.dtype)
    return Built({"": Call(partial(call_unet, unet, inputs, ORDINARY))}, notes=partial(_notes, unet))


def _observe(job: Job, unet: Any, layers: Mapping[str, nn.Module], timestep: int) -> _Ranges:
    """Least and greatest input of each layer over the calibration's inputs."""
    ranges: _Ranges = {}
    with _watching(layers, ranges):
        for seed in range(CALIBRATION):
            call_unet(unet, inputs_of(job.of, seed), timestep)
    return ranges


@contextmanager
def _watching(layers: Mapping[str, nn.Module], ranges: _Ranges) -> Iterator[None]:
    def watch(name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        lo, hi = (float(end) for end in args[0].aminmax())
        before = ranges.get(name, (lo, hi))
        ranges[name] = min(lo, before[0]), max(hi, before[1])

    handles = [layer.register_forward_pre_hook(partial(watch, name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _set_processors(unet: Any, processors: Mapping[str, Any]) -> None:
    unet.set_attn_processor(dict(processors))


def _notes(unet: Any) -> dict[str, Any]:
    """What ran, and why nothing faster."""
    return {
        "kernels": kernel_report(),
        "attention": running_attention(unet),
        "native": native_unavailable() or "available",
    }
