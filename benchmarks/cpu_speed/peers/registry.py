"""The table of peers and stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from benchmarks.cpu_speed.jobs import Built, Job
from benchmarks.cpu_speed.models import Model
from benchmarks.cpu_speed.stages import Stage
from halftone.errors import InputError, suggest

#: What a process takes before it holds a model.
_LIBRARIES_GIB = 0.5
#: Timed in every group, so that all ratios can be told.
COMMON = "halftone-bf16"
CEILINGS = "ceilings"
BASE = "torch-fp32"


class Later:
    """A function of this package with some of its arguments, imported when it is called: the driver needs none of the
    libraries, and so starts at once and stays small.

    Args:
        module: below benchmarks.cpu_speed.
        name: of the function.
        arguments: by name, besides those of the call.
    """

    def __init__(self, module: str, name: str, **arguments: Any) -> None:
        self.module, self.name, self.arguments = module, name, arguments

    def __call__(self, *args: Any) -> Any:
        return getattr(import_module(f"benchmarks.cpu_speed.{self.module}"), self.name)(*args, **self.arguments)


@dataclass(frozen=True)
class Peer:
    """A library in one setting, in a process of its own.

    Attributes:
        name: on the command line and in the result.
        words: for readers.
        arithmetic: "float32", "bfloat16" or "int8": what most of its products are computed in.
        build: makes it ready to run.
        stages: what it starts from.
        packages: what has to be installed.
        weights: memory that it occupies, in times the model's float32 weights.
    """

    name: str
    words: str
    arithmetic: str
    build: Callable[[Job], Built]
    stages: tuple[str, ...] = ("weights",)
    packages: tuple[str, ...] = ()
    weights: float = 1.0

    def missing(self) -> str | None:
        """Why it cannot run here; None if all that it needs is installed."""
        absent = [name for name in self.packages if find_spec(name) is None]
        return f"{' and '.join(absent)} not installed (pip install halftone[benchmarks])" if absent else None

    def memory_gib(self, model: Model) -> float:
        """What it occupies, roughly."""
        return _LIBRARIES_GIB + self.weights * model.float32_gib + (model.activations_gib if self.weights else 0.3)


_NNCF = ("openvino", "nncf")

UNET_PEERS = (
    Peer("torch-fp32", "PyTorch float32", "float32", Later("peers.pytorch", "eager", dtype="float32"), weights=1.1),
    Peer("torch-bf16", "PyTorch bfloat16", "bfloat16", Later("peers.pytorch", "eager", dtype="bfloat16"), weights=0.6),
    Peer(
        "torch-bf16-compile",
        "PyTorch bfloat16, torch.compile",
        "bfloat16",
        Later("peers.pytorch", "compiled", dtype="bfloat16"),
        weights=1.1,
    ),
    Peer(
        "torchao-int8",
        "torchao int8 dynamic",
        "int8",
        Later("peers.pytorch", "torchao_int8", is_compiled=False),
        packages=("torchao",),
        weights=0.6,
    ),
    Peer(
        "torchao-int8-compile",
        "torchao int8 dynamic, torch.compile",
        "int8",
        Later("peers.pytorch", "torchao_int8", is_compiled=True),
        packages=("torchao",),
        weights=0.9,
    ),
    *(
        Peer(
            f"openvino-{hint}",
            f"OpenVINO, {hint} hint",
            arithmetic,
            Later("peers.openvino", "build", stage="openvino", hint=hint),
            ("openvino",),
            ("openvino",),
            weights,
        )
        for hint, arithmetic, weights in (("f32", "float32", 1.1), ("bf16", "bfloat16", 0.6))
    ),
    *(
        Peer(
            f"{stage}-{hint}",
            f"OpenVINO + NNCF int8 ({scheme}), {hint} hint",
            "int8",
            Later("peers.openvino", "build", stage=stage, hint=hint),
            (stage,),
            _NNCF,
            0.4,
        )
        for stage, scheme in (("nncf-transformer", "for transformers"), ("nncf-default", "default"))
        for hint in ("f32", "bf16")
    ),
    Peer(
        "onnxruntime-int8",
        "ONNX Runtime int8",
        "int8",
        Later("peers.onnx", "build"),
        ("onnx-int8",),
        ("onnx", "onnxruntime"),
        0.7,
    ),
    Peer(
        "halftone-f32",
        "Halftone w8a8 in float32",
        "int8",
        Later("peers.halftone", "build", dtype="float32"),
        ("halftone",),
        weights=0.35,
    ),
    Peer(
        "halftone-bf16",
        "Halftone w8a8 in bfloat16",
        "int8",
        Later("peers.halftone", "build", dtype="bfloat16"),
        ("halftone",),
        weights=0.35,
    ),
    Peer(
        "halftone-bf16-compile",
        "Halftone w8a8 in bfloat16, torch.compile",
        "int8",
        Later("peers.halftone", "build_compiled", dtype="bfloat16"),
        ("halftone",),
        weights=0.6,
    ),
    Peer("ceilings", "large matrix products", "", Later("peers.ceilings", "build"), (), weights=0.0),
)

IMAGE_PEERS = (
    Peer("torch-fp32", "diffusers float32", "float32", Later("peers.images", "floating_point", dtype="float32"), ()),
    Peer("torch-bf16", "diffusers bfloat16", "bfloat16", Later("peers.images", "floating_point", dtype="bfloat16"), ()),
    *(
        Peer(
            f"halftone-{short}",
            f"Halftone w8a8 in {dtype}",
            "int8",
            Later("peers.images", "integers", stage=f"artifact-{dtype}"),
            (f"artifact-{dtype}",),
        )
        for short, dtype in (("f32", "float32"), ("bf16", "bfloat16"))
    ),
)

_OPENVINO, _ONNX = ("openvino", "torch", "diffusers"), ("onnx", "onnxruntime", "torch", "diffusers")
UNET_STAGES = (
    Stage("weights", "random weights", Later("unets", "make_weights")),
    Stage("reference", "full-precision output", Later("unets", "make_reference"), ("weights",), of_weights=False),
    Stage(
        "halftone",
        "Halftone's artifact",
        Later("peers.halftone", "make_artifact"),
        ("weights",),
        ("torch", "diffusers", "halftone"),
    ),
    Stage("openvino", "OpenVINO's graph", Later("peers.openvino", "make_graph"), ("weights",), _OPENVINO),
    *(
        Stage(
            name,
            f"NNCF's int8 graph ({'for transformers' if for_transformers else 'default'})",
            Later("peers.openvino", "make_integers", for_transformers=for_transformers),
            ("openvino",),
            ("nncf", *_OPENVINO),
        )
        for name, for_transformers in (("nncf-transformer", True), ("nncf-default", False))
    ),
    Stage(
        "onnx-int8",
        "ONNX Runtime's int8 graph",
        Later("peers.onnx", "make_integers"),
        ("weights",),
        _ONNX,
        of_weights=False,
    ),
)
IMAGE_STAGES = (
    Stage("reference", "full-precision image", Later("peers.images", "make_reference"), of_weights=False),
    *(
        Stage(
            f"artifact-{dtype}",
            f"Halftone's artifact in {dtype}",
            Later("peers.images", "make_artifact", dtype=dtype),
            packages=("torch", "diffusers", "halftone"),
        )
        for dtype in ("float32", "bfloat16")
    ),
)


def peers_of(model: Model) -> dict[str, Peer]:
    """What is timed on a model, by name."""
    return {peer.name: peer for peer in (IMAGE_PEERS if model.is_pipeline else UNET_PEERS)}


def stages_of(model: Model) -> dict[str, Stage]:
    """What can be made of a model, by name, in an order in which it can be made."""
    return {stage.name: stage for stage in (IMAGE_STAGES if model.is_pipeline else UNET_STAGES)}


def peer_named(name: str, model: Model) -> Peer:
    """A model's peer by its name.

    Raises:
        InputError: there is none.
    """
    peers = peers_of(model)
    if name not in peers:
        raise InputError(f"There is no peer {name!r} for {model.name}; {suggest(name, peers)}")
    return peers[name]
