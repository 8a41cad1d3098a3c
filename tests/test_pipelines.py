"""The tiny pipelines behave as the large ones do, in what other tests rely on."""

import pytest
import torch
from pipelines import BUILDERS, denoiser_of, save_folder, tiny_tokenizer

from halftone.sources import open_pipeline


def _latents(pipeline, prompts):
    generators = [torch.Generator().manual_seed(index) for index in range(len(prompts))]
    return pipeline(prompts, num_inference_steps=2, output_type="latent", generator=generators).images


@pytest.mark.parametrize("name", BUILDERS)
def test_weights_follow_the_seed_and_the_prompt_matters(name):
    random = torch.get_rng_state()
    one, same, other = BUILDERS[name](), BUILDERS[name](), BUILDERS[name](seed=1)
    assert torch.equal(torch.get_rng_state(), random)
    first = _latents(one, ["red"])
    assert first.shape == (1, 4, 8, 8) and torch.equal(first, _latents(same, ["red"]))
    assert not torch.equal(first, _latents(other, ["red"])) and not torch.equal(first, _latents(one, ["blue"]))


@pytest.mark.parametrize("name", BUILDERS)
def test_folder_opens_as_the_same_pipeline(name, tmp_path):
    pipeline = BUILDERS[name]()
    opened = open_pipeline(save_folder(pipeline, tmp_path / name))
    assert type(opened) is type(pipeline) and type(denoiser_of(opened)) is type(denoiser_of(pipeline))
    assert torch.equal(_latents(opened, ["a red cube"]), _latents(pipeline, ["a red cube"]))


def test_tokenizer_knows_words_and_every_byte():
    tokenizer = tiny_tokenizer()
    start, *content, end = tokenizer("red cube").input_ids
    assert (start, end) == (tokenizer.bos_token_id, tokenizer.eos_token_id) and len(content) == 2
    assert len(tokenizer("é").input_ids) == 2 + len("é".encode())
    assert len(tokenizer("😀 \"/'").input_ids) == 2 + len("😀\"/'".encode())
