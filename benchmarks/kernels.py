"""How long one layer takes: the reference, oneDNN's integers, and float32, in interleaved rounds.

    python -m benchmarks.kernels [--quick] [--threads N] [--json FILE] [--model mini|sd15]

Prints a table of median milliseconds (and the middle half of the rounds, in percent) and the ratios to float32, and
writes all of it as JSON. The rounds interleave the implementations, so that what else the machine does falls on all
of them alike; only ratios mean anything elsewhere.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.timing import Timing, repeats_for, seconds, spread_percent, summary
from halftone.kernels import onednn, reference
from halftone.kernels.onednn_product import unavailable
from halftone.kernels.registry import ConvGeometry, LayerWeights, PreparedKernel


@dataclass(frozen=True)
class Shape:
    """A layer and its input: ``rows`` of a linear layer, or the ``size`` of square images of a convolution."""

    model: str
    inputs: int
    outputs: int
    batch: int = 2
    size: int = 0
    kernel: int = 3
    rows: int = 0

    @property
    def name(self) -> str:
        if self.rows:
            return f"linear {self.rows}x{self.inputs} -> {self.outputs}"
        return f"conv{self.kernel} {self.batch}x{self.size}x{self.size}x{self.inputs} -> {self.outputs}"

    @property
    def operations(self) -> int:
        """Multiplications and additions of one call."""
        pixels = self.rows or self.batch * self.size**2
        return 2 * pixels * self.inputs * self.outputs * (1 if self.rows else self.kernel**2)


SHAPES = [
    Shape("mini", 64, 64, size=16),
    Shape("mini", 128, 128, size=8),
    Shape("mini", 192, 192, size=4),
    Shape("mini", 128, 64, size=16, kernel=1),
    Shape("mini", 64, 64, rows=512),
    Shape("mini", 64, 512, rows=512),
    Shape("mini", 128, 128, rows=128),
    Shape("mini", 192, 192, rows=32),
    Shape("mini", 256, 128, rows=2),
    Shape("sd15", 320, 320, size=64),
    Shape("sd15", 640, 640, size=32),
    Shape("sd15", 1280, 1280, size=16),
    Shape("sd15", 2560, 1280, size=16),
    Shape("sd15", 1280, 1280, size=8),
    Shape("sd15", 320, 320, rows=8192),
    Shape("sd15", 320, 2560, rows=8192),
    Shape("sd15", 1280, 320, rows=8192),
    Shape("sd15", 640, 640, rows=2048),
    Shape("sd15", 1280, 10240, rows=512),
    Shape("sd15", 768, 320, rows=154),
    Shape("sd15", 1280, 1280, rows=2),
]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--model", choices=sorted({shape.model for shape in SHAPES}), help="only the layers of one model"
    )
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"{'layer':36}" + "".join(f"{name:>22}" for name in ("float32", "reference", "onednn", "onednn 10 bits")))
    layers = []
    for shape in SHAPES:
        if options.model in (None, shape.model):
            layers.append(measure(shape, rounds=5 if options.quick else 15, least=0.01 if options.quick else 0.05))
            print(row(layers[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "layers": layers}, indent=1) + "\n")


def machine() -> dict[str, object]:
    """What the figures depend on."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn_unavailable": unavailable(),
    }


def measure(shape: Shape, rounds: int, least: float) -> dict[str, object]:
    """Times of one layer.

    Args:
        shape: the layer.
        rounds: how often each implementation is timed.
        least: seconds that one timing lasts at least, if one call takes less.
    """
    with torch.no_grad():
        calls = implementations(shape)
        repeats = {name: repeats_for(call, least) for name, call in calls.items()}
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                times[name].append(seconds(call, repeats[name]))
    timings = {name: summary(values) for name, values in times.items()}
    base = timings["float32"]["median_ms"]
    return {
        "name": shape.name,
        **asdict(shape),
        "timings": timings,
        "speedup_over_float32": {name: base / timing["median_ms"] for name, timing in timings.items()},
        "gops": {name: shape.operations / timing["median_ms"] / 1e6 for name, timing in timings.items()},
    }


def implementations(shape: Shape) -> dict[str, Callable[[], Tensor]]:
    """Calls of the same layer on the same input, each in its best memory format."""
    if shape.rows:
        x = torch.randn(shape.rows, shape.inputs)
        module: nn.Module = nn.Linear(shape.inputs, shape.outputs)
        weight, geometry = torch.randint(-127, 128, (shape.outputs, shape.inputs), dtype=torch.int8), None
        slow, fast = reference.prepare_linear, onednn.prepare_linear
    else:
        x = torch.randn(shape.batch, shape.inputs, shape.size, shape.size).to(memory_format=torch.channels_last)
        padding = shape.kernel // 2
        module = nn.Conv2d(shape.inputs, shape.outputs, shape.kernel, padding=padding)
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        size = (shape.outputs, shape.inputs, shape.kernel, shape.kernel)
        weight, geometry = torch.randint(-127, 128, size, dtype=torch.int8), ConvGeometry(padding=(padding,) * 4)
        slow, fast = reference.prepare_conv2d, onednn.prepare_conv2d
    weights = LayerWeights(weight, torch.rand(shape.outputs), torch.randn(shape.outputs), geometry)
    calls = {"float32": lambda: module(x), "reference": call_of(slow(weights), x, 8)}
    if unavailable() is None:
        calls["onednn"] = call_of(fast(weights), x, 8)
        calls["onednn 10 bits"] = call_of(fast(weights), x, 10)
    return calls


def call_of(kernel: PreparedKernel, x: Tensor, num_bits: int) -> Callable[[], Tensor]:
    """A call with parameters that cover a normal distribution."""
    levels = 2**num_bits
    return lambda: kernel(x, 8.0 / levels, levels // 2 - 1, num_bits)


def row(layer: dict[str, object]) -> str:
    """A line of the table: median, spread of the middle half, ratio to float32."""
    timings: dict[str, Timing] = layer["timings"]  # type: ignore[assignment]
    ratios: dict[str, float] = layer["speedup_over_float32"]  # type: ignore[assignment]
    cells = []
    for name, timing in timings.items():
        cells.append(f"{timing['median_ms']:9.3f} ±{spread_percent(timing):2.0f}% {ratios[name]:5.2f}x")
    return f"{layer['name']:36}" + "".join(f"{cell:>22}" for cell in cells)


if __name__ == "__main__":
    main()
