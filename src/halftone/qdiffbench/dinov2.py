"""DINOv2 features (Oquab et al., TMLR 2024), through transformers' Dinov2Model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from halftone.errors import InputError
from halftone.qdiffbench.features import ByteImage, Extractor
from halftone.qdiffbench.model_folders import folder_sha256, load_model, load_part, read_config, resolve_model

DEFAULT_DINOV2 = "facebook/dinov2-base"


class DinoExtractor(Extractor):
    """The class token after the last layer norm."""

    name = "dinov2"

    def __init__(self, model: Any, processor: Any, identity: str, device: str) -> None:
        self._model = model.to(device, torch.float32).eval().requires_grad_(False)
        self._processor = processor
        self._device = device
        self.dimension = int(model.config.hidden_size)
        self.identity = f"dinov2:{identity}"

    @classmethod
    def load(cls, source: str, device: str = "cpu") -> DinoExtractor:
        """From a folder, a hub id or ``bundled:NAME``.

        Raises:
            InputError: it is not there, or is no Dinov2Model with image processor.
        """
        from transformers import Dinov2Model

        folder = resolve_model(source)
        model_type = read_config(folder).get("model_type")
        if model_type != "dinov2":
            raise InputError(f"{source} is not a Dinov2Model: its config.json says model_type {model_type!r}.")
        model = load_model(Dinov2Model.from_pretrained, folder, "DINOv2 model")
        processor = load_part(_processor_class().from_pretrained, folder, "image processor")
        return cls(model, processor, f"{source}@sha256:{folder_sha256(folder)}", device)

    def forward(self, images: Sequence[ByteImage]) -> torch.Tensor:
        """See :meth:`Extractor.forward`."""
        pixels = self._processor(images=list(images), return_tensors="pt", input_data_format="channels_last")
        output = self._model(pixel_values=pixels["pixel_values"].to(self._device))
        features: torch.Tensor = output.last_hidden_state[:, 0]
        return features


def _processor_class() -> Any:
    """The image processor that works with PIL alone; transformers 4 knew it under the plain name."""
    import transformers

    try:
        return transformers.BitImageProcessorPil
    except AttributeError:
        return transformers.BitImageProcessor
