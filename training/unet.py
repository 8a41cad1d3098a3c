"""Trains the bundled UNet on cached latents and the frozen mini-CLIP's text states (epsilon prediction).

What is hard to learn is which thing is what, where there are several. So scenes of several things, and the noise at
which things take their places, come more often and count more than they would by chance.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextModel, CLIPTokenizer

from . import dataset
from .captions import plain_caption, styled_caption
from .clip import STYLED_SHARE, normalize
from .loop import Trainer, autocast, batch_rows, ranks
from .tokenizer import CONTEXT

CAPTION_DROPOUT = 0.1
FULL_SHARE = 0.7  # of the plain captions: those that tell everything
SNR_GAMMA = 5.0
HEAVIEST = 3.0  # the most that a noisy latent's error counts
DECIDING = (60, 600)  # the timesteps at which things take their places, their forms and their edges
DECIDING_SHARE = 0.6  # of a batch, beside the uniform draw
OUTSIDE = ("conv_in", "conv_out")  # of what Muon trains


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("runs/data"))
    parser.add_argument("--vae", type=Path, default=Path("runs/vae/model"))
    parser.add_argument("--text", type=Path, default=Path("runs/text/model"))
    parser.add_argument("--out", type=Path, default=Path("runs/unet"))
    parser.add_argument("--steps", type=int, default=6500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--init", type=Path, help="start from this UNet folder instead of from nothing")
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    train(args.data, args.vae, args.text, args.out, args.steps, args.batch, args.init, not args.no_compile)


def train(
    data: Path, vae: Path, text: Path, out: Path, steps: int, batch: int, init: Path | None, compiled: bool
) -> None:
    """Leaves the averaged UNet in `out`/model after every checkpoint."""
    torch.manual_seed(0)
    rank, world = ranks()
    latents, scenes = cached_latents(data, vae, out)
    tokenizer = CLIPTokenizer.from_pretrained(text)
    text_encoder = CLIPTextModel.from_pretrained(text, torch_dtype=torch.bfloat16).eval()
    model = make_model() if init is None else UNet2DConditionModel.from_pretrained(init, torch_dtype=torch.float32)
    model.to(memory_format=torch.channels_last)
    # Plain attention: its backward pass is three times as fast on a CPU as that of the fused kernel.
    model.set_attn_processor(AttnProcessor())
    denoise = torch.compile(model) if compiled else model
    scheduler = make_scheduler()
    weights = loss_weights(scheduler)
    chances = dataset.chances(scenes)
    trainer = Trainer(model, out, steps, learning_rate=1e-3, ema_decay=0.998, warmup=100, outside=OUTSIDE)

    def loss(step: int) -> torch.Tensor:
        rows = batch_rows(step, chances, batch, seed=3)[rank::world]
        generator = torch.Generator().manual_seed(step * world + rank)
        clean = latents[rows].float()
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = draw_timesteps(len(rows), generator)
        noisy = scheduler.add_noise(clean, noise, timesteps).contiguous(memory_format=torch.channels_last)
        captions = training_captions([scenes[int(row)] for row in rows], step * world + rank)
        states = text_states(tokenizer, text_encoder, captions)
        with autocast():
            predicted = denoise(noisy, timesteps, states, return_dict=False)[0]
        error = (predicted.float() - noise).square().mean(dim=(1, 2, 3))
        return (error * weights[timesteps]).mean()

    def report() -> str:
        export(model, trainer.averaged(), out / "model")
        return "exported"

    trainer.run(loss, save_every=500, report=report)


def loss_weights(scheduler: DDIMScheduler) -> torch.Tensor:
    """What the squared error of the noise counts, by timestep.

    Little noise counts less, as in Hang et al. (2023, arXiv 2303.09556), whose weight's root this is. Much noise counts
    more: there the noise is all but visible, and its error small even where things are in the wrong place.
    """
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    return (snr.clamp(max=SNR_GAMMA) / snr).sqrt() * snr.rsqrt().clamp(1, HEAVIEST)


def draw_timesteps(count: int, generator: torch.Generator) -> torch.Tensor:
    """int64 (count,): uniform ones, and DECIDING_SHARE of them within DECIDING."""
    anywhere = torch.randint(1000, (count,), generator=generator)
    deciding = torch.randint(*DECIDING, (count,), generator=generator)
    return torch.where(torch.rand(count, generator=generator) < DECIDING_SHARE, deciding, anywhere)


def make_model() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=256,
        attention_head_dim=(2, 4, 6),
        norm_num_groups=16,
    )


def make_scheduler() -> DDIMScheduler:
    """DDPM's linear schedule: at 16×16 latents the one of SD 1.x leaves the mean colour visible at the last step."""
    return DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


def training_captions(scenes: list[dataset.Scene], seed: int) -> list[str]:
    rng = np.random.default_rng([13, seed])
    captions = []
    for scene in scenes:
        phrasing, roll = int(rng.integers(1 << 30)), rng.random()
        if roll < CAPTION_DROPOUT:
            captions.append("")
        elif roll < CAPTION_DROPOUT + STYLED_SHARE:
            captions.append(styled_caption(scene, phrasing))
        else:
            captions.append(plain_caption(scene, phrasing, full=rng.random() < FULL_SHARE))
    return captions


@torch.no_grad()
def text_states(tokenizer: CLIPTokenizer, encoder: CLIPTextModel, captions: list[str]) -> torch.Tensor:
    tokens = tokenizer(captions, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt")
    return encoder(tokens.input_ids)[0]


def cached_latents(data: Path, vae: Path, out: Path) -> tuple[torch.Tensor, list[dataset.Scene]]:
    """Scaled latents, fp16 (N, 4, 16, 16), of all training images; every rank encodes a part."""
    rank, world = ranks()
    images, scenes = dataset.load(data, "train")
    if not (out / f"latents-{rank}-of-{world}.npy").exists():
        share = np.array_split(images, world)[rank]
        _encode(share, vae, out / f"latents-{rank}-of-{world}.npy")
    if world > 1:
        torch.distributed.barrier()
    parts = [np.load(out / f"latents-{part}-of-{world}.npy", allow_pickle=False) for part in range(world)]
    return torch.from_numpy(np.concatenate(parts)), scenes


@torch.no_grad()
def _encode(images: np.ndarray, vae: Path, path: Path) -> None:
    model = AutoencoderKL.from_pretrained(vae, torch_dtype=torch.float32).eval().to(memory_format=torch.channels_last)
    parts = []
    for start in range(0, len(images), 100):
        pixels = normalize(torch.from_numpy(images[start : start + 100]))
        with autocast():
            mean = model.encode(pixels.contiguous(memory_format=torch.channels_last)).latent_dist.mode().float()
        parts.append((mean * model.config.scaling_factor).half())
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path.with_suffix(".part.npy"), torch.cat(parts).numpy())
    path.with_suffix(".part.npy").replace(path)


def export(model: UNet2DConditionModel, averaged: dict[str, torch.Tensor], folder: Path) -> None:
    copy = make_model()
    copy.load_state_dict(averaged)
    copy.save_pretrained(folder)


if __name__ == "__main__":
    main()
