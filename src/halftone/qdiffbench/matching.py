"""Does the picture show what the prompt says? From features of images and texts that are already there.

Image features come from a ``ClipExtractor`` and may be the stored ones of the distribution metrics; text features
from the same ``ClipModel``. Texts beyond its context are truncated there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from halftone.errors import InputError

Features = npt.NDArray[np.floating]
FloatArray = npt.NDArray[np.float64]

PROMPTS_AT_ONCE = 64  # whose texts' features are held at once


class TextModel(Protocol):
    """What turns texts into features of the images' space, (n, d); ``ClipModel`` does."""

    def text_features(self, texts: Sequence[str]) -> npt.NDArray[np.float32]: ...


def clip_scores(images: Features, texts: Features) -> FloatArray:
    """100 · max(cosine, 0) of each image with its own text.

    Hessel et al., "CLIPScore" (EMNLP 2021), equation 1, is 2.5 · max(cosine, 0) with "A photo depicts" before the
    text. Here, as in the diffusion literature, the factor is 100 and the prompt stands as it is.

    Args:
        images, texts: (n, d) features of one CLIP model, in any scale.

    Returns:
        (n,) float64 in [0, 100]; higher is better.

    Raises:
        InputError: different shapes, or a vector that is zero or not finite.
    """
    if images.shape != texts.shape:
        raise InputError(f"Each image needs one text, got features of shape {images.shape} and {texts.shape}.")
    cosines = np.sum(_unit(images, "image") * _unit(texts, "text"), axis=1)
    return np.asarray(100.0 * np.clip(cosines, 0.0, 1.0))


def attribute_hits(
    images: Features, prompts: Sequence[str], alternatives: Sequence[Sequence[str]], model: TextModel
) -> npt.NDArray[np.bool_]:
    """Whether the true prompt is nearer to its image than every alternative; the mean is the attribute accuracy.

    A tie is a miss, so an alternative that differs only beyond the model's context can never be won against.
    Guessing reaches 1 / (1 + number of alternatives).

    Args:
        images: (n, d) features of one CLIP model, in any scale.
        prompts: n true texts.
        alternatives: for each, one or more false texts.
        model: of the same CLIP model.

    Returns:
        (n,) booleans.

    Raises:
        InputError: different lengths, a prompt without alternatives or with itself among them, or a vector that is
            zero or not finite.
    """
    if not len(images) == len(prompts) == len(alternatives):
        raise InputError(
            f"There are {len(images)} images, {len(prompts)} prompts and {len(alternatives)} lists of alternatives."
        )
    for prompt, false in zip(prompts, alternatives, strict=True):
        if not false or prompt in false:
            raise InputError(f"The prompt {prompt!r} needs alternatives that differ from it.")
    units = _unit(images, "image")
    hits = np.empty(len(prompts), dtype=np.bool_)
    for start in range(0, len(prompts), PROMPTS_AT_ONCE):
        rows = range(start, min(start + PROMPTS_AT_ONCE, len(prompts)))
        texts = [text for row in rows for text in (prompts[row], *alternatives[row])]
        features = _unit(model.text_features(texts), "text")
        for row in rows:
            count = 1 + len(alternatives[row])
            cosines, features = features[:count] @ units[row], features[count:]
            hits[row] = cosines[0] > cosines[1:].max()
    return hits


def _unit(features: Features, what: str) -> FloatArray:
    """Rows of length one, in float64."""
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2:
        raise InputError(f"Features of {what}s must have the shape (n, d), got {rows.shape}.")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not (lengths > 0.0).all():
        raise InputError(f"The features of one {what} are zero or not finite, so they have no direction.")
    return np.asarray(rows / lengths)
