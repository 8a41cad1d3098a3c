"""ONNX Runtime with static int8: u8 inputs, s8 weights by channel, floating-point attention."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.cpu_speed.inputs import Flat, flat_tensors, inputs_of
from benchmarks.cpu_speed.jobs import Built, Call, Job
from benchmarks.cpu_speed.models import ORDINARY
from benchmarks.cpu_speed.peers.openvino import CALIBRATION
from benchmarks.cpu_speed.unets import open_unet

_GRAPH = "model.onnx"
_NAMES = ("sample", "timestep", "text", "text_embeds", "time_ids")


def make_integers(job: Job, folder: Path) -> dict[str, Any]:
    """Exports the UNet for one image size and quantizes convolutions and products with weights, by ranges from random
    inputs; the float graph is not kept."""
    with tempfile.TemporaryDirectory(dir=folder) as floats:
        _export(job, Path(floats) / _GRAPH)
        _quantize(job, Path(floats) / _GRAPH, folder / _GRAPH)
    return {}


def _export(job: Job, path: Path) -> None:
    """The UNet in float32."""
    unet = open_unet(job, torch.float32, own_memory=False)
    example = flat_tensors(inputs_of(job.of), ORDINARY)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the older exporter, which needs no further package
        torch.onnx.export(
            Flat(unet), example, path,
            input_names=list(_NAMES[: len(example)]), output_names=["noise"], opset_version=17, dynamo=False,
        )  # fmt: skip


def _quantize(job: Job, source: Path, target: Path) -> None:
    tools = import_module("onnxruntime.quantization")
    tools.quantize_static(
        source,
        target,
        _reader(tools, job),
        quant_format=tools.QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        per_channel=True,
        activation_type=tools.QuantType.QUInt8,
        weight_type=tools.QuantType.QInt8,
        calibrate_method=tools.CalibrationMethod.MinMax,
        use_external_data_format=True,
        extra_options={"MatMulConstBOnly": True},
    )


def build(job: Job) -> Built:
    """A session with the quantized graph."""
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.inter_op_num_threads = 1
    path = job.folder("onnx-int8", of_weights=False) / _GRAPH
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = _feeds(job)
    return Built({"": Call(lambda: session.run(None, feeds)[0])})


def _reader(tools: Any, job: Job) -> Any:
    """Calibration inputs in the form that the quantizer asks for."""

    class Reader(tools.CalibrationDataReader):
        def __init__(self) -> None:
            self.left: Iterator[dict[str, Any]] = (_feeds(job, seed) for seed in range(CALIBRATION))

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    return Reader()


def _feeds(job: Job, seed: int | None = None) -> dict[str, Any]:
    inputs = inputs_of(job.of) if seed is None else inputs_of(job.of, seed)
    tensors = flat_tensors(inputs, ORDINARY)
    return {name: tensor.numpy() for name, tensor in zip(_NAMES, tensors, strict=False)}
