import sys

import numpy as np
import pytest
import torch

from halftone.errors import InputError
from halftone.qdiffbench import perceptual
from halftone.qdiffbench.perceptual import Lpips


@pytest.fixture
def trunk(tmp_path):
    """A file as torchvision's AlexNet weights are, random."""
    try:
        perceptual._library()
    except InputError as error:
        pytest.skip(str(error))
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    path = tmp_path / "alexnet.pth"
    torch.save(torchvision.models.alexnet().state_dict(), path)
    return path


@pytest.mark.parametrize("name", ["lpips", "torchvision"])
def test_it_says_what_to_install(monkeypatch, name):
    class Missing:
        def find_spec(self, wanted, path=None, target=None):
            if wanted.split(".")[0] in ("lpips", "torchvision"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for module in [module for module in sys.modules if module.split(".")[0] == "lpips"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(InputError, match=f"needs {name}, which is not installed; pip install lpips"):
        Lpips()


def test_a_torchvision_that_does_not_fit_torch_is_one_sentence(monkeypatch):
    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(perceptual, "import_module", broken)
    with pytest.raises(InputError, match=r"torchvision::nms.*pip install"):
        Lpips()


def test_distances(trunk):
    distance = Lpips(trunk)
    generator = np.random.default_rng(0)
    a = generator.integers(0, 256, (40, 48, 3)).astype(np.uint8)
    b = np.clip(a.astype(int) + generator.integers(-9, 10, a.shape), 0, 255).astype(np.uint8)
    c = generator.integers(0, 256, (40, 48, 3)).astype(np.uint8)
    assert distance(a, a) == pytest.approx(0.0, abs=1e-7)
    assert 0.0 < distance(a, b) < distance(a, c)
    assert distance(a, b) == pytest.approx(distance(b, a))
    assert distance.identity.startswith("lpips:alex-v0.1@sha256:")


def test_wrong_input_is_refused(trunk, tmp_path):
    distance = Lpips(trunk)
    small = np.zeros((31, 64, 3), np.uint8)
    with pytest.raises(InputError, match="32x32"):
        distance(small, small)
    with pytest.raises(InputError):
        distance(small, small[:30])
    with pytest.raises(InputError, match="do not exist"):
        Lpips(tmp_path / "none.pth")
    trunk.write_bytes(b"not weights")
    with pytest.raises(InputError, match="could not be loaded"):
        Lpips(trunk)
