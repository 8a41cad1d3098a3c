"""A CLIP model (transformers' CLIPModel) as judge of images and texts, and as feature extractor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from halftone.errors import InputError
from halftone.qdiffbench.features import ByteImage, Extractor
from halftone.qdiffbench.model_folders import folder_sha256, load_model, load_part, read_config, resolve_model

DEFAULT_CLIP = "openai/clip-vit-large-patch14"
TEXTS_AT_ONCE = 32


class ClipModel:
    """Both towers with tokenizer and image processor, in float32 on one device.

    Attributes:
        dimension: length of the projected features of images and texts.
        context: tokens a text may have; what is longer is truncated.
        identity: source and weights' hash.
    """

    def __init__(self, model: Any, tokenizer: Any, processor: Any, identity: str, device: str) -> None:
        self._model = model.to(device, torch.float32).eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._processor = processor
        self._device = device
        self.dimension = int(model.config.projection_dim)
        self.context = int(model.config.text_config.max_position_embeddings)
        self.identity = identity

    @classmethod
    def load(cls, source: str, device: str = "cpu") -> ClipModel:
        """From a folder, a hub id or ``bundled:NAME``.

        Raises:
            InputError: it is not there, or is no CLIPModel with tokenizer and image processor.
        """
        from transformers import CLIPModel, CLIPTokenizer

        folder = resolve_model(source)
        model_type = read_config(folder).get("model_type")
        if model_type != "clip":
            raise InputError(f"{source} is not a CLIPModel: its config.json says model_type {model_type!r}.")
        model = load_model(CLIPModel.from_pretrained, folder, "CLIP model")
        tokenizer = load_part(CLIPTokenizer.from_pretrained, folder, "tokenizer")
        processor = load_part(_processor_class().from_pretrained, folder, "image processor")
        return cls(model, tokenizer, processor, f"{source}@sha256:{folder_sha256(folder)}", device)

    def image_features(self, images: Sequence[ByteImage]) -> torch.Tensor:
        """Projected, unnormalized features of uint8 images (height, width, 3): (n, dimension) float32."""
        # channels are named, since the processor would guess them, and guesses wrong for a picture 3 pixels high
        pixels = self._processor(images=list(images), return_tensors="pt", input_data_format="channels_last")
        with torch.inference_mode():
            return _tensor(self._model.get_image_features(pixel_values=pixels["pixel_values"].to(self._device)))

    def text_features(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Projected, unnormalized features of texts: (n, dimension) float32.

        A text longer than the context is cut as CLIP does: its first tokens and the end token remain. Texts are
        padded to the whole context, so that a text's features do not depend on the others.

        Raises:
            InputError: NaN or infinity came out; says for which text.
        """
        features = np.empty((len(texts), self.dimension), dtype=np.float32)
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            group = list(texts[start : start + TEXTS_AT_ONCE])
            filled = group + [group[-1]] * (TEXTS_AT_ONCE - len(group))
            features[start : start + len(group)] = self._texts_at_once(filled)[: len(group)]
        bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if bad.size:
            raise InputError(f"The CLIP model gave NaN or infinity for the text {texts[int(bad[0])]!r}.")
        return features

    def is_truncated(self, text: str) -> bool:
        """Whether the text has more tokens than the model sees."""
        return len(self._tokenizer(text)["input_ids"]) > self.context

    def _texts_at_once(self, texts: list[str]) -> npt.NDArray[np.float32]:
        tokens = self._tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.context, return_tensors="pt"
        ).to(self._device)
        with torch.inference_mode():
            found = self._model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
        return _tensor(found).to("cpu", torch.float32).numpy()


class ClipExtractor(Extractor):
    """Image features of a CLIP model: projected and unnormalized."""

    name = "clip"

    def __init__(self, model: ClipModel) -> None:
        self.model = model
        self.dimension = model.dimension
        self.identity = f"clip:{model.identity}"

    def forward(self, images: Sequence[ByteImage]) -> torch.Tensor:
        """See :meth:`Extractor.forward`."""
        return self.model.image_features(images)


def _processor_class() -> Any:
    """The image processor that works with PIL alone; transformers 4 knew it under the plain name."""
    import transformers

    try:
        return transformers.CLIPImageProcessorPil
    except AttributeError:
        return transformers.CLIPImageProcessor


def _tensor(output: Any) -> torch.Tensor:
    """transformers 4 returned the features themselves, 5 wraps them."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output
