"""Tiny random text-to-image pipelines, built in memory: the real classes of diffusers and transformers, no download.

    from pipelines import tiny_sd

    pipeline = tiny_sd(scheduler="pndm")
    latents = pipeline(["a red cube"], num_inference_steps=3, output_type="latent").images    # (1, 4, 8, 8)

`tiny_sd`, `tiny_sdxl` and `tiny_sd3` have the shapes of Stable Diffusion 1.x, SDXL and SD3: the same components and
calls as the large ones, with 16 x 16 pixel images and 8 x 8 latents. Weights depend on `seed` alone, and making a
pipeline leaves the global random state as it was. A call of a few steps takes milliseconds. The tokenizer knows
every byte, so any text is a prompt. `save_folder` writes one to disk as users have it.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

_NOISE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_WORDS = ("red", "blue", "cube", "ball")
TEXT_WIDTH = 16


def tiny_sd(seed: int = 0, scheduler: str = "ddim", channels: tuple[int, int] = (8, 16)) -> StableDiffusionPipeline:
    """A Stable Diffusion 1.x: one text encoder, epsilon prediction, a UNet with cross-attention at two resolutions.

    Args:
        seed: of the random weights.
        scheduler: "ddim", or "pndm", which visits its second timestep twice.
        channels: of the UNet's two resolutions, multiples of 8; widen them where a file's size matters.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            **_unet_shape(channels), cross_attention_dim=TEXT_WIDTH, attention_head_dim=2, norm_num_groups=4
        )
        pipeline = StableDiffusionPipeline(
            vae=_vae(latent_channels=4),
            text_encoder=CLIPTextModel(_text_config()),
            tokenizer=tiny_tokenizer(),
            unet=unet,
            scheduler=make_scheduler(scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    return _quiet(pipeline)


def tiny_sdxl(seed: int = 0, scheduler: str = "ddim") -> StableDiffusionXLPipeline:
    """An SDXL: two text encoders, and the denoiser's nested ``added_cond_kwargs`` (pooled text, sizes and crops)."""
    time_dim = 8
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            **_unet_shape((8, 16)),
            cross_attention_dim=2 * TEXT_WIDTH,
            attention_head_dim=(2, 4),
            norm_num_groups=4,
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=time_dim,
            projection_class_embeddings_input_dim=TEXT_WIDTH + 6 * time_dim,
        )
        pipeline = StableDiffusionXLPipeline(
            vae=_vae(latent_channels=4),
            text_encoder=CLIPTextModel(_text_config()),
            text_encoder_2=CLIPTextModelWithProjection(_text_config()),
            tokenizer=tiny_tokenizer(),
            tokenizer_2=tiny_tokenizer(),
            unet=unet,
            scheduler=make_scheduler(scheduler),
            add_watermarker=False,
        )
    return _quiet(pipeline)


def tiny_sd3(seed: int = 0) -> StableDiffusion3Pipeline:
    """An SD3: two CLIPs and a T5, a transformer, flow matching, fractional timesteps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * TEXT_WIDTH,
            caption_projection_dim=16,
            pooled_projection_dim=2 * TEXT_WIDTH,
            pos_embed_max_size=8,
        )
        pipeline = StableDiffusion3Pipeline(
            vae=_vae(latent_channels=4),
            text_encoder=CLIPTextModelWithProjection(_text_config()),
            text_encoder_2=CLIPTextModelWithProjection(_text_config()),
            text_encoder_3=T5EncoderModel(_t5_config()),
            tokenizer=tiny_tokenizer(),
            tokenizer_2=tiny_tokenizer(),
            tokenizer_3=tiny_t5_tokenizer(),
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )
    return _quiet(pipeline)


BUILDERS = {"sd": tiny_sd, "sdxl": tiny_sdxl, "sd3": tiny_sd3}


def make_scheduler(name: str) -> Any:
    """Stable Diffusion's noise schedule in a "ddim" or a "pndm" sampler."""
    if name == "pndm":
        return PNDMScheduler(**_NOISE, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False)
    return DDIMScheduler(**_NOISE, steps_offset=1, clip_sample=False, set_alpha_to_one=False)


def tiny_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer over all single bytes and a few whole words; 77 tokens as in the real one."""
    symbols = _byte_symbols()
    vocabulary = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    merges = []
    for word in _WORDS:
        for length in range(2, len(word) + 1):
            piece, last = word[: length - 1], word[length - 1] + ("</w>" if length == len(word) else "")
            if (piece, last) not in merges:
                merges.append((piece, last))
                vocabulary.append(piece + last)
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(vocabulary)}, merges=merges, model_max_length=77
    )


def tiny_t5_tokenizer() -> T5Tokenizer:
    """T5's tokenizer over single characters of plain English; all others are unknown."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), ("▁", -2.0)]
    return T5Tokenizer(vocab=[*pieces, *((letter, -3.0) for letter in string.ascii_letters)], extra_ids=0)


def save_folder(pipeline: Any, folder: Path) -> Path:
    """Writes a full-precision pipeline as a diffusers folder with safetensors, and returns the folder."""
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def denoiser_of(pipeline: Any) -> torch.nn.Module:
    """The UNet or transformer of one of these pipelines."""
    return pipeline.components.get("unet") or pipeline.components["transformer"]


def _quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    return pipeline


def _unet_shape(channels: tuple[int, int]) -> dict[str, Any]:
    return {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": channels,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }


def _vae(latent_channels: int) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=latent_channels,
        norm_num_groups=2,
        layers_per_block=1,
        sample_size=16,
        shift_factor=0.0,
    )


def _text_config() -> CLIPTextConfig:
    tokenizer = tiny_tokenizer()
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _t5_config() -> T5Config:
    return T5Config(
        vocab_size=len(tiny_t5_tokenizer()), d_model=2 * TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )


def _byte_symbols() -> list[str]:
    """The 256 printable characters by which byte-level BPE writes bytes (GPT-2's table)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in sorted(printable)] + [chr(256 + index) for index, _ in enumerate(hidden)]
