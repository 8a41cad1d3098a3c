"""OpenVINO: the UNet in floating point, and with integers by NNCF."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.cpu_speed.inputs import Flat, flat_tensors, inputs_of
from benchmarks.cpu_speed.jobs import Built, Call, Job
from benchmarks.cpu_speed.models import ORDINARY
from benchmarks.cpu_speed.unets import open_unet

#: Inputs that ranges are taken from; Halftone gets as many.
CALIBRATION = 2
_GRAPH = "model.xml"


def make_graph(job: Job, folder: Path) -> dict[str, Any]:
    """Converts the UNet, in float32 and for any image size."""
    openvino = import_module("openvino")
    unet = open_unet(job, torch.float32, own_memory=False)
    example = flat_tensors(inputs_of(job.of), ORDINARY)
    with torch.no_grad():
        graph = openvino.convert_model(Flat(unet), example_input=example)
    openvino.save_model(graph, folder / _GRAPH, compress_to_fp16=False)
    return {}


def make_integers(job: Job, folder: Path, for_transformers: bool) -> dict[str, Any]:
    """Quantizes the graph by NNCF's MinMax: ranges from random inputs, no search and no correction, which cost time
    and change values but not what is executed.

    Args:
        for_transformers: NNCF's scheme for transformers, as OpenVINO's own examples take it for this UNet (ranges
            asymmetric where they pay, attention in floating point); else its default (symmetric, more operators).
    """
    openvino, nncf = import_module("openvino"), import_module("nncf")
    graph = openvino.Core().read_model(job.folder("openvino") / _GRAPH)
    samples = [_arrays(job, seed) for seed in range(CALIBRATION)]
    without = nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
    preset = nncf.QuantizationPreset
    quantized = nncf.quantize(
        graph,
        nncf.Dataset(samples, lambda arrays: dict(enumerate(arrays))),
        preset=preset.MIXED if for_transformers else preset.PERFORMANCE,
        subset_size=CALIBRATION,
        model_type=nncf.ModelType.TRANSFORMER if for_transformers else None,
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            smooth_quant_alphas=without, disable_bias_correction=True
        ),
    )
    openvino.save_model(quantized, folder / _GRAPH, compress_to_fp16=False)
    return {}


def build(job: Job, stage: str, hint: str) -> Built:
    """A compiled graph.

    Args:
        stage: that made it.
        hint: what it may compute in where it has no integers: "f32" or "bf16".
    """
    openvino = import_module("openvino")
    core = openvino.Core()
    arrays = _arrays(job)
    graph = core.read_model(job.folder(stage) / _GRAPH)
    graph.reshape({port: list(array.shape) for port, array in zip(graph.inputs, arrays, strict=True)})
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(job.threads),
        "INFERENCE_PRECISION_HINT": hint,
    }
    request = core.compile_model(graph, "CPU", settings).create_infer_request()
    run = lambda: request.infer(arrays, share_inputs=True, share_outputs=True)[0]  # noqa: E731
    return Built({"": Call(run)})


def _arrays(job: Job, seed: int | None = None) -> list[Any]:
    """The timed input, or one to calibrate with."""
    inputs = inputs_of(job.of) if seed is None else inputs_of(job.of, seed)
    return [tensor.numpy() for tensor in flat_tensors(inputs, ORDINARY)]
