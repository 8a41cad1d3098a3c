"""Feature extractors: images -> vectors, by name. What turns pictures into numbers is pluggable.

extractor = build_extractor("clip:bundled:mini-clip")
features = extractor.extract(images)  # (n, extractor.dimension) float32
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from halftone.errors import InputError, suggest

ByteImage = npt.NDArray[np.uint8]
FloatFeatures = npt.NDArray[np.float32]

IMAGES_AT_ONCE = 16


class Extractor(ABC):
    """Turns images into feature vectors; a subclass says how in :meth:`forward`.

    The model always sees exactly ``images_at_once`` images: the last group is filled up with copies. So the features
    of an image do not depend on how many others it came with (matrix products of another shape round differently),
    and a run that was interrupted, or spread over processes, finds what an undisturbed one finds.

    Attributes:
        name: for messages and results, such as "clip".
        dimension: length of a feature vector.
        identity: the name, what it was loaded from, and a hash of the weights; equal identities give equal features.
        images_at_once: how many images are one call of the model.
    """

    name: str
    dimension: int
    identity: str
    images_at_once: int = IMAGES_AT_ONCE

    @abstractmethod
    def forward(self, images: Sequence[ByteImage]) -> torch.Tensor:
        """Features of ``images_at_once`` checked images: floating, (images_at_once, dimension), any device."""

    def extract(self, images: Sequence[ByteImage], names: Sequence[str] | None = None) -> FloatFeatures:
        """Features of images of any sizes.

        Args:
            images: uint8 arrays (height, width, 3).
            names: of the images, for messages; their positions if not given.

        Returns:
            (n, dimension) float32.

        Raises:
            InputError: an image of another shape or dtype, or features with NaN or infinity; says which image.
        """
        names = names if names is not None else [f"number {index}" for index in range(len(images))]
        if len(names) != len(images):
            raise InputError(f"There are {len(names)} names for {len(images)} images.")
        for image, name in zip(images, names, strict=True):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
                raise InputError(
                    f"Image {name} must be a uint8 array (height, width, 3), got {image.dtype} {image.shape}."
                )
        features = np.empty((len(images), self.dimension), dtype=np.float32)
        for start in range(0, len(images), self.images_at_once):
            group = list(images[start : start + self.images_at_once])
            found = self._forward_filled(group)
            self._check_finite(found, names[start : start + len(group)])
            features[start : start + len(group)] = found
        return features

    def _forward_filled(self, group: list[ByteImage]) -> FloatFeatures:
        filled = group + [group[-1]] * (self.images_at_once - len(group))
        with torch.inference_mode():
            found = self.forward(filled)
        if tuple(found.shape) != (len(filled), self.dimension):
            raise InputError(
                f"The extractor {self.name} gave features of shape {tuple(found.shape)}, "
                f"not ({len(filled)}, {self.dimension})."
            )
        return found[: len(group)].to("cpu", torch.float32).numpy()

    def _check_finite(self, features: FloatFeatures, names: Sequence[str]) -> None:
        bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if bad.size:
            raise InputError(f"The extractor {self.name} gave NaN or infinity for image {names[bad[0]]}.")


Factory = Callable[[str, str], Extractor]
"""Makes an extractor from (source, device); the source is empty if none was named."""

_FACTORIES: dict[str, Factory] = {}


def register_extractor(name: str) -> Callable[[Factory], Factory]:
    """Decorator that makes a factory known under ``name``.

        @register_extractor("mean-color")
        def mean_color(source: str, device: str) -> Extractor: ...

    Raises:
        InputError: the name is taken, or not usable in NAME:SOURCE.
    """
    if not name or ":" in name or name in _FACTORIES:
        raise InputError(f"An extractor cannot be registered as {name!r}: empty, with a colon, or taken.")

    def register(factory: Factory) -> Factory:
        _FACTORIES[name] = factory
        return factory

    return register


def extractor_names() -> tuple[str, ...]:
    """Names of the registered extractors."""
    return tuple(sorted(_FACTORIES))


def build_extractor(spec: str, device: str = "cpu") -> Extractor:
    """The extractor NAME or NAME:SOURCE, such as ``clip``, ``clip:bundled:mini-clip`` or ``inception:FILE``.

    Raises:
        InputError: no such extractor, or its weights or packages are missing; says what to do.
    """
    name, _, source = spec.partition(":")
    if name not in _FACTORIES:
        raise InputError(f"There is no feature extractor {name!r}; {suggest(name, _FACTORIES)}")
    return _FACTORIES[name](source, device)


# The built-in ones import their libraries when they are built: transformers alone takes seconds.


@register_extractor("clip")
def _clip(source: str, device: str) -> Extractor:
    from halftone.qdiffbench.clip_model import DEFAULT_CLIP, ClipExtractor, ClipModel

    return ClipExtractor(ClipModel.load(source or DEFAULT_CLIP, device))


@register_extractor("dinov2")
def _dinov2(source: str, device: str) -> Extractor:
    from halftone.qdiffbench.dinov2 import DEFAULT_DINOV2, DinoExtractor

    return DinoExtractor.load(source or DEFAULT_DINOV2, device)


@register_extractor("inception")
def _inception(source: str, device: str) -> Extractor:
    from halftone.qdiffbench.inception import InceptionExtractor

    return InceptionExtractor.load(source or None, device)
