"""What a model is besides its images: size, bits, kernels, and what painting cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from halftone.artifact.load import artifact_config
from halftone.denoiser import find_denoiser
from halftone.kernels import select
from halftone.layers import QuantizedLayer, quantized_layers
from halftone.qdiffbench.libraries import LIBRARIES
from halftone.qdiffbench.records import ImageRecord
from halftone.qdiffbench.results import KernelUse, Seconds
from halftone.qdiffbench.stored_weights import average_weight_bits, stored_bytes, wrapped_layers
from halftone.sources import weight_bytes


def describe(
    pipeline: Any, folder: Path | None, library: str = "", scheme: str = "", timesteps: Sequence[float] = ()
) -> dict[str, Any]:
    """Fields of a `Model` record that follow from the pipeline, JSON-ready.

    Args:
        folder: of the model's files; None if it was quantized on the fly and has none.
        library, scheme: what quantized it on the fly, or empty.
        timesteps: with which the denoiser was called for an image; without them the bits of an artifact's activations
            and its kernels are not known.
    """
    denoiser = find_denoiser(pipeline)
    config = artifact_config(pipeline)
    size = weight_bytes(folder, denoiser.name) if folder is not None else None
    return {
        "pipeline": type(pipeline).__name__,
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "size_bytes": size if size else stored_bytes(denoiser.module),
        "avg_weight_bits": average_weight_bits(denoiser.module),
        "avg_activation_bits": _activation_bits(pipeline, config, library, scheme, timesteps),
        "kernels": [use.model_dump() for use in _kernels(pipeline, config, library, scheme, timesteps)],
    }


def seconds_of(values: Iterable[float]) -> Seconds | None:
    """Median and deciles of timings; None if there are none."""
    times = np.asarray(list(values), dtype=np.float64)
    if times.size == 0:
        return None
    low, middle, high = np.quantile(times, [0.1, 0.5, 0.9])
    return Seconds(median=float(middle), low=float(low), high=float(high), n=int(times.size))


def cost(records: Iterable[ImageRecord]) -> dict[str, Any]:
    """Fields of a `Model` record that were measured while painting; each process's first image is left out."""
    all_records = list(records)
    warm = [record for record in all_records if not record.first] or all_records
    return {
        "seconds_per_image": seconds_of(record.seconds for record in warm),
        "seconds_per_step": seconds_of(record.step_seconds for record in warm),
        "peak_memory_bytes": max((one.memory_bytes for one in all_records if one.memory_bytes), default=None),
    }


def _activation_bits(pipeline: Any, config: Any, library: str, scheme: str, timesteps: Sequence[float]) -> float | None:
    if config is None:
        narrow = LIBRARIES[library].integer_schemes.get(scheme) if library else None
        return float(narrow if narrow is not None else torch.finfo(pipeline.dtype).bits)
    slots = config.slots
    bits = [slots.num_bits[slots.slot_of(value)] for value in timesteps]
    return sum(bits) / len(bits) if bits else None


def _kernels(pipeline: Any, config: Any, library: str, scheme: str, timesteps: Sequence[float]) -> list[KernelUse]:
    module = find_denoiser(pipeline).module
    if library:
        integer = scheme in LIBRARIES[library].integer_schemes
        count = wrapped_layers(module)
        return [KernelUse(kernel=library, execution="integer" if integer else "float", layers=count)]
    if config is None:
        plain = [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        return [KernelUse(kernel="torch", execution="float", layers=len(plain))]
    layers = [layer for _, layer in quantized_layers(module)]
    device = next(module.parameters()).device.type
    uses = []
    slots = config.slots
    for slot in dict.fromkeys(slots.slot_of(value) for value in timesteps):
        timestep, bits = slots.timesteps[slot], slots.num_bits[slot]
        for name, count in _names(layers, device, bits).items():
            uses.append(
                KernelUse(timestep=timestep, activation_bits=bits, kernel=name, execution="integer", layers=count)
            )
    return uses


def _names(layers: list[QuantizedLayer], device: str, bits: int) -> dict[str, int]:
    counts: dict[str, int] = {}
    for layer in layers:
        name = select(layer.operation, device, bits, layer.features).name
        counts[name] = counts.get(name, 0) + 1
    return counts
