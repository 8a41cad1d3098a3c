"""Full-size Stable Diffusion 1.5 through every command: time and peak memory, each command in a process of its own.

    python -m benchmarks.scale --work runs/scale --out docs/scale.json --markdown docs/scale.md

The weights are random, which neither time nor memory depends on. 2 prompts, 4 steps, 512×512 pixels.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

PROMPTS = ("a lighthouse at dusk", "a bowl of oranges on a wooden table")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/scale"))
    parser.add_argument("--out", type=Path, default=Path("docs/scale.json"))
    parser.add_argument("--markdown", type=Path, help="write the page for docs/ too")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--make", action="store_true", help="only make the model folder (used by this script itself)")
    args = parser.parse_args()
    if args.make:
        make_stable_diffusion(args.work / "sd15")
        return
    args.work.mkdir(parents=True, exist_ok=True)
    result = measure(args.work, args.steps)
    args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if args.markdown is not None:
        args.markdown.write_text(page(result), encoding="utf-8")
    print(json.dumps(result, indent=2))


def measure(work: Path, steps: int) -> dict[str, Any]:
    """Runs every command and notes what it took."""
    source, artifact, prompts = work / "sd15", work / "sd15-w8a8", work / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    for folder in (artifact, work / "images", work / "images-fp"):
        shutil.rmtree(folder, ignore_errors=True)
    halftone = [sys.executable, "-m", "halftone"]
    sampling = ["--prompts", str(prompts), "--steps", str(steps)]
    commands = {
        "make": [sys.executable, "-m", "benchmarks.scale", "--make", "--work", str(work)],
        "quantize": [*halftone, "quantize", str(source), *sampling, "--batch-size", "1", "--out", str(artifact)],
        "generate": [*halftone, "generate", str(artifact), *sampling, "--num-prompts", "1", "--out", f"{work}/images"],
        "generate_float32": [
            *halftone, "generate", str(source), *sampling, "--num-prompts", "1", "--out", f"{work}/images-fp",
        ],
    }  # fmt: skip
    if (source / "model_index.json").exists():
        del commands["make"]
    taken = {name: _run(command) for name, command in commands.items()}
    return {
        "model": "Stable Diffusion 1.5 configuration, random weights, 512×512",
        "prompts": len(PROMPTS),
        "steps": steps,
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_memory_gib():.0f} GiB",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("torch", "halftone")}},
        "commands": taken,
        "unet_bytes": {"float32": _bytes(source / "unet"), "artifact": _bytes(artifact / "unet")},
    }


_WORDS = {
    "make": "make the folder with random weights",
    "quantize": "`halftone quantize` (pcr-w8a8)",
    "generate": "`halftone generate` with the artifact, one image",
    "generate_float32": "`halftone generate` with the float32 model, one image",
}


def page(result: dict[str, Any]) -> str:
    """docs/scale.md."""
    rows = [
        f"| {_WORDS[name]} | {taken['seconds']:,.0f} | {taken['peak_memory_gib']:.1f} |"
        for name, taken in result["commands"].items()
    ]
    stored, made = result["unet_bytes"], ", ".join(f"{name} {value}" for name, value in result["versions"].items())
    return f"""# A full-size model, end to end

A folder in the layout of `runwayml/stable-diffusion-v1-5`, with its full configuration (860 M parameters in the UNet)
and random weights, on which neither time nor memory depends, goes through the commands that people type: quantized on
{result["prompts"]} prompts at {result["steps"]} steps of PNDM, saved, loaded, run at 512×512 pixels. Every command is
a process of its own and has the machine for itself.

```
python -m benchmarks.scale --work runs/scale --out docs/scale.json --markdown docs/scale.md
```

| | seconds | peak memory, GiB |
|---|---:|---:|
{chr(10).join(rows)}

{result["machine"]}, {result["threads"]} threads; {made}; one run. Peak memory is the largest resident set of the
process, mapped files included. The UNet's file takes {stored["artifact"] / 1e9:.2f} GB,
{stored["artifact"] / stored["float32"]:.3f} of its {stored["float32"] / 1e9:.2f} GB in float32.

With n prompts and T steps the passes through the denoiser, which are nearly all of the time of `quantize`, grow with
n · T, and memory hardly at all: prompts go through the denoiser in micro-batches (`--batch-size`), and only their
latents are kept.
"""


def make_stable_diffusion(folder: Path) -> None:
    """A pipeline folder of Stable Diffusion 1.5's shape with random weights."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from training.tokenizer import make_tokenizer

    torch.manual_seed(0)
    tokenizer = make_tokenizer(2000)
    tokenizer.model_max_length = 77
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        projection_dim=768,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
            set_alpha_to_one=False,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)


def _run(command: list[str]) -> dict[str, float]:
    """Wall time and peak resident memory of a command that must succeed."""
    print(" ".join(command), flush=True)
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{command[3]} failed with status {os.waitstatus_to_exitcode(status)}")
    return {"seconds": round(time.perf_counter() - start, 1), "peak_memory_gib": round(_peak_gib(usage), 2)}


def _peak_gib(usage: resource.struct_rusage) -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return usage.ru_maxrss * unit / 2**30


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


if __name__ == "__main__":
    main()
