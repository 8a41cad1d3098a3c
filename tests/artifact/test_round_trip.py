"""What is loaded paints what was saved, to the bit."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from pipelines import BUILDERS, denoiser_of, save_folder, tiny_sd
from safetensors.torch import load_file

import halftone
from halftone.artifact.attach import attach
from halftone.artifact.config import HalftoneConfig, quantized_digest
from halftone.artifact.load import artifact_config
from halftone.layers import quantized_layers

PROMPTS = ["a red cube", "a blue ball"]
WEIGHTS = "diffusion_pytorch_model.safetensors"
TESTS = Path(__file__).parent.parent
FRESH = """
import hashlib, sys
import {first}, {second}
from pathlib import Path
import numpy, torch
sys.path.insert(0, sys.argv[3])
from pipelines import tiny_sd
torch.set_num_threads(1)
for number, load in enumerate([diffusers.DiffusionPipeline.from_pretrained, halftone.load]):
    generator = torch.Generator().manual_seed(7)
    pipeline = load(sys.argv[1])
    image = pipeline("a red cube", num_inference_steps=3, generator=generator, output_type="np").images
    numpy.save(Path(sys.argv[2]) / f"{{number}}.npy", image)
steps = Path(sys.argv[2]) / "steps"
result = halftone.quantize(tiny_sd(), "pcr-w8a8", ["x"], num_inference_steps=2, checkpoint_folder=steps)
(steps / "calibration.json").rename(Path(sys.argv[2]) / "settings.json")
result.save(Path(sys.argv[2]) / "out")
"""


def _paint(pipeline, kind="np"):
    generator = torch.Generator().manual_seed(7)
    return pipeline("a red cube", num_inference_steps=3, generator=generator, output_type=kind).images


def _quantized(name="sd", recipe="pcr-w8a8"):
    return halftone.quantize(BUILDERS[name](), recipe, PROMPTS, num_inference_steps=4)


def _contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("recipe", ["pcr-w8a8", "minmax-w8a8"])
def test_loaded_pipeline_paints_the_same(name, recipe, tmp_path):
    result = _quantized(name, recipe)
    expected = _paint(result.pipeline)
    result.save(tmp_path / "out")
    loaded = halftone.load(tmp_path / "out")
    assert type(loaded) is type(result.pipeline) and artifact_config(loaded) == artifact_config(result.pipeline)
    assert np.array_equal(_paint(loaded), expected)
    assert np.array_equal(_paint(DiffusionPipeline.from_pretrained(tmp_path / "out")), expected)


def test_fresh_processes_with_either_order_of_imports(sd_artifact, tmp_path):
    """They paint the same, and quantize to the same bytes although sets of strings have another order in each."""
    expected = _paint(halftone.load(sd_artifact))
    runs = {}
    for seed, (first, second) in enumerate([("halftone", "diffusers"), ("diffusers", "halftone")]):
        folder = tmp_path / str(seed)
        folder.mkdir()
        command = [sys.executable, "-c", FRESH.format(first=first, second=second), sd_artifact, folder, TESTS]
        environment = {**os.environ, "PYTHONHASHSEED": str(seed + 1), "OMP_NUM_THREADS": "1"}
        runs[folder] = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    for folder, run in runs.items():
        _, errors = run.communicate(timeout=200)
        assert run.returncode == 0, errors[-2000:]
        for number in range(2):
            assert np.array_equal(np.load(folder / f"{number}.npy"), expected)
    first, second = (
        {name: digest for name, digest in _contents(folder).items() if name.startswith(("out", "settings"))}
        for folder in runs
    )
    assert first == second and "settings.json" in first and "out/halftone.json" in first


def test_save_pretrained_of_a_loaded_pipeline_round_trips(sd_artifact, tmp_path):
    loaded = halftone.load(sd_artifact)
    loaded.save_pretrained(tmp_path / "again")
    again = halftone.load(tmp_path / "again")
    assert np.array_equal(_paint(again), _paint(loaded))
    assert artifact_config(again) == artifact_config(loaded)
    first, second = (load_file(folder / "unet" / WEIGHTS) for folder in (sd_artifact, tmp_path / "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    again.save_pretrained(tmp_path / "third")
    assert (tmp_path / "third" / "unet" / WEIGHTS).read_bytes() == (sd_artifact / "unet" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("name", BUILDERS)
def test_same_command_gives_the_same_bytes(name, tmp_path):
    for out in ("one", "two"):
        _quantized(name).save(tmp_path / out)
    assert _contents(tmp_path / "one") == _contents(tmp_path / "two")
    assert _contents(tmp_path / "one")


def test_source_folder_gives_the_same_bytes_as_the_pipeline_in_memory(sd_folder, tmp_path):
    from halftone.sources import open_pipeline

    _quantized().save(tmp_path / "memory")
    opened = halftone.quantize(open_pipeline(sd_folder), "pcr-w8a8", PROMPTS, num_inference_steps=4)
    opened.save(tmp_path / "opened")
    memory, opened = (load_file(tmp_path / out / "unet" / WEIGHTS) for out in ("memory", "opened"))
    assert all(torch.equal(memory[key], opened[key]) for key in memory)


def test_artifact_does_not_tell_where_its_source_lay(sd_folder, tmp_path):
    from halftone.sources import open_pipeline

    for name in ("one", "somewhere/else"):
        folder = shutil.copytree(sd_folder, tmp_path / name / "model")
        result = halftone.quantize(open_pipeline(folder), "pcr-w8a8", PROMPTS[:1], num_inference_steps=1)
        result.save(tmp_path / name / "out")
    first = _contents(tmp_path / "one" / "out")
    assert first == _contents(tmp_path / "somewhere" / "else" / "out")
    for name in first:
        assert str(tmp_path).encode() not in (tmp_path / "one" / "out" / name).read_bytes(), name


def test_stored_tensors_are_integers_and_the_file_is_small(tmp_path):
    pipeline = tiny_sd(channels=(64, 128))
    full = save_folder(pipeline, tmp_path / "full") / "unet" / WEIGHTS
    halftone.quantize(pipeline, "pcr-w8a8", PROMPTS[:1], num_inference_steps=4).save(tmp_path / "out")
    small = tmp_path / "out" / "unet" / WEIGHTS
    assert small.stat().st_size <= 0.30 * full.stat().st_size
    stored = load_file(small)
    for name, _ in quantized_layers(pipeline.unet):
        assert stored[f"{name}.weight"].dtype == torch.int8
        assert stored[f"{name}.weight_scale"].dtype == stored[f"{name}.input_scale"].dtype == torch.float32
        assert stored[f"{name}.input_zero_point"].dtype == torch.int32
    assert stored["conv_in.weight"].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_leave_integers_and_scales_alone(dtype, sd_artifact):
    loaded = halftone.load(sd_artifact, dtype=dtype)
    assert loaded.unet.conv_in.weight.dtype == dtype and loaded.vae.dtype == dtype
    reference = halftone.load(sd_artifact).unet
    assert quantized_digest(loaded.unet) == quantized_digest(reference)
    for _, layer in quantized_layers(loaded.unet):
        assert layer.weight.dtype == torch.int8 and layer.weight_scale.dtype == torch.float32
        assert layer.bias is None or layer.bias.dtype == dtype
    if dtype == torch.bfloat16:
        assert np.isfinite(_paint(loaded)).all()


def test_artifact_is_loaded_in_the_dtype_of_its_calibration(tmp_path):
    result = halftone.quantize(tiny_sd().to(torch.bfloat16), "pcr-w8a8", PROMPTS[:1], num_inference_steps=2)
    expected = _paint(result.pipeline, "latent")
    result.save(tmp_path / "out")
    loaded = halftone.load(tmp_path / "out")
    assert loaded.vae.dtype == torch.bfloat16 and torch.equal(_paint(loaded, "latent"), expected)
    assert halftone.load(tmp_path / "out", dtype=torch.float32).vae.dtype == torch.float32


def test_manifest_and_config_say_what_was_done_and_no_prompt(sd_artifact):
    import json

    manifest = json.loads((sd_artifact / "halftone.json").read_text())
    record = manifest["calibration"]
    assert set(manifest["files"]) == {name for name in _contents(sd_artifact) if name != "halftone.json"}
    assert manifest["files"] == {k: v for k, v in _contents(sd_artifact).items() if k != "halftone.json"}
    assert record["prompts"] == 2
    assert record["prompts_sha256"] == [hashlib.sha256(text.encode()).hexdigest() for text in PROMPTS]
    assert (record["num_inference_steps"], record["seed"], record["dtype"]) == (4, 0, "float32")
    assert record["denoiser_passes_per_prompt"] == 8.0 and record["timesteps"] == [751.0, 501.0, 251.0, 1.0]
    assert (record["pipeline"], record["scheduler"]) == ("StableDiffusionPipeline", "DDIMScheduler")
    assert set(record["versions"]) == {"python", "halftone", "torch", "diffusers", "transformers"}
    assert "cube" not in (sd_artifact / "halftone.json").read_text()
    config = json.loads((sd_artifact / "unet" / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["format_version"]) == ("halftone", 3)
    assert config["slots"] == {"timesteps": [751.0, 501.0, 251.0, 1.0], "num_bits": [8, 8, 8, 10]}
    assert config["calibration"] == record and config["left_out"]["conv_in"].startswith("excluded by the recipe")
    assert HalftoneConfig.from_dict(config).to_dict() == config


def test_no_pickle_in_the_artifact(sd_artifact):
    assert {path.suffix for path in sd_artifact.rglob("*") if path.is_file()} == {".json", ".safetensors"}


def test_from_pretrained_cannot_quantize_on_the_fly(sd_folder, sd_artifact):
    config = artifact_config(halftone.load(sd_artifact))
    with pytest.raises(halftone.HalftoneError, match=r"use halftone\.quantize"):
        diffusers.UNet2DConditionModel.from_pretrained(sd_folder, subfolder="unet", quantization_config=config)


def test_attach_takes_the_digest_of_what_it_gets(sd_artifact):
    pipeline = halftone.load(sd_artifact)
    layer = next(iter(quantized_layers(denoiser_of(pipeline))))[1]
    before = artifact_config(pipeline)
    with torch.no_grad():
        layer.weight[0] = 1
    attach(pipeline.unet, before)
    assert artifact_config(pipeline).digest == quantized_digest(pipeline.unet) != before.digest


def test_loaded_pipeline_is_an_ordinary_one(sd_artifact):
    """The commands switch diffusers' progress bar off; `load` leaves it as `from_pretrained` does."""
    assert not hasattr(halftone.load(sd_artifact), "_progress_bar_config")
