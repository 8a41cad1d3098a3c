"""A corrected output on disk: the same bits after loading, by every way of calling, and damage is noticed."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from pipelines import BUILDERS, denoiser_of, tiny_sd
from safetensors.torch import load_file, save_file

import halftone
from halftone.artifact.config import quantized_digest
from halftone.artifact.inspection import inspect_artifact
from halftone.errors import ArtifactError
from halftone.schedulers import use_scheduler

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
TABLES = ("output_correction.output_gain", "output_correction.output_bias")


def _quantized(kind="drift", pipeline=None):
    recipe = halftone.Recipe.from_dict({"weights": {"num_bits": 4}, "correction": {"kind": kind}})
    return halftone.quantize(pipeline or tiny_sd(), recipe, ["a red cube", "x"], num_inference_steps=3)


def _paint(pipeline, steps=3):
    generator = torch.Generator().manual_seed(7)
    return pipeline(prompt="a red cube", num_inference_steps=steps, generator=generator, output_type="np").images


@pytest.fixture(scope="module")
def corrected(tmp_path_factory):
    result = _quantized()
    return result, result.save(tmp_path_factory.mktemp("artifacts") / "drift")


@pytest.fixture
def copied(corrected, tmp_path):
    """As `save_pretrained` leaves it, without a list of digests."""
    halftone.load(corrected[1]).save_pretrained(tmp_path / "copy")
    return tmp_path / "copy"


def _arguments(timestep):
    generator = torch.Generator().manual_seed(0)
    sample, states = (torch.randn(shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 77, 16)))
    return {"sample": sample, "timestep": torch.tensor(timestep), "encoder_hidden_states": states}


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("kind", ["bias", "gain_bias", "drift"])
def test_loaded_pipeline_paints_the_same(kind, name, tmp_path):
    result = _quantized(kind, BUILDERS[name]())
    folder = result.save(tmp_path / "out")
    loaded, by_diffusers = halftone.load(folder), DiffusionPipeline.from_pretrained(folder)
    digest = quantized_digest(denoiser_of(result.pipeline))
    assert quantized_digest(denoiser_of(loaded)) == quantized_digest(denoiser_of(by_diffusers)) == digest
    assert np.array_equal(_paint(loaded), _paint(result.pipeline))
    assert np.array_equal(_paint(by_diffusers), _paint(loaded))


def test_saved_again_it_is_the_same(corrected, copied):
    assert (copied / WEIGHTS).read_bytes() == (corrected[1] / WEIGHTS).read_bytes()
    assert np.array_equal(_paint(halftone.load(copied)), _paint(corrected[0].pipeline))


def test_it_is_applied_once_in_every_form_of_output(corrected):
    unet = halftone.load(corrected[1]).unet
    correction = unet.output_correction
    for slot, timestep in enumerate(corrected[0].config.slots.timesteps):
        arguments = _arguments(timestep)
        with torch.no_grad():
            found = unet(**arguments)
            (as_tuple,) = unet(**arguments, return_dict=False)
            plain = unet.forward(**arguments).sample  # without hooks; the clock stands where the calls have left it
            expected = correction(plain, slot)
        assert torch.equal(found.sample, expected) and torch.equal(found[0], expected)
        assert torch.equal(as_tuple, expected)
        assert not torch.equal(expected, plain)


def test_slot_is_that_of_the_nearest_timestep(corrected):
    """Other steps and samplers than in the calibration, and a copy that has its own clock."""
    result, folder = corrected
    pipeline = halftone.load(folder)
    seen, forward = [], pipeline.unet.output_correction.forward
    pipeline.unet.output_correction.forward = lambda x, slot: seen.append(slot) or forward(x, slot)
    copied = copy.deepcopy(pipeline.unet)
    with torch.no_grad():
        copied(**_arguments(1.0))
        pipeline.unet(**_arguments(400.0))
    assert seen[-1] == result.config.slots.slot_of(400.0)
    for scheduler, steps in (("EulerDiscrete", 5), ("DPMSolverMultistep", 7)):
        use_scheduler(pipeline, scheduler)
        seen.clear()
        assert np.isfinite(_paint(pipeline, steps)).all()
        times = [float(time) for time in pipeline.scheduler.timesteps]
        assert seen == [result.config.slots.slot_of(time) for time in times] and len(seen) == steps


def test_tables_stay_float32_when_the_rest_is_cast(corrected):
    unet = halftone.load(corrected[1], dtype=torch.bfloat16).unet
    original = corrected[0].pipeline.unet.output_correction
    for correction in (unet.output_correction, copy.deepcopy(original).to(torch.float16)):
        assert torch.equal(correction.output_gain, original.output_gain)
        assert torch.equal(correction.output_bias, original.output_bias)
    arguments = {key: value.bfloat16() if value.ndim > 1 else value for key, value in _arguments(500.0).items()}
    with torch.no_grad():
        assert unet(**arguments).sample.dtype == torch.bfloat16


def test_what_is_told_of_it(corrected):
    result, folder = corrected
    facts = inspect_artifact(folder)
    gain = result.pipeline.unet.output_correction.output_gain
    assert facts["correction"]["kind"] == "drift"
    assert facts["correction"]["fitted"]["gain"] == [float(gain.min()), float(gain.max())]
    assert facts["recipe"] == result.config.recipe.to_dict()
    assert json.loads((folder / "halftone.json").read_text())["calibration"]["correction"].keys() == {"gain", "bias"}
    config = json.loads((folder / "unet" / "config.json").read_text())["quantization_config"]
    assert config["format_version"] == 4
    parameters = sum(parameter.numel() for parameter in tiny_sd().unet.parameters())
    assert facts["sizes"]["denoiser_float32_bytes"] == 4 * parameters


def _edit(folder, edit):
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize("name", TABLES)
def test_changed_missing_and_foreign_tables_are_noticed(name, copied, tmp_path):
    edits = {
        "flipped bit": lambda tensors: tensors[name].add_(1),
        "lacks": lambda tensors: tensors.pop(name),
        f"{name} is stored as": lambda tensors: tensors.update({name: tensors[name].double()}),
        "instead of torch.float32 with 3 rows": lambda tensors: tensors.update({name: tensors[name][:2].clone()}),
        "are not those that were saved": lambda tensors: tensors.update({name: tensors[name][:, :2].clone()}),
    }
    for number, (said, edit) in enumerate(edits.items()):
        damaged = shutil.copytree(copied, tmp_path / str(number))
        _edit(damaged, edit)
        with pytest.raises(ArtifactError, match=said):
            DiffusionPipeline.from_pretrained(damaged)


def test_tables_are_no_weights(corrected):
    from halftone.qdiffbench.stored_weights import average_weight_bits

    plain = halftone.quantize(
        tiny_sd(), halftone.Recipe.from_dict({"weights": {"num_bits": 4}}), ["a red cube", "x"], num_inference_steps=3
    )
    assert average_weight_bits(corrected[0].pipeline.unet) == average_weight_bits(plain.pipeline.unet)


@pytest.mark.parametrize(
    "changes, version",
    [
        ({}, 3),
        ({"relax": {"fraction": 0.5, "side": "end", "bits": 10}}, 3),
        ({"relax": {"products": 1.5, "side": "end", "bits": 10}}, 4),
        ({"relax": {"fraction": 0.5, "side": "auto", "bits": 10}}, 4),
        (
            {"activations": {"granularity": "tensor"}, "calibration": "full_precision", "observed_steps": "even"},
            4,
        ),
    ],
)
def test_the_newest_format_is_written_where_older_releases_would_not_know_the_recipe(changes, version):
    recipe = halftone.Recipe.from_dict(changes)
    result = halftone.quantize(tiny_sd(), recipe, ["x"], num_inference_steps=2)
    assert result.config.to_dict()["format_version"] == version
