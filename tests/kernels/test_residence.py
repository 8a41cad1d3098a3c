"""Weights in mapped files leave memory once they are packed, and are still there for whoever reads them."""

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from halftone.kernels import onednn
from halftone.kernels.onednn_product import unavailable
from halftone.kernels.registry import LayerWeights
from halftone.kernels.residence import release

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the advice is Linux's")
MANY = 2**20


def _resident(tensor: torch.Tensor) -> int:
    """Bytes in memory of the mapping that the tensor lies in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= tensor.data_ptr() < int(bounds[2], 16)
        elif inside and line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no such mapping")


@pytest.fixture
def mapped(tmp_path: Path) -> torch.Tensor:
    """int8 ``[1024, 1024]`` in a mapped file, all of it read."""
    weight = torch.randint(-127, 128, (1024, 1024), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    save_file({"weight": weight}, tmp_path / "weights.safetensors")
    tensor = load_file(tmp_path / "weights.safetensors")["weight"]
    assert tensor.equal(weight)
    release(tensor)
    if _resident(tensor) > MANY // 2:
        pytest.skip("this kernel does not take the advice, or safetensors does not map the file")
    assert tensor.equal(weight) and _resident(tensor) >= MANY
    return tensor


def test_released_pages_come_back_and_written_ones_stay(mapped):
    expected = mapped.clone()
    mapped[500] = expected[500] = 7
    release(mapped)
    assert _resident(mapped) < MANY // 2
    assert mapped.equal(expected)


def test_neighbours_in_the_file_are_left_alone(mapped):
    release(mapped[100:101])  # less than a page
    assert _resident(mapped) >= MANY


@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
@pytest.mark.parametrize("size", [1, 20, 64])
def test_packed_weights_are_held_once(mapped, size):
    expected = mapped.clone()
    if size == 1:
        onednn.prepare_linear(LayerWeights(mapped, torch.ones(1024)))
    else:
        kernel = onednn.prepare_conv2d(LayerWeights(mapped.view(16, 1024, 8, 8), torch.ones(16)))
        kernel(torch.randn(1, 1024, size, size), 0.1, 128, 8)
    assert _resident(mapped) < MANY // 2
    assert mapped.equal(expected)


def test_other_tensors_are_left_as_they_are():
    for tensor in (torch.ones(3), torch.ones(0), torch.ones(9, 8).T, torch.ones(2, device="meta")):
        release(tensor)
    big = torch.arange(MANY)
    release(big)
    assert big.equal(torch.arange(MANY)) and _resident(big) >= big.nbytes // 2
