"""Trains the image tower of bundled:mini-clip against the frozen text tower.

At first it learns to see with a classifier of the attributes, thrown away afterwards, which takes no text and so costs
less; then to match captions as well, where captions that differ in one attribute are hard negatives.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from . import attributes, dataset
from .captions import plain_caption, styled_caption
from .loop import Trainer, autocast, batch_rows, ranks
from .scene import Scene, one_attribute_changed
from .tokenizer import CONTEXT

STYLED_SHARE = 0.2
MATCHING_SHARE = 0.4  # of the steps, at the end
OUTSIDE = ("embedding", "projection", "head")  # of what Muon trains


@dataclass(frozen=True)
class Plan:
    """How long, on what: `negatives` wrong captions a scene, `matching` the share of the steps that match captions."""

    steps: int
    batch: int
    negatives: int
    matching: float
    learning_rate: float


class ImageTower(torch.nn.Module):
    """What is trained: the image tower, both projections and the temperature, and the attributes' classifier."""

    def __init__(self, model: CLIPModel):
        super().__init__()
        self.clip = model
        self.head = torch.nn.Linear(model.config.vision_config.hidden_size, sum(attributes.CLASSES))
        model.text_model.requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("runs/data"))
    parser.add_argument("--text", type=Path, default=Path("runs/text/model"))
    parser.add_argument("--out", type=Path, default=Path("runs/clip"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--negatives", type=int, default=2)
    parser.add_argument("--matching", type=float, default=MATCHING_SHARE, help="share of the steps that match captions")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    args = parser.parse_args()
    plan = Plan(args.steps, args.batch, args.negatives, args.matching, args.learning_rate)
    train(args.data, args.text, args.out, plan)


def train(data: Path, text: Path, out: Path, plan: Plan) -> None:
    """Leaves a CLIPModel folder with tokenizer and image processor in `out`/model after every checkpoint."""
    torch.manual_seed(0)
    rank, world = ranks()
    images, scenes = dataset.load(data, "train")
    tokenizer = CLIPTokenizer.from_pretrained(text)
    clip = CLIPModel.from_pretrained(text, torch_dtype=torch.float32)
    clip.set_attn_implementation("eager")  # on a CPU its backward pass is faster than the fused one's
    model = ImageTower(clip)
    pixels, chances = torch.from_numpy(images), dataset.chances(scenes)
    trainer = Trainer(model, out, plan.steps, plan.learning_rate, weight_decay=0.05, warmup=100, outside=OUTSIDE)

    def loss(step: int) -> torch.Tensor:
        rows = batch_rows(step, chances, plan.batch, seed=1)[rank::world]
        part = [scenes[int(row)] for row in rows]
        with autocast():
            seen = clip.vision_model(normalize(pixels[rows])).pooler_output
            logits = model.head(seen)
        classifying = attributes.loss(logits, attributes.labels(part, of_image=True))
        if step < (1 - plan.matching) * plan.steps:
            return classifying
        return classifying + matching(seen, _captions(part, plan.negatives, step * world + rank))

    def matching(seen: torch.Tensor, captions: list[str]) -> torch.Tensor:
        tokens = tokenizer(captions, padding="longest", truncation=True, return_tensors="pt")
        with autocast():
            told = clip.text_model(tokens.input_ids, tokens.attention_mask).pooler_output
            images, texts = clip.visual_projection(seen), clip.text_projection(told)
        return contrastive_loss(images.float(), texts.float(), clip.logit_scale, len(seen))

    @torch.no_grad()
    def sees() -> float:
        valid_images, valid_scenes = dataset.load(data, "valid")
        model.eval()
        seen = clip.vision_model(normalize(torch.from_numpy(valid_images[:300]))).pooler_output
        model.train()
        return attributes.accuracy(model.head(seen), attributes.labels(valid_scenes[:300], of_image=True))

    def report() -> str:
        clip.save_pretrained(out / "model")
        tokenizer.save_pretrained(out / "model")
        processor().save_pretrained(out / "model")
        return f"valid: attributes {sees():.3f} captions {judge_accuracy(clip, tokenizer, data, 300):.3f}"

    trainer.run(loss, save_every=250, report=report)


def make_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    common = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "projection_dim": 256}
    text = {
        **common,
        "num_hidden_layers": 4,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": CONTEXT,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**common, "num_hidden_layers": 6, "image_size": 64, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=256))


def processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(
        size={"shortest_edge": 64},
        crop_size={"height": 64, "width": 64},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def normalize(images: torch.Tensor) -> torch.Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W) in -1 … 1."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def contrastive_loss(images: torch.Tensor, texts: torch.Tensor, logit_scale: torch.Tensor, batch: int) -> torch.Tensor:
    """Image against every caption of the batch and the hard negatives; true captions against every image."""
    images, texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
    logits = logit_scale.clamp(max=4.6).exp() * images @ texts.T
    target = torch.arange(batch)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits[:, :batch].T, target)) / 2


def _captions(scenes: list[Scene], negatives: int, step: int) -> list[str]:
    """The true captions, then `negatives` captions a scene that are wrong in one attribute, in the same phrasing."""
    rng = np.random.default_rng([7, step])
    true, false = [], []
    for scene in scenes:
        phrasing = int(rng.integers(1 << 30))
        write = styled_caption if rng.random() < STYLED_SHARE else plain_caption
        true.append(write(scene, phrasing))
        false += [write(one_attribute_changed(scene, rng), phrasing) for _ in range(negatives)]
    return true + false


def quiz(scene: Scene, seed: int) -> list[str]:
    """Ten full captions in one phrasing: the true one first, then nine different ones wrong in one attribute."""
    rng = np.random.default_rng([11, seed])
    return captions_of(scene, plain_caption, int(rng.integers(1 << 30)), rng, 10)


def captions_of(
    scene: Scene, write: Callable[[Scene, int], str], phrasing: int, rng: np.random.Generator, count: int
) -> list[str]:
    """`count` different captions in one phrasing: the true one first, the others wrong in one attribute."""
    captions = [write(scene, phrasing)]
    while len(captions) < count:
        caption = write(one_attribute_changed(scene, rng), phrasing)
        if caption not in captions:
            captions.append(caption)
    return captions


@torch.no_grad()
def right_answers(model: CLIPModel, tokenizer: CLIPTokenizer, images: torch.Tensor, scenes: list[Scene]) -> list[bool]:
    """Whether the judge picks the true caption among ten, for each uint8 (N, 64, 64, 3) image."""
    answers = []
    for start in range(0, len(scenes), 50):
        part = scenes[start : start + 50]
        captions = [caption for i, scene in enumerate(part) for caption in quiz(scene, start + i)]
        tokens = tokenizer(captions, padding="longest", truncation=True, return_tensors="pt")
        texts = model.get_text_features(tokens.input_ids, tokens.attention_mask).pooler_output
        texts = F.normalize(texts, dim=-1).view(len(part), 10, -1)
        pixels = normalize(images[start : start + 50])
        features = F.normalize(model.get_image_features(pixels).pooler_output, dim=-1)
        answers += ((texts @ features[..., None])[..., 0].argmax(1) == 0).tolist()
    return answers


def judge_accuracy(model: CLIPModel, tokenizer: CLIPTokenizer, data: Path, count: int) -> float:
    images, scenes = dataset.load(data, "valid")
    model.eval()
    answers = right_answers(model, tokenizer, torch.from_numpy(images[:count]), scenes[:count])
    model.train()
    return sum(answers) / len(answers)


if __name__ == "__main__":
    main()
