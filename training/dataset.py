"""Renders the data set into shards (resumable, all cores) and serves it as arrays."""

from __future__ import annotations

import argparse
import multiprocessing
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from .render import render
from .scene import Scene, random_scene

SHARD = 1000
SPLIT_SEED = {"train": 1, "valid": 2, "held-out": 3}
THINGS_DRAWN = {1: 0.4, 2: 1.2, 3: 2.0}  # how often a scene of so many things is drawn, beside the others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/data"))
    parser.add_argument("--train", type=int, default=60_000)
    parser.add_argument("--valid", type=int, default=2_000)
    args = parser.parse_args()
    make(args.out, {"train": args.train, "valid": args.valid, "held-out": args.valid})


def make(out: Path, counts: dict[str, int]) -> None:
    """Renders what is missing; a shard file that exists is whole."""
    jobs = [(out, split, shard) for split, count in counts.items() for shard in range((count + SHARD - 1) // SHARD)]
    jobs = [job for job in jobs if not _path(*job).exists()]
    for folder in {_path(*job).parent for job in jobs}:
        folder.mkdir(parents=True, exist_ok=True)
    with multiprocessing.Pool(os.cpu_count()) as pool:
        for done, _ in enumerate(pool.imap(_render_shard, jobs), start=1):
            print(f"rendered {done}/{len(jobs)} shards", flush=True)


def load(out: Path, split: str) -> tuple[npt.NDArray[np.uint8], list[Scene]]:
    """Images uint8 (N, 64, 64, 3) and their scenes."""
    images, scenes = [], []
    for path in sorted((out / split).glob("*.npz")):
        with np.load(path, allow_pickle=False) as shard:
            images.append(shard["images"])
            scenes += [Scene.from_json(str(text)) for text in shard["scenes"]]
    return np.concatenate(images), scenes


def chances(scenes: list[Scene]) -> torch.Tensor:
    """float32 (N,): what a scene's chance to be drawn is proportional to. Several things are harder to learn."""
    return torch.tensor([THINGS_DRAWN[len(scene.things)] for scene in scenes])


def scenes_of(split: str, shard: int, count: int = SHARD) -> list[Scene]:
    """The scenes of a shard: a pure function of split and number, so they need not be stored to be known."""
    rng = np.random.default_rng([SPLIT_SEED[split], shard])
    return [random_scene(rng, held_out=split == "held-out") for _ in range(count)]


def _path(out: Path, split: str, shard: int) -> Path:
    return out / split / f"{shard:05d}.npz"


def _render_shard(job: tuple[Path, str, int]) -> None:
    out, split, shard = job
    scenes = scenes_of(split, shard)
    images = np.stack([render(scene) for scene in scenes])
    path = _path(out, split, shard)
    part = path.with_suffix(".part.npz")
    np.savez_compressed(part, images=images, scenes=np.array([scene.to_json() for scene in scenes]))
    part.replace(path)


if __name__ == "__main__":
    main()
