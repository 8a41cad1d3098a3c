"""Trains the bundled AutoencoderKL: 64×64×3 pixels to 16×16×4 latents."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from . import dataset
from .clip import normalize
from .loop import Trainer, autocast, batch_rows, ranks

KL_WEIGHT = 2e-3  # of the mean over latents
EDGE_WEIGHT = 1.0
CROP = 32
WHOLE_SHARE = 0.15  # of the steps, at the end, see whole images: the middle's attention has to meet their size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("runs/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/vae"))
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--batch", type=int, default=24)
    args = parser.parse_args()
    train(args.data, args.out, args.steps, args.batch)


def train(data: Path, out: Path, steps: int, batch: int) -> None:
    """Leaves an AutoencoderKL folder, scaling factor measured, in `out`/model."""
    torch.manual_seed(0)
    rank, world = ranks()
    pixels = torch.from_numpy(dataset.load(data, "train")[0])
    valid = torch.from_numpy(dataset.load(data, "valid")[0][:128])
    model = make_model().to(memory_format=torch.channels_last)
    trainer = Trainer(model, out, steps, learning_rate=8e-4, weight_decay=0.0, ema_decay=0.998)

    def loss(step: int) -> torch.Tensor:
        whole = step >= (1 - WHOLE_SHARE) * steps
        rows = batch_rows(step, len(pixels), batch // 4 if whole else batch, seed=2)[rank::world]
        generator = torch.Generator().manual_seed(step * world + rank)
        images = normalize(pixels[rows])
        images = images if whole else crops(images, generator)
        with autocast():
            posterior = model.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator)
            painted = model.decode(posterior.mean + posterior.std * noise).sample.float()
        return reconstruction_loss(painted, images) + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()

    def report() -> str:
        return f"valid: {reconstruction_psnr(model, normalize(valid)):.2f} dB"

    trainer.run(loss, save_every=500, report=report)
    if rank != 0:
        return
    model.load_state_dict(trainer.averaged(), strict=False)
    model.register_to_config(scaling_factor=measured_scale(model, normalize(pixels[:512])))
    print("final", report(), "scaling factor", model.config.scaling_factor, flush=True)
    model.save_pretrained(out / "model")


def crops(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random CROP×CROP part of each image: four times the steps for the same work."""
    room = images.shape[-1] - CROP + 1
    places = torch.randint(room, (len(images), 2), generator=generator).tolist()
    return torch.stack([image[:, y : y + CROP, x : x + CROP] for image, (y, x) in zip(images, places, strict=True)])


def make_model() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 96, 128),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=64,
    )


def reconstruction_loss(painted: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """L1 on pixels and on their differences to the neighbours: the latter keeps edges sharp."""

    def edges(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.diff(dim=2).flatten(1), x.diff(dim=3).flatten(1)], dim=1)

    return F.l1_loss(painted, images) + EDGE_WEIGHT * F.l1_loss(edges(painted), edges(images))


@torch.no_grad()
def reconstruction_psnr(model: AutoencoderKL, images: torch.Tensor) -> float:
    painted = model.decode(model.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
    return float(-10 * torch.log10(((painted - images) / 2).square().mean(dim=(1, 2, 3))).mean())


@torch.no_grad()
def measured_scale(model: AutoencoderKL, images: torch.Tensor) -> float:
    """1 / standard deviation of the latents, as Stable Diffusion defines its scaling factor."""
    return round(float(1 / model.encode(images).latent_dist.mode().std()), 5)


if __name__ == "__main__":
    main()
