"""`dynamic`: ranges measured at inference, so that nothing is calibrated and nothing of it is counted."""

import math

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from pipelines import denoiser_of, tiny_sd, tiny_sd3, tiny_sdxl

import halftone
from halftone.artifact.inspection import inspect_artifact
from halftone.layers import quantized_layers

PROMPTS = ("a red cube", "a blue ball")
GPTQ = {"num_bits": 4, "rounding": "gptq", "rounding_options": {"num_samples": 4}}


def _paint(pipeline):
    generator = torch.Generator().manual_seed(7)
    return pipeline(prompt="a red cube", num_inference_steps=3, generator=generator, output_type="np").images


def _quantize(build, recipe="dynamic-w8a8", **kwargs):
    """The result, and the rows that went through the denoiser for it."""
    pipeline, rows = build(), []
    first = getattr(denoiser_of(pipeline), "conv_in", None) or denoiser_of(pipeline).pos_embed
    handle = first.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    result = halftone.quantize(pipeline, recipe, PROMPTS, num_inference_steps=3, **kwargs)
    handle.remove()
    return result, sum(rows)


@pytest.mark.parametrize("build", [tiny_sd, tiny_sdxl, tiny_sd3])
def test_no_prompt_goes_through_the_denoiser_and_the_artifact_paints_the_same(build, tmp_path):
    result, rows = _quantize(build)
    assert rows == 0 and result.calibration.denoiser_passes_per_prompt == 0.0 and not result.calibration.ranges
    record = result.config.calibration
    assert record["denoiser_passes_per_prompt"] == record["rounding_passes_per_prompt"] == 0.0
    for _, layer in quantized_layers(denoiser_of(result.pipeline)):
        assert layer.form.measured and layer.num_slots == 1 and layer.input_num_bits.tolist() == [8]
    assert result.config.to_dict()["format_version"] == 4  # older releases know of no such ranges
    folder, expected = result.save(tmp_path / "out"), _paint(result.pipeline)
    assert np.isfinite(expected).all()
    assert np.array_equal(_paint(halftone.load(folder)), expected)
    assert np.array_equal(_paint(DiffusionPipeline.from_pretrained(folder)), expected)


def test_other_steps_and_schedulers_have_nothing_to_miss(tmp_path):
    """No timestep was calibrated: the table serves all."""
    result, _ = _quantize(tiny_sd)
    generator = torch.Generator().manual_seed(0)
    assert np.isfinite(result.pipeline("x", num_inference_steps=7, generator=generator, output_type="np").images).all()


def test_rounding_is_all_that_costs_passes():
    dynamic = {"weights": GPTQ, "activations": {"granularity": "token"}, "calibration": "none"}
    steps = []
    result, rows = _quantize(tiny_sd, dynamic, progress=lambda done, total: steps.append((done, total)))
    passes = result.config.calibration["denoiser_passes_per_prompt"]
    assert passes == result.config.calibration["rounding_passes_per_prompt"] == result.rounding.passes_per_prompt
    assert rows == pytest.approx(passes * 2 * len(PROMPTS)) and passes >= 3
    assert steps[-1][0] == steps[-1][1] == 3 + 79 and [done for done, _ in steps] == sorted(done for done, _ in steps)
    plain, _ = _quantize(tiny_sd, {**dynamic, "weights": {"num_bits": 4}})
    layers = [dict(quantized_layers(one.pipeline.unet)) for one in (result, plain)]
    assert any(not torch.equal(layers[0][name].weight, layers[1][name].weight) for name in layers[0])


@pytest.mark.parametrize("weights", [{"num_bits": 8}, GPTQ])
def test_announced_without_passes(weights):
    said = []
    recipe = {"weights": weights, "activations": {"granularity": "token"}, "calibration": "none"}
    _quantize(tiny_sd, recipe, announce=said.append)
    assert said[0].startswith("No pass through the denoiser: ranges are measured at inference; ")
    assert ("Of the weights, gptq rounds 79 layers" in said[0]) == ("rounding" in weights) and len(said) == 1


@pytest.mark.parametrize("bits", [(8, 8), (4, 6)])
def test_images_stay_near_full_precision(bits):
    recipe = f"dynamic-w{bits[0]}a{bits[1]}"
    expected, found = _paint(tiny_sd()), _paint(_quantize(tiny_sd, recipe)[0].pipeline)
    error = math.sqrt(float(np.square(expected - found).mean()))
    assert 0 < error < (0.01 if bits == (8, 8) else 0.15)


def test_inspect_says_so(tmp_path, capsys):
    from halftone.cli.inspect import _lines

    result, _ = _quantize(tiny_sd, "dynamic-w4a6")
    facts = inspect_artifact(result.save(tmp_path / "out"))
    assert facts["average_activation_bits"] == 6 and facts["calibration"]["denoiser_passes_per_prompt"] == 0
    assert "linear on cpu, 6 bits, row scales" in facts["kernels"]
    text = "\n".join(_lines(facts))
    assert "6 bits; the range of each token (of each image in convolutions) is measured at inference" in text
    assert "calibrated   no activations, 0 denoiser passes a prompt" in text


def test_a_finished_command_is_found_again(tmp_path):
    """Resuming and finding what was made work as for other recipes, with no call to replay."""
    result, _ = _quantize(tiny_sd, checkpoint_folder=tmp_path / "unfinished")
    result.save(tmp_path / "out")
    assert not (tmp_path / "unfinished").exists()
