"""LPIPS (Zhang et al., CVPR 2018), through the package ``lpips``, which is an optional extra and needs torchvision."""

from __future__ import annotations

import contextlib
import io
import pickle
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from halftone.errors import InputError
from halftone.files import file_sha256
from halftone.qdiffbench.fidelity import ByteImage, check_images

SMALLEST_SIDE = 32
"""Pixels; AlexNet's poolings leave nothing of a smaller picture."""
INSTALL = "pip install lpips, with the torchvision that fits your torch"


class Lpips:
    """The learned distance of two images, with the AlexNet trunk and the linear weights v0.1.

    Attributes:
        identity: version of the weights, and the hash of the trunk's file if one was given.
    """

    def __init__(self, trunk: str | Path | None = None, device: str = "cpu") -> None:
        """Loads the weights.

        Args:
            trunk: torchvision's ``alexnet`` weights as a local file; its usual download if not given.

        Raises:
            InputError: the package does not load, or the trunk is not there or of another kind.
        """
        library = _library()
        self.identity = "lpips:alex-v0.1" if trunk is None else f"lpips:alex-v0.1@sha256:{_hash(Path(trunk))}"
        self._device = device
        self._model = _built(library, trunk).to(device, torch.float32).eval().requires_grad_(False)

    def __call__(self, a: ByteImage, b: ByteImage) -> float:
        """The distance of two images.

        Args:
            a, b: uint8 images, (height, width, 3), of one shape, sides of at least 32.

        Returns:
            A non-negative number without unit; 0 for identical images. The order does not matter.

        Raises:
            InputError: a shape or dtype other than that.
        """
        check_images(a, b)
        if min(a.shape[:2]) < SMALLEST_SIDE:
            raise InputError(f"lpips needs images of at least {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels, got {a.shape}")
        with torch.inference_mode():
            return float(self._model(self._signed(a), self._signed(b)))

    def _signed(self, image: ByteImage) -> torch.Tensor:
        """uint8 (H, W, 3) -> float32 (1, 3, H, W) in -1 … 1."""
        values = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
        return values.to(self._device, torch.float32) / 127.5 - 1.0


def _library() -> Any:
    try:
        return import_module("lpips")
    except ModuleNotFoundError as error:
        raise InputError(f"LPIPS needs {error.name}, which is not installed; {INSTALL}.") from error
    except (ImportError, RuntimeError, OSError) as error:
        first = " ".join(str(error).split())[:200]
        raise InputError(f"LPIPS could not import the package lpips ({first}); {INSTALL}.") from error


def _hash(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"The AlexNet weights {path} do not exist.")
    return file_sha256(path)


def _built(library: Any, trunk: str | Path | None) -> Any:
    try:
        # the package prints, and calls torchvision in a way that is deprecated
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = library.LPIPS(net="alex", verbose=False, pnet_rand=trunk is not None)
        if trunk is not None:
            _fill_trunk(model.net, torch.load(trunk, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, ValueError, KeyError, AttributeError, TypeError, pickle.UnpicklingError) as error:
        first = " ".join(str(error).split())[:200]
        raise InputError(f"The weights of LPIPS could not be loaded: {first}") from error
    return model


def _fill_trunk(net: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """torchvision's ``features.3.weight`` is the package's ``slice2.3.weight``: only the first word differs."""
    names = list(net.state_dict())
    net.load_state_dict({name: weights["features." + name.split(".", 1)[1]] for name in names})
