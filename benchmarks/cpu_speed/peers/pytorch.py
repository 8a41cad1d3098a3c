"""PyTorch as it is, compiled, and with torchao's dynamic int8."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.cpu_speed.inputs import inputs_of
from benchmarks.cpu_speed.jobs import Built, Call, Job
from benchmarks.cpu_speed.models import ORDINARY
from benchmarks.cpu_speed.unets import call_unet, cast, channels_last, open_unet


def eager(job: Job, dtype: str) -> Built:
    """diffusers' UNet, channels last."""
    return _built(job, channels_last(open_unet(job, getattr(torch, dtype))))


def compiled(job: Job, dtype: str) -> Built:
    """The same under torch.compile."""
    return _built(job, compile_unet(channels_last(open_unet(job, getattr(torch, dtype)))))


def torchao_int8(job: Job, is_compiled: bool) -> Built:
    """Linear layers with int8 weights, inputs quantized row by row at run time; the rest in bfloat16."""
    from importlib import import_module

    api = import_module("torchao.quantization")
    unet = channels_last(open_unet(job, torch.bfloat16))
    api.quantize_(unet, api.Int8DynamicActivationInt8WeightConfig())
    return _built(job, compile_unet(unet) if is_compiled else unet)


def compile_unet(unet: Any) -> Any:
    """For inference at one size; frozen, so that weights are packed once for the products."""
    import torch._inductor.config as settings

    settings.freezing = True
    return torch.compile(unet, dynamic=False)


def _built(job: Job, unet: Any) -> Built:
    inputs = cast(inputs_of(job.of), unet.dtype)
    inputs["sample"] = inputs["sample"].to(memory_format=torch.channels_last)
    return Built({"": Call(partial(call_unet, unet, inputs, ORDINARY))})
