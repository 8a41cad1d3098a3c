"""Puts the trained parts together as the package ships them: two fp16 folders and the prompt sets."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from .captions import plain_caption, styled_caption
from .clip import captions_of, processor
from .scene import random_scene
from .unet import make_scheduler

BUNDLED = Path("src/halftone/bundled")
PROMPT_SETS = {"calibration": (21, 512), "scenes": (22, 2304), "styled": (23, 2304)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=BUNDLED)
    args = parser.parse_args()
    assemble(args.runs, args.out)


def assemble(runs: Path, out: Path) -> None:
    """Writes `out`/mini-sd, `out`/mini-clip and `out`/prompts."""
    tokenizer = CLIPTokenizer.from_pretrained(runs / "text/model")
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(runs / "vae/model", torch_dtype=torch.float16),
        text_encoder=CLIPTextModel.from_pretrained(runs / "text/model", torch_dtype=torch.float16),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel.from_pretrained(runs / "unet/model", torch_dtype=torch.float16),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for name in ("mini-sd", "mini-clip"):
        shutil.rmtree(out / name, ignore_errors=True)
    pipeline.save_pretrained(out / "mini-sd", safe_serialization=True)
    clip = CLIPModel.from_pretrained(runs / "clip/model", torch_dtype=torch.float16)
    clip.save_pretrained(out / "mini-clip")
    processor().save_pretrained(out / "mini-clip")
    tokenizer.save_pretrained(out / "mini-clip")
    for folder in (out / "mini-sd/tokenizer", out / "mini-clip"):
        tokenizer.backend_tokenizer.model.save(str(folder))  # vocab.json and merges.txt, for older transformers
    write_prompts(out / "prompts")
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {total / 1e6:.1f} MB")


def write_prompts(folder: Path) -> None:
    """calibration and scenes: plain, full captions. styled: other words, over held-out (color, shape) pairs.

    The sets to evaluate on have nine alternatives for each prompt, wrong in one attribute, in the same phrasing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, (seed, count) in PROMPT_SETS.items():
        rng = np.random.default_rng(seed)
        write = styled_caption if name == "styled" else plain_caption
        prompts: dict[str, list[str]] = {}
        while len(prompts) < count:
            scene = random_scene(rng, held_out=name == "styled")
            phrasing = int(rng.integers(1 << 30))
            true, *false = captions_of(scene, write, phrasing, rng, 1 if name == "calibration" else 10)
            prompts.setdefault(true, false)
        if name == "calibration":
            text = "\n".join(prompts)
            (folder / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
        else:
            rows = [{"prompt": prompt, "alternatives": false} for prompt, false in prompts.items()]
            text = "\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
            (folder / f"{name}.jsonl").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
