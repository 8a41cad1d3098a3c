"""What rounding really takes of the process's memory. Run by test_rounding_memory.py: prints for every case a JSON line
with the bytes that were told beforehand and those that Linux saw at the peak.

In a process of its own, whose large tensors each are a mapping of their own (see there), so that what was freed before
does not hide what is taken now.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from halftone.numerics import quantize_weight
from halftone.rounding import GPTQ, AdaRound, RoundingRule, Unit, adaround

Call = tuple[Tensor, ...]


class Block(nn.Module):
    """Attention and a wide layer, as a transformer has them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.joined, self.wide, self.narrow = nn.Linear(dim, 3 * dim), nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.joined(x).view(*x.shape[:2], 3, 4, -1).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(x.shape)
        return x + self.narrow(functional.gelu(self.wide(functional.layer_norm(x + attended, x.shape[-1:]))))


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


def _peak(work: Callable[[], object]) -> int:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def measure(rule: RoundingRule, module: nn.Module, x: Tensor) -> dict[str, int]:
    layers = {f"unit.{name}": part for name, part in module.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    unit = Unit("unit", module, layers if isinstance(module, Block) else {"unit": module})
    scales = {name: quantize_weight(layer.weight, 4)[1] for name, layer in unit.layers.items()}

    def work() -> None:
        seen = rule.collector(unit, len(x), len(x))
        for part in x.split(4):
            seen.see((part,), {}, module(part))
        rule.round(unit, scales, 4, seen, torch.Generator().manual_seed(0))

    with torch.no_grad():
        bytes_per_row = (x[0].nbytes + module(x[:1]).nbytes) * (x.element_size() // 4)
        told = rule.memory_bytes(unit, bytes_per_row, len(x)) + rule.cost(unit, (x[:1],), {}).peak_bytes
        return {"told": told, "found": _peak(work)}


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    learning = AdaRound(iterations=2)
    cases = {
        "warming up": (learning, Block(16), torch.randn(4, 8, 16)),
        "gptq": (GPTQ(), nn.Linear(2500, 16), torch.randn(4, 64, 2500)),
        "gptq, convolution": (GPTQ(), nn.Conv2d(250, 300, 3, groups=1), torch.randn(2, 250, 8, 8)),
        "adaround": (learning, nn.Linear(1500, 1000), torch.randn(4, 64, 1500)),
        "adaround, block": (learning, Block(256), torch.randn(32, 128, 256)),
    }
    for name, case in cases.items():
        print(json.dumps({"case": name, **measure(*case)}))
    adaround._BYTES_PER_PART = 2**24
    print(json.dumps({"case": "adaround, block in parts", **measure(*cases["adaround, block"])}))


if __name__ == "__main__":
    main()
