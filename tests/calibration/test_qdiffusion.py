"""`qdiffusion`: steps drawn evenly, and joined skips whose halves have ranges and weights of their own."""

import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from pipelines import tiny_sd, tiny_sd3, tiny_sdxl

import halftone
from halftone.artifact.config import HalftoneConfig, config_digest
from halftone.artifact.inspection import inspect_artifact
from halftone.calibration import lockstep
from halftone.calibration.lockstep import even_draw
from halftone.errors import ArtifactError, InputError
from halftone.layers import QuantizedConv2d, SplitConv2d, quantized_layers
from halftone.recipe import DEFAULT_EXCLUDE

PROMPTS = ("a red cube", "a blue ball")
STEPS = 4
SPLIT = {"split_shortcuts": True}
JOINED = [f"up_blocks.{i}.resnets.{j}.{part}" for i in (0, 1) for j in (0, 1) for part in ("conv1", "conv_shortcut")]
FEW = {"iterations": 5, "num_samples": 4, "batch_size": 4}


def _paint(pipeline):
    generator = torch.Generator().manual_seed(7)
    return pipeline(prompt="a red cube", num_inference_steps=STEPS, generator=generator, output_type="np").images


def _quantize(pipeline, recipe, **kwargs):
    return halftone.quantize(pipeline, recipe, PROMPTS, num_inference_steps=STEPS, **kwargs)


def test_even_draw_by_hand():
    assert even_draw(50) == tuple(range(0, 50, 2)) and even_draw(25) == tuple(range(25)) and even_draw(3) == (0, 1, 2)
    assert even_draw(51)[:3] == (0, 2, 4) and even_draw(51)[-1] == 48 and len(set(even_draw(51))) == 25
    assert even_draw(100) == tuple(range(0, 100, 4)) and even_draw(1) == (0,)


def test_halves_are_observed_at_the_drawn_steps_of_the_float_trajectory(monkeypatch):
    """Two of four calls, the first and the third; against hooks of our own on the unsplit model."""
    monkeypatch.setattr(lockstep, "EVEN_STEPS", 2)
    pipeline, seen = tiny_sd(), {name: [] for name in JOINED}
    for name in JOINED:
        layer = pipeline.unet.get_submodule(name)
        layer.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0].clone()))
    generators = [torch.Generator().manual_seed(index) for index in range(2)]
    pipeline(list(PROMPTS), num_inference_steps=STEPS, generator=generators, output_type="latent")
    result = _quantize(tiny_sd(), "qdiffusion-w8a8")
    assert result.calibration.denoiser_passes_per_prompt == STEPS
    for name in JOINED:
        channels = 8 if name.startswith("up_blocks.1.resnets.1") else 16
        inputs = torch.stack([seen[name][call] for call in (0, 2)])
        for half, values in (("hidden", inputs[:, :, :channels]), ("skip", inputs[:, :, channels:])):
            (found,) = result.calibration.ranges[f"{name}.{half}"]
            assert found == pytest.approx((float(values.min()), float(values.max())), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("build", [tiny_sd, tiny_sdxl])
@pytest.mark.parametrize("weights", [{"num_bits": 4, "rounding": "adaround", "rounding_options": FEW}, {"num_bits": 8}])
def test_artifact_paints_the_same(build, weights, tmp_path):
    recipe = {**halftone.Recipe.load("qdiffusion-w8a6").to_dict(), "weights": weights}
    result = _quantize(build(), recipe)
    unet = result.pipeline.unet
    assert list(result.config.splits) == JOINED and result.config.to_dict()["format_version"] == 4
    for name, channels in result.config.splits.items():
        split, plain = unet.get_submodule(name), build().unet.get_submodule(name)
        assert isinstance(split, SplitConv2d) and isinstance(split.hidden, QuantizedConv2d)
        assert split.channels == channels and split.channels + split.skip.in_channels == plain.in_channels
    folder, expected = result.save(tmp_path / "out"), _paint(result.pipeline)
    assert np.array_equal(_paint(halftone.load(folder)), expected)
    again = DiffusionPipeline.from_pretrained(folder)
    assert np.array_equal(_paint(again), expected)
    again.save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "unet" / "config.json").read_text())["quantization_config"]
    assert HalftoneConfig.from_dict(config).splits == result.config.splits


def test_weights_of_a_half_have_the_scale_of_that_half():
    unet = _quantize(tiny_sd(), SPLIT).pipeline.unet
    whole = tiny_sd().unet.get_submodule(JOINED[0]).weight
    split = unet.get_submodule(JOINED[0])
    for layer, weight in ((split.hidden, whole[:, :16]), (split.skip, whole[:, 16:])):
        assert torch.equal(layer.weight_scale, weight.flatten(1).abs().amax(1) / 127)


@pytest.mark.parametrize("recipe", [{**SPLIT, "activations": {"granularity": "token"}, "calibration": "none"}, SPLIT])
def test_goes_with_other_ways_to_calibrate(recipe, tmp_path):
    result = _quantize(tiny_sd(), recipe)
    expected = _paint(result.pipeline)
    assert np.array_equal(_paint(halftone.load(result.save(tmp_path / "out"))), expected)


def test_told_by_inspect(tmp_path):
    from halftone.cli.inspect import _lines

    facts = inspect_artifact(_quantize(tiny_sd(), SPLIT).save(tmp_path / "out"))
    assert list(facts["splits"]) == JOINED and f"{JOINED[0]}.hidden" in facts["layers"]
    assert not set(JOINED) & set(facts["layers"]) and len(facts["layers"]) == 79 + 8 and len(facts["left_out"]) == 4
    assert "87 quantized, 4 left in floating point; 8 convolutions of joined skips have" in "\n".join(_lines(facts))
    sizes = facts["sizes"]
    assert sizes["denoiser_float32_bytes"] == 4 * sum(p.numel() for p in tiny_sd().unet.parameters())


def test_model_without_skips_is_said_to_be_unchanged(tmp_path):
    from halftone.cli.inspect import _lines

    said = []
    result = _quantize(tiny_sd3(), SPLIT, announce=said.append)
    assert "SD3Transformer2DModel joins no skip connections: split_shortcuts changes nothing." in said[0]
    plain = _quantize(tiny_sd3(), {})
    assert result.config.splits == {} and result.config.digest == plain.config.digest
    lines = "\n".join(_lines(inspect_artifact(result.save(tmp_path / "out"))))
    assert "split_shortcuts changed nothing, since the model joins no skips" in lines


def test_said_only_where_nothing_is_split():
    said = []
    _quantize(tiny_sd(), SPLIT, announce=said.append)
    assert "changes nothing" not in said[0]


def test_excluded_layers_stay_whole():
    recipe = {**SPLIT, "exclude": [*DEFAULT_EXCLUDE, "*.conv_shortcut", "up_blocks.1"]}
    result = _quantize(tiny_sd(), recipe)
    assert list(result.config.splits) == ["up_blocks.0.resnets.0.conv1", "up_blocks.0.resnets.1.conv1"]
    assert type(result.pipeline.unet.get_submodule(JOINED[1])) is torch.nn.Conv2d


def test_interrupted_run_goes_on(tmp_path):
    class Stop(Exception):
        pass

    def stop(done, total):
        if done == 2:
            raise Stop

    pipeline = tiny_sd()
    with pytest.raises(Stop):
        _quantize(pipeline, "qdiffusion-w8a8", checkpoint_folder=tmp_path / "parts", progress=stop)
    with pytest.raises(InputError, match="half quantized"):
        _quantize(pipeline, "minmax-w8a8")
    result = _quantize(tiny_sd(), "qdiffusion-w8a8", checkpoint_folder=tmp_path / "parts")
    assert result.calibration.resumed_calls == 2
    assert result.config.digest == _quantize(tiny_sd(), "qdiffusion-w8a8").config.digest


@pytest.mark.parametrize(
    "splits, message",
    [
        ({JOINED[0]: "16"}, "splits are no numbers of channels"),
        ({JOINED[0]: 0}, "splits are no numbers of channels"),
        ([JOINED[0]], "splits is a list"),
        ({JOINED[0]: 32}, f"splits {JOINED[0]} at 32 channels"),
        ({"mid_block.resnets.7.conv1": 8}, r"names a quantized layer mid_block\.resnets\.7\.conv1"),
        ({}, "does not have"),
    ],
)
def test_damaged_splits_are_told(splits, message, tmp_path):
    folder = _quantize(tiny_sd(), SPLIT).save(tmp_path / "out")
    (folder / "halftone.json").unlink()
    path = folder / "unet" / "config.json"
    data = json.loads(path.read_text())
    data["quantization_config"]["splits"] = splits
    data["quantization_config"]["config_digest"] = config_digest(data["quantization_config"])
    path.write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match=message):
        halftone.load(folder)


def test_version_4_without_splits_is_damage_and_version_3_has_none(tmp_path):
    config = _quantize(tiny_sd(), SPLIT).config.to_dict()
    del config["splits"]
    with pytest.raises(ArtifactError, match="missing splits"):
        HalftoneConfig.from_dict(config)
    plain = _quantize(tiny_sd(), {}).config.to_dict()
    assert plain["format_version"] == 3 and "splits" not in plain and "split_shortcuts" not in plain["recipe"]
    assert HalftoneConfig.from_dict(plain).splits == {}


def test_layers_of_halves_are_ordinary_ones():
    """Tables, kernels and packing see nothing but layers."""
    unet = _quantize(tiny_sd(), SPLIT).pipeline.unet
    names = [name for name, _ in quantized_layers(unet)]
    assert f"{JOINED[0]}.hidden" in names and f"{JOINED[0]}.skip" in names
    assert unet.get_submodule(f"{JOINED[0]}.skip").layer_name == f"{JOINED[0]}.skip"
