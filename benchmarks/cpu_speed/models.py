"""The denoisers that are timed: their configurations, sizes and inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halftone.errors import InputError, suggest

#: Timesteps of the two slots of Halftone's artifact; the second one is relaxed to 10 bits.
ORDINARY, RELAXED = 500, 100
#: An image with guidance: both halves in one call.
BATCH = 2
MINI_SD = "bundled:mini-sd"

_SD15: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
_SDXL: dict[str, Any] = {
    "sample_size": 128,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "projection_class_embeddings_input_dim": 2816,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
#: As SDXL but for its size.
_TINY = {
    **_SDXL,
    "sample_size": 16,
    "addition_time_embed_dim": 8,
    "attention_head_dim": [2, 4, 8],
    "block_out_channels": [32, 64, 128],
    "cross_attention_dim": 64,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "projection_class_embeddings_input_dim": 80,
    "transformer_layers_per_block": [1, 1, 2],
}


@dataclass(frozen=True)
class Model:
    """A denoiser at one image size, or whole images of a small pipeline.

    Attributes:
        name: on the command line.
        title: for readers.
        weights: models of the same weights share everything that is made of them.
        parameters: numbers in the denoiser; memory is planned by them.
        activations_gib: what a call takes besides weights, roughly.
        latents: height and width of the latents.
        text: tokens and channels of the text states.
        pooled: channels of SDXL's pooled text; 0 for models without.
        config: of the UNet; None if it comes from a pipeline's folder.
        source: the pipeline, for models with real weights.
        is_pipeline: whether a call is a whole image instead of one of the denoiser.
    """

    name: str
    title: str
    weights: str
    parameters: int
    activations_gib: float
    latents: int
    text: tuple[int, int]
    pooled: int = 0
    config: Mapping[str, Any] | None = None
    source: str | None = None
    is_pipeline: bool = False

    @property
    def float32_gib(self) -> float:
        """Memory of the weights in float32."""
        return self.parameters * 4 / 2**30


MODELS = {
    model.name: model
    for model in (
        Model("sd15", "Stable Diffusion 1.5, 512×512", "sd15", 859_520_964, 0.6, 64, (77, 768), config=_SD15),
        Model("sdxl-1024", "SDXL, 1024×1024", "sdxl", 2_567_463_684, 1.5, 128, (77, 2048), 1280, config=_SDXL),
        Model("sdxl-512", "SDXL, 512×512", "sdxl", 2_567_463_684, 0.6, 64, (77, 2048), 1280, config=_SDXL),
        Model("mini-sd", "bundled:mini-sd, 64×64", "mini-sd", 8_984_836, 0.1, 16, (64, 256), source=MINI_SD),
        Model("tiny-sdxl", "SDXL, few channels, 128×128", "tiny-sdxl", 5_413_604, 0.1, 16, (77, 64), 32, config=_TINY),
        Model(
            "images",
            "whole images of bundled:mini-sd, 64×64",
            "images",
            8_984_836,
            0.3,
            16,
            (64, 256),
            source=MINI_SD,
            is_pipeline=True,
        ),
    )
}


def model_named(name: str) -> Model:
    """A model by its name.

    Raises:
        InputError: there is none.
    """
    if name not in MODELS:
        raise InputError(f"There is no model {name!r}; {suggest(name, MODELS)}")
    return MODELS[name]


def smallest_of(weights: str) -> Model:
    """The model of the least image size with these weights: what is made of the weights alone is made at that size."""
    return min((model for model in MODELS.values() if model.weights == weights), key=lambda model: model.latents)


def unet_config(model: Model) -> dict[str, Any]:
    """The UNet's configuration as diffusers takes it."""
    if model.config is not None:
        return dict(model.config)
    assert model.source is not None
    from halftone.files import parse_json
    from halftone.sources import resolve_folder

    path = Path(resolve_folder(model.source)) / "unet" / "config.json"
    return dict(parse_json(path.read_text(encoding="utf-8")))
