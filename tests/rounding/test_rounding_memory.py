"""The memory that rounding says it takes is what it takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from halftone.rounding import GPTQ, AdaRound, Unit, adaround
from halftone.rounding.calls import CallCache

MB = 10**6


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a peak that starts anew")
def test_memory_is_told_beforehand():
    """At most what was told (up to 10 MB that libraries take once), and no less than a third."""
    # Every tensor over 64 kB is a mapping of its own, and gone from the process once it is freed.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    script = Path(__file__).with_name("peaks.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {line.pop("case"): line for line in map(json.loads, done.stdout.splitlines())}
    del found["warming up"]
    for name, case in found.items():
        assert case["told"] / 3 <= case["found"] <= case["told"] + 10 * MB, (name, case)
    whole, parts = found["adaround, block"], found["adaround, block in parts"]
    assert parts["told"] < whole["told"] - 50 * MB and parts["found"] < whole["found"] - 50 * MB


class _Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x, shift):
        return self.second(functional.silu(self.first(x) + shift[:, None]))


@pytest.fixture
def block_error(monkeypatch):
    """A function of the bytes of a part: error of a batch, and its gradient."""
    torch.manual_seed(0)
    block = _Block()
    unit = Unit("mid", block, {"mid.first": block.first, "mid.second": block.second})
    x, shift = torch.randn(11, 5, 8), torch.randn(11, 16)
    cache = CallCache(11, 11)
    with torch.no_grad():
        cache.see((x,), {"shift": shift}, block(x, shift))

    def compute(part_bytes):
        monkeypatch.setattr(adaround, "_BYTES_PER_PART", part_bytes)
        error = adaround._BlockError(unit, cache, 7, torch.Generator().manual_seed(0))
        weights = {name: (layer.weight.detach() * 1.1).requires_grad_() for name, layer in unit.layers.items()}
        value = error.part(weights)
        value.backward()
        return error, value.detach(), [weight.grad for weight in weights.values()]

    return compute


def test_parts_of_a_batch_give_what_the_whole_gives(block_error):
    whole, value, gradients = block_error(2**30)
    parts, other_value, other_gradients = block_error(1)
    assert (whole.rows_at_a_time, parts.rows_at_a_time) == (7, 1) and value > 0
    assert torch.allclose(other_value, value, rtol=1e-5)
    for one, other in zip(gradients, other_gradients, strict=True):
        assert one.abs().max() > 0 and torch.allclose(one, other, rtol=1e-4, atol=1e-6)
    weights = {f"mid.{name}": getattr(whole.unit.module, name).weight * 1.1 for name in ("first", "second")}
    assert parts.whole(weights) == pytest.approx(whole.whole(weights), rel=1e-5)


@pytest.mark.parametrize("rule", [AdaRound(), GPTQ()], ids=lambda rule: type(rule).__name__)
def test_a_larger_unit_is_more_work(rule):
    small, large = nn.Linear(8, 8), nn.Linear(16, 16)
    costs = [rule.cost(Unit("mid", layer, {"mid": layer}), (torch.zeros(1, 8),), {}) for layer in (small, large)]
    assert costs[0].operations < costs[1].operations and costs[0].peak_bytes < costs[1].peak_bytes
