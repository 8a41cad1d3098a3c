"""Artifacts whose weights have groups or zero points: packed, bit-equal, resumable, described, strictly read."""

import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from pipelines import tiny_sd, tiny_sd3
from safetensors.torch import load_file, save_file

import halftone
from halftone.artifact.inspection import inspect_artifact
from halftone.errors import ArtifactError
from halftone.layers import quantized_layers

WEIGHTS = "diffusion_pytorch_model.safetensors"
LAYER = "mid_block.resnets.0.conv1"
GPTQ = {"rounding": "gptq", "rounding_options": {"num_samples": 4}}
SCHEMES = {
    "groups": {"num_bits": 4, "granularity": "group", "group_size": 32},
    "zero points": {"num_bits": 4, "symmetric": False, "scale": "mse"},
    "both, gptq": {"num_bits": 4, "granularity": "group", "group_size": 64, "symmetric": False, **GPTQ},
    "both, 8 bits": {"num_bits": 8, "granularity": "group", "group_size": 128, "symmetric": False},
    "gptq, 3 bits": {"num_bits": 3, "symmetric": False, "scale": "mse", **GPTQ},
}


def _paint(pipeline):
    generator = torch.Generator().manual_seed(7)
    return pipeline(prompt="a red cube", num_inference_steps=2, generator=generator, output_type="np").images


def _quantized(weights, build=tiny_sd, **kwargs):
    return halftone.quantize(build(), {"weights": weights}, ["a red cube"], num_inference_steps=2, **kwargs)


@pytest.mark.parametrize("name, build", [*((name, tiny_sd) for name in SCHEMES), ("both, gptq", tiny_sd3)])
def test_round_trips_to_the_bit(name, build, tmp_path):
    result = _quantized(SCHEMES[name], build)
    folder, expected = result.save(tmp_path / "out"), _paint(result.pipeline)
    assert np.isfinite(expected).all() and result.config.to_dict()["format_version"] == 4
    loaded = halftone.load(folder)
    assert np.array_equal(_paint(loaded), expected)
    assert np.array_equal(_paint(DiffusionPipeline.from_pretrained(folder)), expected)
    denoiser = result.config.calibration["denoiser"]
    stored = load_file(folder / denoiser / WEIGHTS)
    bits = SCHEMES[name]["num_bits"]
    for layer_name, layer in quantized_layers(getattr(loaded, denoiser)):
        length, group = layer.weight[0].numel(), SCHEMES[name].get("group_size")
        shape = (len(layer.weight),) if group is None else (len(layer.weight), -(-length // group))
        assert stored[f"{layer_name}.weight_scale"].shape == shape
        assert (f"{layer_name}.weight_zero_point" in stored) == (SCHEMES[name].get("symmetric") is False)
        if bits < 8:
            assert stored[f"{layer_name}.weight"].dtype == torch.uint8
            assert len(stored[f"{layer_name}.weight"]) == -(-layer.weight.numel() * bits // 8)


def test_gptq_and_nearest_differ_and_gptq_is_resumed(tmp_path):
    class Stop(Exception):
        pass

    def stop(done, total):
        if done > total // 2:
            raise Stop

    scheme = SCHEMES["both, gptq"]
    whole = _quantized(scheme)
    with pytest.raises(Stop):
        _quantized(scheme, checkpoint_folder=tmp_path / "parts", progress=stop)
    resumed = _quantized(scheme, checkpoint_folder=tmp_path / "parts")
    assert resumed.rounding.resumed_units > 0 and resumed.config.digest == whole.config.digest
    nearest = _quantized({key: value for key, value in scheme.items() if not key.startswith("rounding")})
    assert nearest.config.digest != whole.config.digest


def test_inspect_tells(tmp_path):
    from halftone.cli.inspect import _lines

    facts = inspect_artifact(_quantized(SCHEMES["both, 8 bits"]).save(tmp_path / "out"))
    text = "\n".join(_lines(facts))
    assert "8 bits, a scale and a zero point for every 128 weights of an output channel, rounding nearest" in text
    assert "linear on cpu, 8 bits, 9-bit weights, weight groups" in facts["kernels"]
    assert facts["sizes"]["denoiser_float32_bytes"] == 4 * sum(p.numel() for p in tiny_sd().unet.parameters())


def test_plain_recipe_is_written_as_older_releases_do():
    config = _quantized({"num_bits": 4}).config.to_dict()
    assert config["format_version"] == 3 and set(config["recipe"]["weights"]) == {
        *("num_bits", "granularity", "symmetric", "scale", "rounding", "rounding_options")
    }


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda tensors: tensors[f"{LAYER}.weight_zero_point"].bitwise_xor_(1), "flipped bit"),
        (lambda tensors: tensors.pop(f"{LAYER}.weight_zero_point"), "lacks 1 tensors"),
        (
            lambda tensors: tensors.update({f"{LAYER}.weight_scale": tensors[f"{LAYER}.weight_scale"][:, :1].clone()}),
            rf"{LAYER}\.weight_scale is stored as",
        ),
    ],
)
def test_damage_is_noticed(change, message, tmp_path):
    folder = _quantized(SCHEMES["both, gptq"] | {"rounding": "nearest", "rounding_options": {}}).save(tmp_path / "out")
    (folder / "halftone.json").unlink()
    tensors = load_file(folder / "unet" / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / "unet" / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=message):
        halftone.load(folder)


def test_groups_go_with_split_shortcuts_and_measured_ranges(tmp_path):
    recipe = {
        "weights": SCHEMES["groups"],
        "split_shortcuts": True,
        "activations": {"granularity": "token", "num_bits": 6},
        "calibration": "none",
    }
    result = halftone.quantize(tiny_sd(), recipe, ["x"], num_inference_steps=2)
    expected = _paint(result.pipeline)
    folder = result.save(tmp_path / "out")
    assert np.array_equal(_paint(halftone.load(folder)), expected)
    assert "row scales, weight groups" in json.dumps(inspect_artifact(folder)["kernels"])
