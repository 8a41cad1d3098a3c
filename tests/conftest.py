"""Settings shared by all tests (no network, one thread) and shared models."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest
import torch
from hypothesis import settings

# A change is judged by the same examples every time; `pytest --hypothesis-profile=default` searches for new ones.
settings.register_profile("same-examples", derandomize=True)
settings.load_profile("same-examples")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny tensors gain nothing from threads, and threads that wait for each other on a busy machine cost minutes."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full-precision `tiny_sd` on disk; only to be read."""
    from pipelines import save_folder, tiny_sd

    return save_folder(tiny_sd(), tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture(scope="session")
def sd_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_sd` quantized with pcr-w8a8 (4 steps, 2 prompts) and saved; only to be read: copy it to change it."""
    from pipelines import tiny_sd

    import halftone

    result = halftone.quantize(tiny_sd(), "pcr-w8a8", ["a red cube", "a blue ball"], num_inference_steps=4)
    return result.save(tmp_path_factory.mktemp("artifacts") / "sd-w8a8")


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIPModel with 16-dimensional features, 12 tokens of context, 32x32 pixels; only to be read."""
    from judges import tiny_clip

    return tiny_clip(tmp_path_factory.mktemp("clip"))
