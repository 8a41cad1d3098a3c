"""A calibration that was interrupted ends in the bytes of an undisturbed one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pipelines import tiny_sd, tiny_sdxl

import halftone
from halftone.artifact.config import quantized_digest
from halftone.calibration.record import fingerprint
from halftone.errors import CalibrationError, InputError, OutputError
from halftone.quantization import check_target

PROMPTS = ["a red cube", "a blue ball"]
PNDM_CALLS = 5


def _quantize(folder=None, pipeline=None, recipe="pcr-w8a8", prompts=PROMPTS, **arguments):
    pipeline = pipeline or tiny_sd(scheduler="pndm")
    return halftone.quantize(pipeline, recipe, prompts, num_inference_steps=4, checkpoint_folder=folder, **arguments)


class _Interrupt(Exception):
    pass


def _stop_after(calls):
    def progress(done, total):
        if done == calls:
            raise _Interrupt

    return progress


def _interrupted(folder, calls, **arguments):
    with pytest.raises(_Interrupt):
        _quantize(folder, progress=_stop_after(calls), **arguments)


def _count_calls(pipeline):
    calls = []
    pipeline.unet.conv_in.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def test_killed_runs_end_in_the_same_bytes(tmp_path):
    """kill -9 before every single change of the file system, and at random moments; see crashes.py."""
    script = Path(__file__).with_name("crashes.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, tmp_path], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["writes"] >= 20 and report["moments"] == 12


@pytest.mark.parametrize("recipe", ["pcr-w8a8", "per-step-w8a8", "minmax-w8a8"])
@pytest.mark.parametrize("calls", [1, 2, PNDM_CALLS])
def test_finished_calls_are_replayed_and_the_rest_is_computed(calls, recipe, tmp_path):
    whole = _quantize(recipe=recipe)
    _interrupted(tmp_path / "steps", calls, recipe=recipe)
    pipeline = tiny_sd(scheduler="pndm")
    passes = _count_calls(pipeline)
    resumed = _quantize(tmp_path / "steps", pipeline, recipe)
    assert resumed.calibration.resumed_calls == calls
    assert len(passes) == (PNDM_CALLS - calls) * (2 if recipe == "pcr-w8a8" else 1)
    assert resumed.calibration.ranges == whole.calibration.ranges
    assert resumed.config == whole.config and resumed.config.digest == quantized_digest(whole.pipeline.unet)


@pytest.mark.parametrize("observer", ["percentile", "mse"])
def test_histogram_observers_resume_too(observer, tmp_path):
    recipe = halftone.Recipe.from_dict({"activations": {"observer": {"name": observer}}})
    _interrupted(tmp_path / "steps", 2, recipe=recipe)
    resumed = _quantize(tmp_path / "steps", recipe=recipe)
    assert resumed.config == _quantize(recipe=recipe).config and resumed.calibration.resumed_calls == 2


def test_saving_removes_the_finished_steps(tmp_path):
    result = _quantize(tmp_path / "steps")
    assert len(list((tmp_path / "steps").glob("call-*.safetensors"))) == PNDM_CALLS
    result.save(tmp_path / "out")
    assert not (tmp_path / "steps").exists()


def test_killed_between_saving_and_removing_the_steps(tmp_path):
    _quantize(tmp_path / "steps")
    _quantize().save(tmp_path / "out")
    with pytest.raises(InputError, match="is not empty"):
        check_target(tmp_path / "out")
    check_target(tmp_path / "out", tmp_path / "steps")
    _quantize(tmp_path / "steps").save(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_unfinished_work_excuses_nothing_else_in_the_output(tmp_path):
    """Refused before the calibration goes on, not after it: something else, and the artifact of another command."""
    _interrupted(tmp_path / "steps", 1)
    (tmp_path / "out").mkdir()
    check_target(tmp_path / "out", tmp_path / "steps")
    (tmp_path / "out" / "thesis.txt").touch()
    changes = {"seed": {"seed": 1}, "recipe": {"recipe": "pcr-no-relax-w8a8"}}
    for name, change in changes.items():
        _quantize(**change).save(tmp_path / name)
    for name in ("out", *changes):
        with pytest.raises(InputError, match="is not empty"):
            check_target(tmp_path / name, tmp_path / "steps")


@pytest.mark.parametrize(
    "differs, change",
    [
        ("seed", {"seed": 1}),
        ("prompts_sha256", {"prompts": ["a red cube", "another"]}),
        ("recipe", {"recipe": "pcr-no-relax-w8a8"}),
        ("batch_size", {"batch_size": 1}),
        ("guidance_scale", {"guidance_scale": 2.0}),
        ("call_kwargs", {"height": 8}),
        ("weights_sha256", {"pipeline": tiny_sd(seed=1, scheduler="pndm")}),
        ("scheduler", {"pipeline": tiny_sd()}),
        ("pipeline", {"pipeline": tiny_sdxl()}),
    ],
)
def test_another_command_in_the_folder_is_refused(differs, change, tmp_path):
    _interrupted(tmp_path / "steps", 1)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"unfinished work of another command") as caught:
        _quantize(tmp_path / "steps", **change)
    assert differs in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_other_text_encoder_is_noticed(tmp_path):
    _interrupted(tmp_path / "steps", 1)
    pipeline = tiny_sd(scheduler="pndm")
    pipeline.text_encoder = tiny_sd(seed=1).text_encoder
    with pytest.raises(CalibrationError, match="made from other inputs"):
        _quantize(tmp_path / "steps", pipeline)


def test_steps_of_another_recipe_are_not_taken_when_their_settings_are_lost(tmp_path):
    """The first call's input is the same for every recipe, so the input alone must not be trusted."""
    _interrupted(tmp_path / "a", 1, recipe="pcr-w8a6")
    _interrupted(tmp_path / "b", 1)
    (tmp_path / "a" / "call-00000.safetensors").replace(tmp_path / "b" / "call-00000.safetensors")
    with pytest.raises(CalibrationError, match="made from other inputs"):
        _quantize(tmp_path / "b")
    (tmp_path / "b" / "calibration.json").unlink()
    with pytest.raises(InputError, match="is not empty"):
        _quantize(tmp_path / "b")


def _flipped(position):
    def flip(data):
        data = bytearray(data)
        data[position] ^= 1
        return bytes(data)

    return flip


def _renamed(data):
    """A tensor's name has another letter, and the file is still well-formed."""
    assert data.count(b'"output"') == 1
    return data.replace(b'"output"', b'"outpuu"')


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-10],
        lambda data: b"",
        lambda data: b"\xff" * len(data),
        *map(_flipped, (-1, -300, -2000)),
        _renamed,
    ],
)
def test_damaged_step_is_computed_anew(damage, tmp_path):
    _interrupted(tmp_path / "steps", 2)
    path = tmp_path / "steps" / "call-00001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    resumed = _quantize(tmp_path / "steps")
    assert resumed.config == _quantize().config and resumed.calibration.resumed_calls == 1
    assert path.read_bytes() == whole


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff"])
def test_damaged_settings_are_one_sentence(text, tmp_path):
    _interrupted(tmp_path / "steps", 1)
    (tmp_path / "steps" / "calibration.json").write_bytes(text.encode("latin1"))
    with pytest.raises(InputError, match=r"calibration\.json is damaged"):
        _quantize(tmp_path / "steps")


def test_folder_of_something_else_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="is not empty"):
        _quantize(tmp_path)
    (tmp_path / "steps").mkdir()
    result = _quantize(tmp_path / "steps")
    (tmp_path / "steps" / "notes.txt").write_text("mine")
    result.save(tmp_path / "out")
    assert [path.name for path in (tmp_path / "steps").iterdir()] == ["notes.txt"]


def test_full_disk_is_one_sentence_and_loses_no_step(tmp_path, monkeypatch):
    import errno

    from halftone.calibration import checkpoint

    write, written = checkpoint.write_atomically, []

    def full(path, data):
        if len(written) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        write(path, data)

    monkeypatch.setattr(checkpoint, "write_atomically", full)
    with pytest.raises(OutputError, match=r"call-00002.* no space is left on the device\.$"):
        _quantize(tmp_path / "steps")
    monkeypatch.undo()
    assert _quantize(tmp_path / "steps").calibration.resumed_calls == 2


def test_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="checkpoint folder"):
        _quantize(tmp_path / "file" / "steps")


def test_fingerprint_ignores_the_order_of_diffusers_own_notes():
    """`_use_default_values` is a list made of a set of strings: its order differs from process to process."""
    from halftone.calibration import CalibrationSettings
    from halftone.denoiser import find_denoiser

    settings, recipe, prints = CalibrationSettings(("x",)), halftone.Recipe(), []
    for notes in (["a", "b"], ["b", "a"]):
        pipeline = tiny_sd()
        pipeline.scheduler.register_to_config(_use_default_values=notes)
        prints.append(fingerprint(pipeline, find_denoiser(pipeline), recipe, settings))
    assert prints[0] == prints[1] and "beta_start" in prints[0]["scheduler_config"]
