"""UNets with random weights: made once, opened by every peer, and run in full precision to compare with."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cpu_speed.inputs import inputs_of
from benchmarks.cpu_speed.jobs import Job
from benchmarks.cpu_speed.models import ORDINARY, RELAXED, Model, unet_config

UNET = "unet"
#: Where FlopCounterMode's operators belong; on the meta device attention is two batched products.
_KINDS = {"convolution": "convolution", "mm": "linear", "addmm": "linear", "bmm": "attention", "baddbmm": "attention"}


def make_weights(job: Job, folder: Path) -> dict[str, Any]:
    """Saves the UNet: as its configuration initializes it from seed 0, or that of the model's pipeline."""
    from diffusers import UNet2DConditionModel

    model = job.of
    torch.manual_seed(0)
    if model.source is None:
        unet = UNet2DConditionModel.from_config(unet_config(model))
    else:
        from halftone.sources import open_pipeline

        unet = open_pipeline(model.source, progress_bar=False).unet
    unet.save_pretrained(folder / UNET)
    return {"parameters": sum(parameter.numel() for parameter in unet.parameters())}


def make_reference(job: Job, folder: Path) -> dict[str, Any]:
    """Saves what full precision makes of the timed input, at the timesteps of both slots."""
    unet = channels_last(open_unet(job, torch.float32))
    for timestep in (ORDINARY, RELAXED):
        np.save(reference_file(folder, timestep), as_array(call_unet(unet, inputs_of(job.of), timestep)))
    return {"operations": operations_of(job.of)}


def reference_file(folder: Path, timestep: int) -> Path:
    """Where the output at a timestep lies."""
    return folder / f"output-{timestep}.npy"


def open_unet(job: Job, dtype: torch.dtype, own_memory: bool = True) -> Any:
    """The UNet that `make_weights` saved.

    Args:
        own_memory: whether weights are copied out of the mapped file, as other libraries would hold them.
    """
    unet = unet_in(job.folder("weights") / UNET, dtype)
    if own_memory:
        for parameter in unet.parameters():
            parameter.data = parameter.data.clone()
    return unet


def unet_in(folder: Path, dtype: torch.dtype) -> Any:
    """A UNet from a folder, for inference."""
    from diffusers import UNet2DConditionModel

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch_dtype` is deprecated")  # but old releases know no other name
        unet = UNet2DConditionModel.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
    return unet.eval().requires_grad_(False)


def channels_last(module: nn.Module) -> Any:
    """The module with its images' channels last in memory, which oneDNN's convolutions like best."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def cast(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The inputs of a call in another dtype."""
    return {name: cast(x, dtype) if isinstance(x, dict) else x.to(dtype) for name, x in inputs.items()}


def call_unet(unet: Any, inputs: dict[str, Any], timestep: int) -> Tensor:
    """One call, as a pipeline makes it."""
    with torch.no_grad():
        result: Tensor = unet(**inputs, timestep=torch.tensor(timestep), return_dict=False)[0]
    return result


def as_array(output: Any) -> np.ndarray[Any, Any]:
    """Any library's output as float32."""
    if isinstance(output, Tensor):
        output = output.detach().float().numpy()
    return np.asarray(output, dtype=np.float32)


def operations_of(model: Model) -> dict[str, int]:
    """Multiplications and additions of a call by kind, counted without computing anything."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_config(model))
    inputs = {
        name: {key: y.to("meta") for key, y in x.items()} if isinstance(x, dict) else x.to("meta")
        for name, x in inputs_of(model).items()
    }
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(**inputs, timestep=torch.tensor(ORDINARY, device="meta"))
    counts = {kind: 0 for kind in ("convolution", "linear", "attention")}
    for operator, count in counter.get_flop_counts()["Global"].items():
        counts[_KINDS[str(operator).rpartition(".")[2]]] += int(count)
    return counts
