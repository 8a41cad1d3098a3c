"""Tiny models of the kinds that the metrics use, made in memory and saved as folders."""

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory):
    """A random Dinov2Model with 24-dimensional features on 28x28 pixels."""
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    folder = tmp_path_factory.mktemp("dino")
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pictures():
    """37 uint8 pictures of 40x48 pixels."""
    return list(np.random.default_rng(0).integers(0, 256, (37, 40, 48, 3)).astype(np.uint8))
