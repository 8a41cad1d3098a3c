"""The Inception-v3 of FID (Heusel et al., 2017), through torch-fidelity, which is an optional extra.

torch-fidelity imports torchvision, whose wheel must fit torch's exactly: a torch from PyPI with a torchvision from
PyPI, or both from PyTorch's own index. A CPU-only torch with PyPI's torchvision does not load.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from halftone.errors import InputError
from halftone.files import file_sha256
from halftone.qdiffbench.features import ByteImage, Extractor

FEATURES = "2048"
DIMENSION = 2048
INSTALL = "pip install torch-fidelity, with the torchvision that fits your torch"


class InceptionExtractor(Extractor):
    """The 2,048 features of the last pooling layer; images are resized as TensorFlow 1 did, to 299x299."""

    name = "inception"
    dimension = DIMENSION

    def __init__(self, model: Any, identity: str, device: str) -> None:
        self._model = model.to(device)
        self._device = device
        self.identity = f"inception:{identity}"

    @classmethod
    def load(cls, weights: str | None = None, device: str = "cpu") -> InceptionExtractor:
        """From a local file in torch-fidelity's format, or by its usual download (once, into torch's hub folder).

        Raises:
            InputError: torch-fidelity does not load, or the weights are not there or of another kind.
        """
        library = _library()
        path = _downloaded(library.URL_INCEPTION_V3) if weights is None else Path(weights)
        if not path.is_file():
            raise InputError(f"The Inception weights {path} do not exist.")
        try:
            # torch-fidelity unpickles the file without restraint; what passes here holds tensors alone
            torch.load(path, map_location="cpu", weights_only=True)
            model = library.FeatureExtractorInceptionV3("inception-v3-compat", [FEATURES], str(path))
        except (
            OSError,
            RuntimeError,
            ValueError,
            KeyError,
            AttributeError,
            TypeError,
            pickle.UnpicklingError,
        ) as error:
            first = " ".join(str(error).split())[:200]
            raise InputError(f"{path} does not hold torch-fidelity's Inception weights: {first}") from error
        return cls(model, f"torch-fidelity@sha256:{file_sha256(path)}", device)

    def forward(self, images: Sequence[ByteImage]) -> torch.Tensor:
        """See :meth:`Extractor.forward`; images of different sizes go through one by one."""
        if len({image.shape for image in images}) == 1:
            return self._features(np.stack(images))
        return torch.cat([self._features(image[None]) for image in images])

    def _features(self, images: ByteImage) -> torch.Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(self._device)
        features: torch.Tensor = self._model(pixels)[0]
        return features


def _library() -> Any:
    try:
        return import_module("torch_fidelity.feature_extractor_inceptionv3")
    except ModuleNotFoundError as error:
        raise InputError(f"The extractor inception needs {error.name}, which is not installed; {INSTALL}.") from error
    except (ImportError, RuntimeError, OSError) as error:
        first = " ".join(str(error).split())[:200]
        raise InputError(f"The extractor inception could not import torch-fidelity ({first}); {INSTALL}.") from error


def _downloaded(url: str) -> Path:
    """Where torch keeps the file of this address; fetched if it is not there yet, its hash checked."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # the name ends with the first eight digits of the hash
            prefix = path.stem.rsplit("-", 1)[-1]
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=False)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"The Inception weights could not be downloaded ({error}); fetch {url} yourself and "
                "name the file: inception:FILE."
            ) from error
    return path
