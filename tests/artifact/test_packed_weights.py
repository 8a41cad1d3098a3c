"""Weights of few bits: packed in the file, int8 in memory, the same to the bit; older and unpacked files still load."""

import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig
from pipelines import tiny_sd, tiny_sd3
from safetensors.torch import load_file, save_file

import halftone
from halftone.artifact.config import quantized_digest
from halftone.artifact.inspection import inspect_artifact
from halftone.errors import ArtifactError, InputError
from halftone.layers import quantized_layers

WEIGHTS = "diffusion_pytorch_model.safetensors"
LAYER = "mid_block.resnets.0.conv1"


def _quantized(num_bits, pipeline=None):
    recipe = halftone.Recipe.from_dict({"weights": {"num_bits": num_bits}})
    return halftone.quantize(pipeline or tiny_sd(), recipe, ["a red cube"], num_inference_steps=2)


def _paint(pipeline):
    generator = torch.Generator().manual_seed(7)
    return pipeline(prompt="a red cube", num_inference_steps=2, generator=generator, output_type="np").images


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    result = _quantized(4)
    return result, result.save(tmp_path_factory.mktemp("artifacts") / "w4")


@pytest.mark.parametrize("num_bits", [2, 3, 4, 5, 7, 8])
def test_every_width_round_trips_to_the_bit(num_bits, tmp_path):
    result = _quantized(num_bits)
    folder = result.save(tmp_path / "out")
    stored = load_file(folder / "unet" / WEIGHTS)
    loaded = halftone.load(folder)
    for name, layer in quantized_layers(result.pipeline.unet):
        again, weight = loaded.unet.get_submodule(name).weight, stored[f"{name}.weight"]
        assert again.dtype == torch.int8 and torch.equal(again, layer.weight)
        if num_bits == 8:
            assert weight.dtype == torch.int8 and weight.shape == layer.weight.shape
        else:
            assert weight.dtype == torch.uint8 and len(weight) == -(-layer.weight.numel() * num_bits // 8)
    assert np.array_equal(_paint(loaded), _paint(result.pipeline))
    assert np.array_equal(_paint(DiffusionPipeline.from_pretrained(folder)), _paint(loaded))


def test_a_transformer_round_trips(tmp_path):
    result = _quantized(4, tiny_sd3())
    loaded = halftone.load(result.save(tmp_path / "out"))
    assert quantized_digest(loaded.transformer) == quantized_digest(result.pipeline.transformer)
    assert np.array_equal(_paint(loaded), _paint(result.pipeline))


def test_denoiser_file_at_four_bits_is_at_most_017_of_float32(tmp_path):
    """Channels as in small real models; what is no weight of a quantized layer stays as large as it was."""
    folder = _quantized(4, tiny_sd(channels=(96, 192))).save(tmp_path / "out")
    facts = inspect_artifact(folder)
    parameters = sum(parameter.numel() for parameter in tiny_sd(channels=(96, 192)).unet.parameters())
    assert facts["sizes"]["denoiser_float32_bytes"] == 4 * parameters
    assert (folder / "unet" / WEIGHTS).stat().st_size <= 0.17 * 4 * parameters
    assert facts["weights_packed"] and facts["weight_bits"] == 4


def test_state_dict_in_memory_stays_int8(packed):
    """accelerate's offloading and PEFT take names and shapes from it."""
    result, _ = packed
    state = result.pipeline.unet.state_dict()
    assert state[f"{LAYER}.weight"].dtype == torch.int8
    assert state[f"{LAYER}.weight"].shape == tiny_sd().unet.get_submodule(LAYER).weight.shape


def test_save_pretrained_of_a_loaded_pipeline_keeps_the_bytes(packed, tmp_path):
    _, folder = packed
    halftone.load(folder).save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "unet" / WEIGHTS).read_bytes() == (folder / "unet" / WEIGHTS).read_bytes()


def _copy(folder, target, edit_config=None, edit_tensors=None):
    """The artifact as `save_pretrained` leaves it (no manifest), edited."""
    halftone.load(folder).save_pretrained(target)
    path = target / "unet" / "config.json"
    config = json.loads(path.read_text())
    if edit_config:
        edit_config(config["quantization_config"])
    path.write_text(json.dumps(config))
    tensors = load_file(target / "unet" / WEIGHTS)
    if edit_tensors:
        edit_tensors(tensors)
    save_file(tensors, target / "unet" / WEIGHTS, metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("version", [1, 2])
def test_artifact_of_a_version_without_config_digest_still_loads(version, packed, tmp_path):
    """Saved again it is of the newest version, and whole."""

    def older(config):
        config["format_version"] = version
        del config["config_digest"]

    old = _copy(packed[1], tmp_path / "old", older)
    halftone.load(old).save_pretrained(tmp_path / "again")
    paths = [folder / "unet" / "config.json" for folder in (packed[1], tmp_path / "again")]
    first, again = (json.loads(path.read_text())["quantization_config"] for path in paths)
    assert again == first
    assert np.array_equal(_paint(halftone.load(tmp_path / "again")), _paint(packed[0].pipeline))


def test_artifact_of_version_1_with_unpacked_weights_still_loads(packed, tmp_path):
    result, folder = packed

    def unpack(tensors):
        for name, layer in quantized_layers(result.pipeline.unet):
            tensors[f"{name}.weight"] = layer.weight.data.clone()

    def first_version(config):
        config["format_version"] = 1
        del config["config_digest"]
        config["recipe"]["weights"] = {
            key: config["recipe"]["weights"][key] for key in ("num_bits", "granularity", "symmetric", "rounding")
        }

    old = _copy(folder, tmp_path / "old", first_version, unpack)
    assert quantized_digest(halftone.load(old).unet) == quantized_digest(result.pipeline.unet)
    assert np.array_equal(_paint(halftone.load(old)), _paint(result.pipeline))
    facts = inspect_artifact(old)
    assert not facts["weights_packed"]
    assert facts["sizes"]["denoiser_float32_bytes"] == inspect_artifact(folder)["sizes"]["denoiser_float32_bytes"]


def test_version_that_is_no_number_is_damage(packed, tmp_path):
    def edit(config):
        config["format_version"] = True
        del config["config_digest"]

    old = _copy(packed[1], tmp_path / "odd", edit)
    with pytest.raises(ArtifactError, match="format_version True"):
        halftone.load(old)


def test_flipped_bit_in_packed_weights_is_noticed(packed, tmp_path):
    def flip(tensors):
        tensors[f"{LAYER}.weight"][0] ^= 1

    with pytest.raises(ArtifactError, match="flipped bit"):
        DiffusionPipeline.from_pretrained(_copy(packed[1], tmp_path / "flipped", edit_tensors=flip))


@pytest.mark.parametrize("change", [lambda tensor: tensor[:-1].clone(), lambda tensor: tensor.to(torch.int16)])
def test_packed_weights_of_another_length_or_kind_are_named(change, packed, tmp_path):
    def edit(tensors):
        tensors[f"{LAYER}.weight"] = change(tensors[f"{LAYER}.weight"])

    with pytest.raises(ArtifactError, match=rf"{LAYER}\.weight is stored as"):
        DiffusionPipeline.from_pretrained(_copy(packed[1], tmp_path / "damaged", edit_tensors=edit))


@pytest.mark.parametrize("num_bits", [4, 8])
def test_adapters_are_refused_until_they_are_taken_out(num_bits, tmp_path):
    """Under the names that PEFT gives to what it wraps, nothing could be loaded again."""
    result = _quantized(num_bits)
    pipeline = result.pipeline
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    for save in (result.save, pipeline.save_pretrained):
        with pytest.raises(InputError, match=r"adapters \(LoRA\), of \S+to_q for one.*unload_lora_weights"):
            save(tmp_path / "out")
    pipeline.unload_lora_weights()
    pipeline.save_pretrained(tmp_path / "out")
    assert quantized_digest(halftone.load(tmp_path / "out").unet) == result.config.digest
