"""How long attention takes: torch in float32 and bfloat16, and the native kernel, in interleaved rounds.

    python -m benchmarks.attention [--quick] [--threads N] [--json FILE] [--model sd15|sdxl]

Prints a table of median milliseconds (and the middle half of the rounds, in percent), the ratios to torch's bfloat16,
and the errors against float64 in percent of the result, and writes all of it as JSON. The rounds interleave the
implementations, so that what else the machine does falls on all of them alike; only ratios mean anything elsewhere.
Inputs are normally distributed and lie in memory as a UNet has them, (batch, tokens, heads, channels).
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.timing import Timing, repeats_for, seconds, spread_percent, summary
from halftone.native import attention as native

Inputs = tuple[Tensor, Tensor, Tensor]

_BASE = "torch bfloat16"
#: Queries that are compared with float64; all of them would take longer than the benchmark.
_COMPARED = 128


@dataclass(frozen=True)
class Shape:
    """Attention of a UNet at one resolution, for an image with guidance."""

    model: str
    heads: int
    queries: int
    keys: int
    head_dim: int
    batch: int = 2

    @property
    def name(self) -> str:
        kind = "self" if self.queries == self.keys else "cross"
        return f"{self.model} {kind} {self.batch}x{self.heads} {self.queries}x{self.keys}x{self.head_dim}"

    @property
    def operations(self) -> int:
        """Multiplications and additions of both products."""
        return 4 * self.batch * self.heads * self.queries * self.keys * self.head_dim


#: SD 1.5 at 512 x 512 and SDXL at 1024 x 1024 pixels.
SHAPES = [
    Shape("sd15", 8, 4096, 4096, 40),
    Shape("sd15", 8, 1024, 1024, 80),
    Shape("sd15", 8, 256, 256, 160),
    Shape("sd15", 8, 64, 64, 160),
    Shape("sd15", 8, 4096, 77, 40),
    Shape("sd15", 8, 1024, 77, 80),
    Shape("sd15", 8, 256, 77, 160),
    Shape("sdxl", 10, 4096, 4096, 64),
    Shape("sdxl", 20, 1024, 1024, 64),
    Shape("sdxl", 10, 4096, 77, 64),
    Shape("sdxl", 20, 1024, 77, 64),
]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--model", choices=sorted({shape.model for shape in SHAPES}), help="only the shapes of one model"
    )
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"{'attention':36}" + "".join(f"{name:>30}" for name in implementations(inputs_of(SHAPES[3]))))
    results = []
    for shape in SHAPES:
        if options.model in (None, shape.model):
            results.append(measure(shape, rounds=3 if options.quick else 11, least=0.01 if options.quick else 0.05))
            print(row(results[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "shapes": results}, indent=1) + "\n")


def machine() -> dict[str, object]:
    """What the figures depend on."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "native_unavailable": native.unavailable(),
    }


def inputs_of(shape: Shape) -> Inputs:
    """Queries, keys and values in float32."""
    draw = lambda tokens: torch.randn(shape.batch, tokens, shape.heads, shape.head_dim).transpose(1, 2)  # noqa: E731
    return draw(shape.queries), draw(shape.keys), draw(shape.keys)


def implementations(inputs: Inputs) -> dict[str, Callable[[], Tensor]]:
    """Calls on the same inputs, in float32 and rounded to bfloat16."""
    query, key, value = inputs
    half = query.bfloat16(), key.bfloat16(), value.bfloat16()
    calls: dict[str, Callable[[], Tensor]] = {
        "torch float32": lambda: scaled_dot_product_attention(query, key, value),
        _BASE: lambda: scaled_dot_product_attention(*half),
    }
    if native.unavailable() is None:
        calls["native bfloat16 of float32"] = lambda: native.attention(query, key, value, "bfloat16")
        calls["native bfloat16"] = lambda: native.attention(*half, "bfloat16")
        calls["native int8"] = lambda: native.attention(*half, "int8")
    return calls


def measure(shape: Shape, rounds: int, least: float) -> dict[str, object]:
    """Times and errors at one shape.

    Args:
        shape: of the attention.
        rounds: how often each implementation is timed.
        least: seconds that one timing lasts at least, if one call takes less.
    """
    with torch.inference_mode():
        inputs = inputs_of(shape)
        calls = implementations(inputs)
        exact = exact_attention(*inputs)
        errors = {name: relative_error(call(), exact) for name, call in calls.items()}
        repeats = {name: repeats_for(call, least) for name, call in calls.items()}
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                times[name].append(seconds(call, repeats[name]))
    timings = {name: summary(values) for name, values in times.items()}
    base = timings[_BASE]["median_ms"]
    return {
        "name": shape.name,
        **asdict(shape),
        "timings": timings,
        "errors": errors,
        "speedup_over_torch_bfloat16": {name: base / timing["median_ms"] for name, timing in timings.items()},
        "gflops": {name: shape.operations / timing["median_ms"] / 1e6 for name, timing in timings.items()},
    }


def exact_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Of the first queries, in float64."""
    return scaled_dot_product_attention(query[:, :, :_COMPARED].double(), key.double(), value.double())


def relative_error(result: Tensor, exact: Tensor) -> float:
    """Frobenius norm of the difference over that of the exact result (of inputs that were not rounded)."""
    return float((result[:, :, :_COMPARED].double() - exact).norm() / exact.norm())


def row(result: dict[str, object]) -> str:
    """A line of the table: median, spread of the middle half, ratio to torch's bfloat16, error in percent."""
    timings: dict[str, Timing] = result["timings"]  # type: ignore[assignment]
    ratios: dict[str, float] = result["speedup_over_torch_bfloat16"]  # type: ignore[assignment]
    errors: dict[str, float] = result["errors"]  # type: ignore[assignment]
    cells = []
    for name, timing in timings.items():
        time_and_spread = f"{timing['median_ms']:8.2f} ±{spread_percent(timing):2.0f}%"
        cells.append(f"{time_and_spread} {ratios[name]:5.2f}x {100 * errors[name]:5.2f}%")
    return f"{result['name']:36}" + "".join(f"{cell:>30}" for cell in cells)


if __name__ == "__main__":
    main()
