"""`halftone quantize`: its contract, and every kind of wrong input."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from pipelines import save_folder, tiny_sd
from safetensors.torch import load_file, save_file

import halftone as library
from halftone.sources import content_sha256


@pytest.fixture
def quantize(halftone, sd_folder, prompts, tmp_path):
    """Runs the command with defaults for what is not given."""

    def run(*more, source=sd_folder, file=prompts, out=tmp_path / "out", steps=2):
        return halftone("quantize", source, "--prompts", file, "--steps", steps, "--out", out, *more)

    return run


def _recipe(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_result_for_machines(quantize, sd_folder, tmp_path):
    ran = quantize("--json", steps=5)
    assert ran.code == 0 and ran.err.splitlines()[-1] == "calibrating: 5 of 5"
    facts = ran.json
    assert facts["recipe"] == "pcr-w8a8" and facts["weight_bits"] == 8
    assert facts["denoiser_passes_per_prompt"] == 10.0  # twice a step
    assert facts["average_activation_bits"] == pytest.approx((4 * 8 + 10) / 5)  # the last fifth has 10 bits
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert facts["bytes"] == sum(path.stat().st_size for path in written)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "prompts.txt"]
    assert library.load(tmp_path / "out").unet is not None
    record = json.loads((tmp_path / "out" / "halftone.json").read_text())["calibration"]
    assert record["guidance_scale"] == 7.5 and record["source_sha256"] == content_sha256(sd_folder)


def test_same_command_after_its_success_says_so_and_ends_well(quantize, tmp_path):
    first = quantize("--json").json
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    again = quantize("--json")
    assert again.code == 0 and again.json == {**first, "seconds": 0.0}
    assert "nothing was left to do" in quantize().err
    for other in (
        ["--seed", 1],
        ["--guidance", 2],
        ["--height", 8],
        ["--scheduler", "EulerDiscrete"],
        ["--num-prompts", 1],
    ):
        assert "is not empty" in quantize(*other).sentence
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    path = tmp_path / "out" / "vae" / "config.json"
    path.write_text(path.read_text() + " ")
    assert "is not empty" in quantize().sentence


def test_place_that_cannot_be_replaced_is_told_before_the_work(quantize, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    ran = quantize(out=".")
    assert "is the current folder" in ran.sentence and "calibrating" not in ran.err
    monkeypatch.setattr(type(tmp_path), "is_mount", lambda path: path.name == "volume")
    (tmp_path / "volume").mkdir()
    ran = quantize(out=tmp_path / "volume")
    assert "is a mount point" in ran.sentence and "calibrating" not in ran.err
    assert "/ is no place for an output" in quantize(out="/").sentence
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "prompts.txt", "volume"]


def test_link_is_followed_for_the_artifact_and_the_finished_steps(quantize, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "out")
    assert quantize("--json", out=tmp_path / "link").json["bytes"] > 1000
    assert (tmp_path / "link").is_symlink() and [path.name for path in (tmp_path / "disk").iterdir()] == ["out"]


def test_second_command_on_one_output_is_refused_while_the_first_one_works(quantize, tmp_path, monkeypatch):
    """From its start, before there is anything to see in the output."""
    import halftone.quantization as module

    refused, real = [], module.quantize

    def meanwhile(*arguments, **more):
        script = "from halftone.cli import main; main()"
        words = ["quantize", "nowhere", "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "out"]
        refused.append(subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True))
        return real(*arguments, **more)

    monkeypatch.setattr(module, "quantize", meanwhile)
    assert quantize().code == 0
    assert refused[0].returncode == 2 and "Another command is writing to" in refused[0].stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "prompts.txt"]


def test_one_side_alone_gets_the_models_other_one(quantize, tmp_path):
    assert quantize("--width", 24).code == 0
    record = json.loads((tmp_path / "out" / "halftone.json").read_text())["calibration"]
    assert record["call_kwargs"] == {"height": "16", "width": "24"}


def test_result_for_people_is_on_stderr(quantize):
    ran = quantize()
    assert ran.code == 0 and ran.out == ""
    lines = ran.err.splitlines()
    assert lines[0].startswith("8 passes through the denoiser: about ") and "of memory" in lines[0]
    assert "calibrating: 2 of 2" in lines and lines[-1].endswith("s.")


def test_same_command_gives_the_same_bytes(quantize, tmp_path):
    for name in ("a", "b"):
        assert quantize(out=tmp_path / name).code == 0
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / n).rglob("*.*") if p.is_file()} for n in "ab")
    assert first == second


@pytest.mark.parametrize(
    "content, said",
    [
        (None, "does not exist"),
        (b"", "has no prompts"),
        (b" \n\n\t\n", "has no prompts"),
        (b"fine\n" + b"x" * 10_001, "Prompt 2 has 10001 characters"),
        (b"a\0b\n", "NUL"),
        (b"\xff\xfe\n", "not UTF-8"),
    ],
)
def test_wrong_prompts(content, said, quantize, tmp_path):
    path = tmp_path / "wrong.txt"
    if content is not None:
        path.write_bytes(content)
    assert said in quantize(file=path).sentence
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.unfinished").exists()


def test_a_folder_is_no_prompt_file(quantize, tmp_path):
    assert "cannot be read" in quantize(file=tmp_path).sentence


def test_more_prompts_than_there_are(quantize):
    assert "2 prompts" in quantize("--num-prompts", 3).sentence


def test_odd_prompts_are_prompts(quantize, tmp_path):
    path = tmp_path / "odd.jsonl"
    odd = ["a/b\\c", "\"'`$(rm -rf /)", "😀 日本", "two\nlines", "x" * 10_000]
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in odd), encoding="utf-8")
    assert quantize("--json", file=path, steps=1).code == 0


@pytest.mark.parametrize(
    "text, said",
    [
        ("weights: {num_bit: 8}", ["num_bit", "did you mean 'num_bits'"]),
        ("weights: {num_bits: 0}", ["weights.num_bits is 0", "from 2 to 8"]),
        ("activations: {num_bits: 17}", ["activations.num_bits is 17", "from 2 to 16"]),
        ("relax: {fraction: 1.5, side: end, bits: 10}", ["relax.fraction is 1.5", "from 0 to 1"]),
        ("[1, 2]", ["mapping"]),
        ("a: [", ["not valid yaml"]),
        ("version: 2", ["version is 2"]),
        ("!!python/object/apply:os.system ['touch pwned']", ["not valid yaml"]),
    ],
)
def test_wrong_recipe_file(text, said, quantize, tmp_path):
    sentence = quantize("--recipe", _recipe(tmp_path, text)).sentence
    for part in said:
        assert part in sentence
    assert not (tmp_path / "pwned").exists() and not (tmp_path / "out").exists()


def test_unknown_recipe_suggests_the_near_one(quantize):
    assert "did you mean 'pcr-w8a8'?" in quantize("--recipe", "pcr_w8a8").sentence


def test_recipe_file_that_is_not_there(quantize, tmp_path):
    assert "cannot be read" in quantize("--recipe", tmp_path / "none.yaml").sentence


@pytest.mark.parametrize(
    "more, said",
    [
        (["--scheduler", "DDIMM"], "did you mean 'DDIM'?"),
        (["--dtype", "float31"], "did you mean 'float32'?"),
        (["--device", "gpu"], "'gpu' cannot be used here"),
        (["--device", "meta"], "'meta'"),
        (["--seed", 2**64], "seed"),
        (["--guidance", "nan"], "guidance_scale is nan"),
        (["--guidance", "inf"], "guidance_scale is inf"),
        (["--height", 12, "--width", 12], "divisible by 8"),
    ],
)
def test_wrong_options(more, said, quantize):
    assert said in quantize(*more).sentence


def test_more_steps_than_the_model_was_trained_on(quantize):
    assert "1000" in quantize(steps=1001).sentence


def test_folder_that_is_no_pipeline(quantize, tmp_path):
    (tmp_path / "folder").mkdir()
    assert "has no model_index.json" in quantize(source=tmp_path / "folder").sentence
    (tmp_path / "folder" / "model_index.json").write_text("{")
    assert "cannot be read as JSON" in quantize(source=tmp_path / "folder").sentence
    (tmp_path / "folder" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert "could not be opened" in quantize(source=tmp_path / "folder").sentence
    assert "is a file" in quantize(source=tmp_path / "prompts.txt").sentence
    assert "neither a folder" in quantize(source=tmp_path / "nowhere").sentence
    assert quantize(source="x" * 300).sentence
    assert "no bundled model" in quantize(source="bundled:mini-sdd").sentence


def test_pipeline_without_a_denoiser(quantize, sd_folder, tmp_path):
    folder = shutil.copytree(sd_folder, tmp_path / "sd")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "unet": [None, None]}))
    sentence = quantize(source=folder).sentence
    assert "could not be opened" in sentence and "unet" in sentence


def test_pickled_weights_are_not_opened(quantize, sd_folder, tmp_path):
    folder = shutil.copytree(sd_folder, tmp_path / "sd")
    weights = next((folder / "unet").glob("*.safetensors"))
    torch.save(load_file(weights), folder / "unet" / "diffusion_pytorch_model.bin")
    weights.unlink()
    assert "has its weights as .bin files alone" in quantize(source=folder).sentence


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_name_the_layer(value, quantize, sd_folder, tmp_path):
    folder = shutil.copytree(sd_folder, tmp_path / "sd")
    path = next((folder / "unet").glob("*.safetensors"))
    tensors = load_file(path)
    tensors["mid_block.resnets.0.conv1.weight"][0, 0, 0, 0] = value
    save_file(tensors, path, metadata={"format": "pt"})
    assert "layer mid_block.resnets.0.conv1 has 1 NaN or infinite" in quantize(source=folder).sentence
    assert not (tmp_path / "out").exists()


def test_broken_activations_name_layer_and_step(quantize, tmp_path):
    """Finite weights whose product is not: conv_in overflows, and the first quantized layer behind it sees infinity."""
    pipeline = tiny_sd()
    with torch.no_grad():
        pipeline.unet.conv_in.weight.fill_(3e38)
    sentence = quantize(source=save_folder(pipeline, tmp_path / "sd")).sentence
    assert "NaN or infinit" in sentence and "step 1" in sentence and "down_blocks" in sentence


def test_quantizing_twice_is_refused(quantize, sd_artifact):
    assert "quantized already" in quantize(source=sd_artifact).sentence


def test_output_of_something_else_is_refused_and_kept(quantize, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years")
    assert "is not empty" in quantize().sentence
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    assert "is a file" in quantize(out=tmp_path / "out" / "thesis.txt").sentence
    assert quantize(out=tmp_path / ("x" * 300)).sentence


def test_unfinished_work_of_another_command_is_kept(quantize, tmp_path, monkeypatch):
    import halftone.quantization as module

    with monkeypatch.context() as patch:
        patch.setattr(module.QuantizationResult, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert quantize().code == 130
    before = sorted(path.name for path in (tmp_path / "out.unfinished").iterdir())
    assert "differs in: seed" in quantize("--seed", 1).sentence
    assert sorted(path.name for path in (tmp_path / "out.unfinished").iterdir()) == before


def test_no_space_left(quantize, tmp_path, monkeypatch):
    """Every file is written with an fsync, and its folder with another; the disk fills up at the third file."""
    real, calls = os.fsync, []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) >= 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert "no space is left on the device" in quantize("--json", steps=4).sentence
    assert not (tmp_path / "out").exists()
    # settings, first call, second call
    assert quantize("--json", steps=4).json["resumed_calls"] == 1
