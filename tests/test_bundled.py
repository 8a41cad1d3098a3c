"""The models and prompts that ship with the package: whole, small, disjoint, and really usable."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

import halftone
from halftone.generation import GenerationSettings, paint
from halftone.prompts import prompt_entries, read_prompts
from halftone.qdiffbench import psnr
from halftone.sources import bundled_names, open_pipeline

BUNDLED = Path(halftone.__file__).parent / "bundled"
HELD_OUT = (  # said in other words: crimson cone, golden cube, …
    ({"crimson", "scarlet"}, {"spire", "funnel"}),
    ({"golden", "lemon"}, {"box", "block"}),
    ({"turquoise", "teal"}, {"ball", "orb"}),
    ({"violet", "plum"}, {"tent", "peak"}),
    ({"emerald", "mossy"}, {"drum", "pillar"}),
)
SETTINGS = GenerationSettings(num_inference_steps=4, guidance_scale=4.0, seed=0)


def test_everything_together_stays_under_60_megabytes():
    assert sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file()) < 60e6


def test_there_is_no_pickle():
    suffixes = {path.suffix for path in BUNDLED.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".jsonl", ".safetensors", ".txt"}


def test_the_prompt_sets_share_no_prompt():
    sets = {name: set(read_prompts(f"bundled:{name}")) for name in ("calibration", "scenes", "styled")}
    assert len(sets["calibration"]) == 512
    assert len(sets["scenes"]) == len(sets["styled"]) == 2304
    assert not sets["calibration"] & sets["scenes"]
    assert not sets["scenes"] & sets["styled"]


@pytest.mark.parametrize("name", ["scenes", "styled"])
def test_alternatives_are_nine_different_texts(name):
    for entry in prompt_entries(f"bundled:{name}"):
        assert len({entry.prompt, *entry.alternatives}) == 10


def test_styled_prompts_show_pairs_that_training_never_saw():
    for prompt in read_prompts("bundled:styled"):
        words = prompt.replace(",", "").split()
        pairs = {(a, b) for a, b in itertools.pairwise(words)}
        assert any(a in colors and b in shapes for a, b in pairs for colors, shapes in HELD_OUT), prompt


def test_the_model_is_an_ordinary_stable_diffusion():
    assert bundled_names() == ("mini-sd",)
    pipeline = open_pipeline("bundled:mini-sd")
    assert type(pipeline).__name__ == "StableDiffusionPipeline"
    assert type(pipeline.unet).__name__ == "UNet2DConditionModel"
    assert pipeline.scheduler.config.prediction_type == "epsilon"


def test_quantized_it_paints_nearly_the_same_picture(tmp_path):
    prompts = read_prompts("bundled:calibration", limit=2)
    reference = paint(open_pipeline("bundled:mini-sd"), prompts[0], 7, SETTINGS)
    result = halftone.quantize(
        open_pipeline("bundled:mini-sd"), "pcr-w8a8", prompts, num_inference_steps=4, guidance_scale=4.0
    )
    result.save(tmp_path / "artifact")
    candidate = paint(halftone.load(tmp_path / "artifact"), prompts[0], 7, SETTINGS)
    assert psnr(np.asarray(candidate), np.asarray(reference)) > 25


def test_mini_clip_holds_the_pipelines_text_encoder():
    from transformers import CLIPModel

    clip = CLIPModel.from_pretrained(BUNDLED / "mini-clip", torch_dtype=torch.float32)
    pipeline = open_pipeline("bundled:mini-sd")
    ours = dict(pipeline.text_encoder.named_parameters())
    for name, tensor in clip.text_model.named_parameters():
        match = next(value for key, value in ours.items() if key.endswith(name))
        assert torch.equal(tensor, match)
