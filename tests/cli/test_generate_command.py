"""`halftone generate`: names by index, a manifest, and every kind of wrong input."""

import errno
import hashlib
import json
import os
import shutil

import pytest
import torch
from PIL import Image
from pipelines import save_folder, tiny_sd, tiny_sd3

from halftone.native import attention as native


@pytest.fixture
def generate(halftone, sd_folder, tmp_path):
    def run(*more, source=sd_folder, out=tmp_path / "out", steps=2):
        return halftone("generate", source, "--steps", steps, "--out", out, *more)

    return run


def _manifest(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").split("\n") if line]


def _digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.png")}


def test_files_are_named_by_index_whatever_the_prompt(generate, tmp_path):
    odd = ["a/b", "quotes \" and '", "😀", "two\nlines", "..", ""]
    ran = generate("--json", "--seed", 7, *(word for text in odd for word in ("--prompt", text)))
    assert ran.code == 0 and ran.err.splitlines()[-1] == f"painting: {len(odd)} of {len(odd)}"
    assert ran.json == {"out": str(tmp_path / "out"), "images": len(odd)}
    expected = [{"index": i, "prompt": odd[i], "seed": 7 + i, "file": f"{i:05d}.png"} for i in range(len(odd))]
    assert _manifest(tmp_path / "out") == expected
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == [*(f"{i:05d}.png" for i in range(len(odd))), "generation.json", "manifest.jsonl"]
    with Image.open(tmp_path / "out" / "00000.png") as image:
        assert image.size == (16, 16)


def test_an_image_depends_on_its_prompt_and_seed_alone(generate, prompts, tmp_path):
    assert generate("--prompts", prompts).code == 0
    assert generate("--prompt", "a blue ball", "--seed", 1, out=tmp_path / "alone").code == 0
    assert _digests(tmp_path / "alone")["00000.png"] == _digests(tmp_path / "out")["00001.png"]
    assert generate("--prompt", "a blue ball", "--seed", 2, out=tmp_path / "other").code == 0
    assert _digests(tmp_path / "other") != _digests(tmp_path / "alone")


def test_artifacts_paint_too_and_more_prompts_go_on(generate, prompts, sd_artifact, tmp_path):
    assert generate("--prompts", prompts, "--num-prompts", 1, source=sd_artifact).code == 0
    first = (tmp_path / "out" / "00000.png").stat().st_mtime_ns
    ran = generate("--prompts", prompts, source=sd_artifact)
    assert ran.code == 0 and ran.out == "" and "2 images" in ran.err
    assert (tmp_path / "out" / "00000.png").stat().st_mtime_ns == first


def test_artifact_is_run_in_the_dtype_of_its_calibration(halftone, generate, prompts, sd_folder, tmp_path):
    words = ["--prompts", prompts, "--steps", 1, "--dtype", "bfloat16"]
    assert halftone("quantize", sd_folder, *words, "--out", tmp_path / "half").code == 0
    assert generate("--prompt", "x", source=tmp_path / "half").code == 0
    settings = json.loads((tmp_path / "out" / "generation.json").read_text())
    assert (settings["dtype"], settings["device"]) == ("bfloat16", "cpu")
    assert generate("--prompt", "x", "--dtype", "bfloat16", source=tmp_path / "half").code == 0


@pytest.mark.parametrize(
    "more, said",
    [
        ([], "either --prompts FILE or --prompt TEXT"),
        (["--prompts", "none.txt"], "does not exist"),
        (["--prompt", "x" * 10_001], "10001 characters"),
        (["--prompt", "a\0b"], "NUL"),
        (["--prompt", "\udcff"], "Unicode"),
        (["--prompts", "bundled:scene"], "did you mean 'scenes'"),
        (["--prompt", "x", "--height", 12, "--width", 12], "divisible by 8"),
        (["--prompt", "x", "--seed", 2**64], "seed"),
        (["--prompt", "x", "--guidance", "nan"], "guidance_scale is nan"),
        (["--prompt", "x", "--device", "meta"], "'meta'"),
        (["--prompt", "x", "--device", "mps"], "does not run on 'mps': it has no float64"),
        (["--prompt", "x", "--scheduler", "Eulr"], "did you mean"),
        (["--prompt", "x", "--num-prompts", 2], "asks for 2 prompts, and --prompt is given 1 times"),
    ],
)
def test_wrong_input(more, said, generate, tmp_path):
    assert said in generate(*more).sentence
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.png"))


def test_both_kinds_of_prompts_are_refused(generate, prompts):
    assert "either" in generate("--prompts", prompts, "--prompt", "x").sentence


def test_more_steps_than_the_model_was_trained_on(generate):
    assert "1000" in generate("--prompt", "x", steps=1001).sentence


def test_source_that_is_no_pipeline(generate, tmp_path):
    assert "no model_index.json" in generate("--prompt", "x", source=tmp_path).sentence
    assert generate("--prompt", "x", source="x" * 300).sentence


def test_nan_is_told_instead_of_painted_black(generate, tmp_path):
    pipeline = tiny_sd()
    with torch.no_grad():
        pipeline.unet.conv_out.bias[0] = float("nan")
    sentence = generate("--prompt", "a red cube", source=save_folder(pipeline, tmp_path / "sd")).sentence
    assert "'a red cube'" in sentence and "NaN or infinity after step 1" in sentence
    assert not list((tmp_path / "out").glob("*.png"))


def test_folder_of_something_else_is_kept(generate, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years")
    assert "is not empty" in generate("--prompt", "x").sentence
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    "more, said",
    [
        (["--seed", 1], "differs in: seed"),
        (["--guidance", 2], "guidance_scale"),
        (["--scheduler", "PNDM"], "scheduler"),
        (["--dtype", "bfloat16"], "differs in: dtype"),
    ],
)
def test_images_of_another_run_are_kept(more, said, generate, tmp_path):
    assert generate("--prompt", "x").code == 0
    before = _digests(tmp_path / "out")
    assert said in generate("--prompt", "x", *more).sentence
    assert "another prompt" in generate("--prompt", "y").sentence
    assert _digests(tmp_path / "out") == before


def test_full_disk_loses_no_image(generate, prompts, tmp_path, monkeypatch):
    real, calls = os.fsync, []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == 7:  # settings, first image, manifest, each with its folder; second image
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        sentence = generate("--prompts", prompts).sentence
    assert "00001.png" in sentence and "no space is left on the device" in sentence
    assert [entry["index"] for entry in _manifest(tmp_path / "out")] == [0]
    assert generate("--prompts", prompts).code == 0
    assert sorted(_digests(tmp_path / "out")) == ["00000.png", "00001.png"]


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: _flipped(data)])
def test_damaged_artifact_paints_nothing(damage, generate, sd_artifact, tmp_path):
    folder = shutil.copytree(sd_artifact, tmp_path / "artifact")
    path = next((folder / "unet").glob("*.safetensors"))
    path.write_bytes(damage(path.read_bytes()))
    assert generate("--prompt", "x", source=folder).sentence
    assert not list(tmp_path.rglob("*.png"))


def _flipped(data):
    """One bit of the last tensor is the other way round."""
    return data[:-1] + bytes([data[-1] ^ 1])


def test_another_model_at_the_same_path_is_another_run(generate, sd_folder, sd_artifact, tmp_path):
    source = shutil.copytree(sd_folder, tmp_path / "model")
    assert generate("--prompt", "x", source=source).code == 0
    assert generate("--prompt", "x", source=source).code == 0
    before = _digests(tmp_path / "out")
    for other in (save_folder(tiny_sd(seed=1), tmp_path / "other"), sd_artifact):
        shutil.rmtree(source)
        shutil.copytree(other, source)
        sentence = generate("--prompt", "x", source=source).sentence
        assert "differs in: " in sentence and "source_sha256" in sentence
    assert _digests(tmp_path / "out") == before


def test_a_path_may_be_spelt_otherwise(generate, sd_folder, tmp_path):
    source = shutil.copytree(sd_folder, tmp_path / "model")
    assert generate("--prompt", "x", source=source).code == 0
    assert generate("--prompt", "x", source="./model/").code == 0
    source.rename(tmp_path / "moved")
    assert generate("--prompt", "x", source="moved").code == 0


def test_output_within_the_source_goes_on(generate, sd_folder, tmp_path):
    source = shutil.copytree(sd_folder, tmp_path / "model")
    assert generate("--prompt", "x", source=source, out=source / "images").code == 0
    before = _digests(source / "images")
    ran = generate("--prompt", "x", "--prompt", "y", source=source, out=source / "images")
    assert ran.code == 0 and _digests(source / "images").items() > before.items()


def test_attention_is_asked_for_by_name(generate, sd_artifact, tmp_path, monkeypatch):
    assert generate("--prompt", "a", "--attention", "float", source=sd_artifact).code == 0
    assert json.loads((tmp_path / "out" / "generation.json").read_text())["attention"] == "torch"
    assert generate("--prompt", "a", source=sd_artifact, out=tmp_path / "auto").code == 0
    assert _digests(tmp_path / "auto") == _digests(tmp_path / "out"), "in float32 nothing is rounded by itself"
    assert generate("--prompt", "a", source=sd_artifact).code == 0, "so that both are the same run"
    ran = generate("--prompt", "a", "--attention", "int9", out=tmp_path / "new")
    assert ran.code == 2 and "did you mean 'int8'" in ran.err
    monkeypatch.setenv("HALFTONE_NATIVE", "0")
    ran = generate("--prompt", "a", "--attention", "int8", out=tmp_path / "new")
    assert ran.code == 2 and "HALFTONE_NATIVE=0" in ran.err


@pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
def test_what_really_runs_is_recorded_and_what_cannot_is_refused(generate, sd_folder, sd_artifact, tmp_path):
    assert generate("--prompt", "a", "--attention", "int8", source=sd_artifact).code == 0
    assert json.loads((tmp_path / "out" / "generation.json").read_text())["attention"] == "native int8"
    assert "differs in: attention" in generate("--prompt", "a", source=sd_artifact).sentence
    words = ["--prompt", "a", "--attention", "int8"]
    refused = generate(*words, "--dtype", "float16", source=sd_artifact, out=tmp_path / "half")
    assert "does not take torch.float16" in refused.sentence
    assert not (tmp_path / "half").exists()
    sd3 = save_folder(tiny_sd3(), tmp_path / "sd3")
    assert "keep their own processor" in generate(*words, source=sd3, out=tmp_path / "sd3-out").sentence


def test_what_keeps_its_own_attention_is_told(generate, tmp_path, monkeypatch):
    monkeypatch.setattr("halftone.attention.use_attention", lambda module, attention: {"mid": "it adds its input"})
    ran = generate("--prompt", "a", "--attention", "int8")
    assert ran.code == 0 and "Note: Attention runs in int8 but for 1 modules, the first of them mid" in ran.err
