"""Damaged, incomplete, newer and foreign folders are refused in one sentence, by either way of loading."""

import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

import halftone
from halftone.artifact.config import FORMAT_VERSION, config_digest
from halftone.errors import ArtifactError, HalftoneError, InputError

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
LAYER = "mid_block.resnets.0.conv1"


@pytest.fixture
def artifact(sd_artifact, tmp_path):
    return shutil.copytree(sd_artifact, tmp_path / "artifact")


def _without_manifest(folder):
    (folder / "halftone.json").unlink()
    return folder


def _sentence(load, kind, folder):
    with pytest.raises(kind) as caught:
        load(folder)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500
    return text


def _edit_tensors(folder, edit):
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def _edit_config(folder, sealed=False, **changes):
    """Sealed: with the digest that fits."""
    path = folder / "unet" / "config.json"
    config = json.loads(path.read_text())
    data = config["quantization_config"]
    data.update(changes)
    if sealed:
        data["config_digest"] = config_digest(data)
    path.write_text(json.dumps(config))


def _flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("where", [0.3, 0.6, 0.9999])
@pytest.mark.parametrize("name", [WEIGHTS, "vae/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json"])
def test_one_flipped_bit_anywhere_is_noticed(name, where, artifact):
    _flip(artifact / name, int(where * (artifact / name).stat().st_size))
    assert name in _sentence(halftone.load, ArtifactError, artifact)


@pytest.mark.parametrize("size", [0, 7, 1000, -1])
def test_truncated_file_is_noticed(size, artifact):
    data = (artifact / WEIGHTS).read_bytes()
    (artifact / WEIGHTS).write_bytes(data[:size])
    assert WEIGHTS in _sentence(halftone.load, ArtifactError, artifact)
    _sentence(halftone.load, InputError, _without_manifest(artifact))


@pytest.mark.parametrize("name", [WEIGHTS, "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_missing_file_is_named(name, artifact):
    (artifact / name).unlink()
    assert name in _sentence(halftone.load, HalftoneError, artifact)


def test_flipped_weight_is_noticed_by_from_pretrained_too(artifact):
    def flip(tensors):
        tensors[f"{LAYER}.weight"][0, 0, 0, 0] ^= 1

    _edit_tensors(artifact, flip)
    assert "flipped bit" in _sentence(DiffusionPipeline.from_pretrained, ArtifactError, artifact)
    assert "flipped bit" in _sentence(halftone.load, ArtifactError, _without_manifest(artifact))


@pytest.mark.parametrize("leaf", ["weight_scale", "input_scale", "input_zero_point", "input_num_bits"])
def test_changed_parameters_are_noticed_by_from_pretrained_too(leaf, artifact):
    _edit_tensors(artifact, lambda tensors: tensors[f"{LAYER}.{leaf}"].view(-1)[-1:].add_(1))
    assert "flipped bit" in _sentence(DiffusionPipeline.from_pretrained, ArtifactError, artifact)


@pytest.mark.parametrize("name", [f"{LAYER}.weight", f"{LAYER}.input_scale", f"{LAYER}.bias", "conv_in.weight"])
def test_missing_tensor_is_named_and_not_made_up(name, artifact):
    _edit_tensors(artifact, lambda tensors: tensors.pop(name))
    assert name in _sentence(DiffusionPipeline.from_pretrained, ArtifactError, artifact)


@pytest.mark.parametrize(
    "name, change",
    [
        (f"{LAYER}.weight", lambda tensor: tensor.float()),
        (f"{LAYER}.weight", lambda tensor: tensor[:3].clone()),
        (f"{LAYER}.input_scale", lambda tensor: tensor[:1].clone()),
        (f"{LAYER}.input_num_bits", lambda tensor: tensor.to(torch.int64)),
    ],
)
def test_tensor_of_another_kind_or_shape_is_named(name, change, artifact):
    _edit_tensors(artifact, lambda tensors: tensors.update({name: change(tensors[name])}))
    assert f"{name} is stored as" in _sentence(DiffusionPipeline.from_pretrained, ArtifactError, artifact)


def test_newer_format_says_upgrade(artifact):
    newer = FORMAT_VERSION + 1
    _edit_config(artifact, format_version=newer, something_new=1)
    text = _sentence(DiffusionPipeline.from_pretrained, ArtifactError, artifact)
    assert f"format version {newer}" in text and "upgrade Halftone" in text
    assert "upgrade Halftone" in _sentence(halftone.load, ArtifactError, _without_manifest(artifact))


def test_newer_manifest_says_upgrade(artifact):
    (artifact / "halftone.json").write_text('{"manifest_version": 2, "parts": []}')
    assert "version 2" in _sentence(halftone.load, ArtifactError, artifact)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"manifest_version": 1}', '{"manifest_version": "1", "files": {}}', "\xff", "[" * 200_000],
    ids=range(8),
)
def test_damaged_manifest_is_one_sentence(text, artifact):
    (artifact / "halftone.json").write_bytes(text.encode("latin1"))
    assert "halftone.json" in _sentence(halftone.load, ArtifactError, artifact)


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"layers": 5}, "layers"),
        ({"layers": ["mid_block.nowhere"]}, "mid_block.nowhere"),
        ({"layers": ["conv_norm_out"]}, "conv_norm_out"),
        ({"left_out": 5}, "left_out"),
        ({"calibration": [1]}, "calibration"),
        ({"digest": None}, "digest"),
        ({"slots": 5}, "slots"),
        ({"slots": {"timesteps": [1.0, 1.0], "num_bits": [8, 8]}}, "slots"),
        ({"recipe": {"activations": {"num_bit": 8}}}, "num_bit"),
        ({"format_version": "1"}, "format_version"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_damaged_config_names_the_key(changes, named, artifact):
    _edit_config(artifact, sealed=True, **changes)
    assert named in _sentence(DiffusionPipeline.from_pretrained, ArtifactError, artifact)


def _first_slot_moved(data):
    data["slots"]["timesteps"][0] = 0.5


def _layer_left_out(data):
    data["left_out"][data["layers"].pop()] = "odd"


def _other_bits(data):
    data["recipe"]["activations"]["num_bits"] = 7


@pytest.mark.parametrize("change", [_first_slot_moved, _layer_left_out, _other_bits])
def test_changed_config_is_noticed_by_from_pretrained_too(change, artifact):
    """It still loads and still paints something: tables go by the slots, and shapes by the layers."""
    path = artifact / "unet" / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))
    said = _sentence(DiffusionPipeline.from_pretrained, ArtifactError, artifact)
    assert "quantization_config is not what was saved" in said
    assert "not what was saved" in _sentence(halftone.load, ArtifactError, _without_manifest(artifact))


def test_key_missing_from_the_config_is_named(artifact):
    path = artifact / "unet" / "config.json"
    config = json.loads(path.read_text())
    del config["quantization_config"]["slots"]
    path.write_text(json.dumps(config))
    assert "slots" in _sentence(halftone.load, ArtifactError, _without_manifest(artifact))


def test_full_precision_pipeline_is_no_artifact(sd_folder):
    assert "not quantized by Halftone" in _sentence(halftone.load, ArtifactError, sd_folder)
