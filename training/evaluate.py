"""Measures the bundled models: does the judge know real renders, and does it recognise generated images?

Writes docs/bundled-models.json with the numbers and docs/bundled-models.png, a sample sheet.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPModel, CLIPTokenizer

from . import dataset
from .captions import plain_caption
from .clip import normalize, right_answers
from .scene import Scene, random_scene
from .vae import reconstruction_psnr

BUNDLED = Path("src/halftone/bundled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundled", type=Path, default=BUNDLED)
    parser.add_argument("--data", type=Path, default=Path("runs/data"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    args = parser.parse_args()
    evaluate(args.bundled, args.data, args.out, args.count, args.steps, args.guidance)


def evaluate(bundled: Path, data: Path, out: Path, count: int, steps: int, guidance: float) -> None:
    clip = CLIPModel.from_pretrained(bundled / "mini-clip", torch_dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(bundled / "mini-clip")
    pipeline = StableDiffusionPipeline.from_pretrained(bundled / "mini-sd", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    real, real_scenes = dataset.load(data, "valid")
    renders = right_answers(clip, tokenizer, torch.from_numpy(real[:count]), real_scenes[:count])
    rng = np.random.default_rng(31)
    scenes = [random_scene(rng) for _ in range(count)]
    images = paint(pipeline, scenes, steps, guidance)
    painted = right_answers(clip, tokenizer, torch.from_numpy(images), scenes)
    result = {
        "judge_accuracy_on_renders": float(np.mean(renders)),
        "judge_accuracy_on_generated": float(np.mean(painted)),
        "by_number_of_things": {
            str(n): float(np.mean([a for a, s in zip(painted, scenes, strict=True) if len(s.things) == n]))
            for n in (1, 2, 3)
        },
        "vae_reconstruction_psnr_db": reconstruction_psnr(pipeline.vae, normalize(torch.from_numpy(real[:256]))),
        "images": count,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "parameters": {
            name: sum(p.numel() for p in module.parameters())
            for name, module in {**pipeline.components, "mini-clip": clip}.items()
            if isinstance(module, torch.nn.Module)
        },
    }
    out.mkdir(exist_ok=True)
    (out / "bundled-models.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    sample_sheet(images[:40], out / "bundled-models.png")


def paint(pipeline: StableDiffusionPipeline, scenes: list[Scene], steps: int, guidance: float) -> np.ndarray:
    """uint8 (N, 64, 64, 3): one image for the full caption of every scene, seeds 0 … N-1."""
    images = []
    for start in range(0, len(scenes), 16):
        part = scenes[start : start + 16]
        output = pipeline(
            prompt=[plain_caption(scene, start + i) for i, scene in enumerate(part)],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(start + i) for i in range(len(part))],
            output_type="np",
        )
        images.append((output.images * 255).round().astype(np.uint8))
        print(f"{start + len(part)}/{len(scenes)}", flush=True)
    return np.concatenate(images)


def sample_sheet(images: np.ndarray, path: Path, columns: int = 10) -> None:
    from PIL import Image

    rows = [np.concatenate(list(images[i : i + columns]), axis=1) for i in range(0, len(images), columns)]
    sheet = Image.fromarray(np.concatenate(rows, axis=0))
    sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST).save(path)


if __name__ == "__main__":
    main()
