"""Trains the text tower of mini-CLIP, which is the pipeline's text encoder, to tell what a caption says.

It learns on captions alone, of which there are as many as one likes, and is frozen afterwards: the UNet and the image
tower are trained against it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPModel

from . import attributes
from .captions import plain_caption, styled_caption
from .clip import OUTSIDE, STYLED_SHARE, make_model
from .loop import Trainer, autocast, ranks
from .scene import Scene, random_scene
from .tokenizer import make_tokenizer


class TextTower(torch.nn.Module):
    """The tower and a linear classifier of the attributes, which is thrown away."""

    def __init__(self, model: CLIPModel):
        super().__init__()
        self.tower = model.text_model
        self.head = torch.nn.Linear(model.config.text_config.hidden_size, sum(attributes.CLASSES))

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.head(self.tower(tokens, mask).pooler_output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/text"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    train(args.out, args.steps, args.batch)


def train(out: Path, steps: int, batch: int) -> None:
    """Leaves a CLIPModel folder in `out`/model, its image tower untrained, with the tokenizer."""
    torch.manual_seed(0)
    rank, world = ranks()
    tokenizer = make_tokenizer()
    clip = make_model(tokenizer)
    clip.set_attn_implementation("eager")  # on a CPU its backward pass is faster than the fused one's
    model = TextTower(clip)
    trainer = Trainer(model, out, steps, learning_rate=8e-4, weight_decay=0.05, outside=OUTSIDE)

    def logits_and_target(seed: list[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        scenes, captions = random_captions(np.random.default_rng(seed), count)
        tokens = tokenizer(captions, padding="longest", truncation=True, return_tensors="pt")
        with autocast():
            logits = model(tokens.input_ids, tokens.attention_mask)
        return logits, attributes.labels(scenes, of_image=False)

    def loss(step: int) -> torch.Tensor:
        return attributes.loss(*logits_and_target([17, step, rank], batch // world))

    @torch.no_grad()
    def report() -> str:
        return f"valid: {attributes.accuracy(*logits_and_target([18], 500)):.4f}"

    trainer.run(loss, save_every=250, report=report)
    if rank == 0:
        clip.save_pretrained(out / "model")
        tokenizer.save_pretrained(out / "model")


def random_captions(rng: np.random.Generator, count: int) -> tuple[list[Scene], list[str]]:
    """Scenes that training may show, and a full caption of each."""
    scenes = [random_scene(rng) for _ in range(count)]
    captions = []
    for scene in scenes:
        write = styled_caption if rng.random() < STYLED_SHARE else plain_caption
        captions.append(write(scene, int(rng.integers(1 << 30))))
    return scenes, captions


if __name__ == "__main__":
    main()
