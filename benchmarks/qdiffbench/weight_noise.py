"""A model with known damage: Gaussian noise on the denoiser's weights, the same noise at every strength."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from halftone.denoiser import find_denoiser
from halftone.sources import open_pipeline


def make_noisy(source: str, sigma: float, folder: Path, seed: int) -> None:
    """Writes ``source`` with noise of standard deviation ``sigma`` times each weight's root mean square.

    Weights are what has two dimensions or more: biases and norms stay. The folder is whole or absent.
    """
    if folder.exists():
        return
    pipeline = open_pipeline(source, progress_bar=False)
    add_noise(find_denoiser(pipeline).module, sigma, seed)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    pipeline.save_pretrained(part, safe_serialization=True)
    os.replace(part, folder)


def add_noise(module: Any, sigma: float, seed: int) -> None:
    """In place; for one seed, a larger ``sigma`` only scales the noise."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in sorted(module.named_parameters()):
            if weight.dim() >= 2:
                noise = torch.randn(weight.shape, generator=generator)
                weight.add_(sigma * weight.square().mean().sqrt() * noise)
