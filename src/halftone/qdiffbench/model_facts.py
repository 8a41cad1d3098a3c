"""What a model is besides its images: size, bits, kernels, and what painting cost."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from halftone.artifact.load import artifact_config
from halftone.denoiser import find_denoiser
from halftone.kernels import select
from halftone.layers import QuantizedLayer, quantized_layers
from halftone.qdiffbench.records import ImageRecord
from halftone.qdiffbench.results import KernelUse, Seconds

_INTEGER_TABLES = ("weight_scale", "input_scale", "input_zero_point", "input_num_bits")


def describe(pipeline: Any, folder: Path | None, library: str) -> dict[str, Any]:
    """Fields of a `Model` record that follow from the pipeline, JSON-ready.

    Args:
        folder: of the model's files; None if it was quantized on the fly and has none.
        library: that quantized it on the fly, or empty.
    """
    denoiser = find_denoiser(pipeline)
    config = artifact_config(pipeline)
    weights = _weight_bits(denoiser.module)
    size = _file_bytes(folder / denoiser.name) if folder is not None else None
    return {
        "pipeline": type(pipeline).__name__,
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "size_bytes": size if size else _tensor_bytes(denoiser.module),
        "avg_weight_bits": weights,
        "avg_activation_bits": _activation_bits(pipeline, config),
        "kernels": [use.model_dump() for use in _kernels(pipeline, config, library)],
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
        "peak_memory_bytes": max((record.memory_bytes for record in all_records), default=None),
    }


def _file_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _tensor_bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def _weight_bits(module: nn.Module) -> float:
    """Mean over the denoiser's weights; scales and tables are not weights, but another library's tensors count as
    they are stored."""
    bits = count = 0
    narrow = {f"{name}.weight": layer.weight_num_bits for name, layer in quantized_layers(module)}
    for name, tensor in module.state_dict().items():
        if name.rpartition(".")[2] in _INTEGER_TABLES:
            continue
        count += tensor.numel()
        bits += tensor.numel() * narrow.get(name, 8 * tensor.element_size())
    return bits / max(1, count)


def _activation_bits(pipeline: Any, config: Any) -> float:
    if config is None:
        return float(8 * torch.finfo(pipeline.dtype).bits // 8)
    slots = config.slots
    calls = config.calibration.get("timesteps", slots.timesteps)
    return sum(slots.num_bits[slots.slot_of(float(value))] for value in calls) / len(calls)


def _kernels(pipeline: Any, config: Any, library: str) -> list[KernelUse]:
    module = find_denoiser(pipeline).module
    plain = [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    if config is None:
        name = library or "torch"
        return [KernelUse(kernel=name, execution="float", layers=len(plain))]
    layers = [layer for _, layer in quantized_layers(module)]
    device = next(module.parameters()).device.type
    uses = []
    for timestep, bits in zip(config.slots.timesteps, config.slots.num_bits, strict=True):
        for name, count in _names(layers, device, bits).items():
            uses.append(
                KernelUse(timestep=timestep, activation_bits=bits, kernel=name, execution="integer", layers=count)
            )
    return uses


def _names(layers: list[QuantizedLayer], device: str, bits: int) -> dict[str, int]:
    counts: dict[str, int] = {}
    for layer in layers:
        name = select(layer.operation, device, bits).name
        counts[name] = counts.get(name, 0) + 1
    return counts
