"""Images for prompts: independent of their neighbours, resumable, atomic."""

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import tiny_sd, tiny_sd3, tiny_sdxl

import halftone
from halftone import generation
from halftone.errors import InputError, NonFiniteError, OutputError
from halftone.generation import GenerationSettings, default_guidance, generate, paint
from halftone.kernels import reference, register_kernel, registry

FAST = GenerationSettings(num_inference_steps=2, seed=10)
PROMPTS = ["a red cube", "a/b \"quoted\" 'text'", "😀\u2028line\u0085end\nnew"]


@pytest.fixture(scope="module")
def pipeline():
    return tiny_sd()


def _pixels(path):
    return np.asarray(Image.open(path))


def _entries(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]


class _Interrupt(Exception):
    pass


def _stop_after(images):
    def progress(done, total):
        if done == images:
            raise _Interrupt

    return progress


def test_files_and_manifest(pipeline, tmp_path):
    progress = []
    paths = generate(pipeline, PROMPTS, tmp_path / "out", FAST, progress=lambda *numbers: progress.append(numbers))
    assert [path.name for path in paths] == ["00000.png", "00001.png", "00002.png"]
    assert progress == [(1, 3), (2, 3), (3, 3)]
    assert _entries(tmp_path / "out") == [
        {"index": index, "prompt": prompt, "seed": 10 + index, "file": f"{index:05d}.png"}
        for index, prompt in enumerate(PROMPTS)
    ]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"00000.png", "00001.png", "00002.png", "manifest.jsonl", "generation.json"}


def test_image_is_the_pipelines_own_for_that_seed(pipeline, tmp_path):
    paths = generate(pipeline, PROMPTS, tmp_path, FAST)
    for index, (prompt, path) in enumerate(zip(PROMPTS, paths, strict=True)):
        generator = torch.Generator().manual_seed(10 + index)
        expected = pipeline(prompt, num_inference_steps=2, generator=generator).images[0]
        assert np.array_equal(_pixels(path), np.asarray(expected))


def test_image_does_not_depend_on_its_neighbours(pipeline, tmp_path):
    first = generate(pipeline, ["x", "a red cube", "y"], tmp_path / "a", FAST)
    second = generate(pipeline, ["long " * 50, "a red cube"], tmp_path / "b", FAST)
    alone = paint(pipeline, "a red cube", 11, FAST)
    assert first[1].read_bytes() == second[1].read_bytes() != first[0].read_bytes()
    assert np.array_equal(_pixels(first[1]), np.asarray(alone))


def test_guidance_is_passed_on(pipeline, tmp_path):
    one = paint(pipeline, "a red cube", 0, GenerationSettings(2, guidance_scale=1.0))
    own = paint(pipeline, "a red cube", 0, GenerationSettings(2))
    assert np.array_equal(np.asarray(own), np.asarray(paint(pipeline, "a red cube", 0, GenerationSettings(2, 7.5))))
    assert not np.array_equal(np.asarray(one), np.asarray(own))


@pytest.mark.parametrize("build", [tiny_sd, tiny_sd3])
def test_watcher_sees_every_step_and_changes_nothing(build, tmp_path):
    seen = []
    pipeline = build()
    plain = generate(pipeline, PROMPTS[:2], tmp_path / "plain", FAST)
    watched = generate(pipeline, PROMPTS[:2], tmp_path / "watched", FAST, on_step=lambda *args: seen.append(args))
    assert [(index, step, tuple(latents.shape)) for index, step, latents in seen] == [
        (index, step, (1, 4, 8, 8)) for index in range(2) for step in range(2)
    ]
    assert [path.read_bytes() for path in plain] == [path.read_bytes() for path in watched]


def _painting(monkeypatch):
    painted, real = [], generation.paint
    monkeypatch.setattr(
        generation, "paint", lambda pipeline, prompt, *args: painted.append(prompt) or real(pipeline, prompt, *args)
    )
    return painted


def test_interrupted_run_goes_on_and_ends_in_the_same_bytes(pipeline, tmp_path, monkeypatch):
    whole = generate(pipeline, PROMPTS, tmp_path / "whole", FAST)
    with pytest.raises(_Interrupt):
        generate(pipeline, PROMPTS, tmp_path / "out", FAST, progress=_stop_after(2))
    painted = _painting(monkeypatch)
    paths = generate(pipeline, PROMPTS, tmp_path / "out", FAST)
    assert painted == PROMPTS[2:]
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in whole]
    assert (tmp_path / "out" / "manifest.jsonl").read_bytes() == (tmp_path / "whole" / "manifest.jsonl").read_bytes()


def test_missing_image_is_painted_again(pipeline, tmp_path, monkeypatch):
    paths = generate(pipeline, PROMPTS, tmp_path, FAST)
    before = paths[1].read_bytes()
    paths[1].unlink()
    painted = _painting(monkeypatch)
    generate(pipeline, PROMPTS, tmp_path, FAST)
    assert painted == [PROMPTS[1]] and paths[1].read_bytes() == before


def test_fewer_or_more_of_the_same_prompts_are_the_same_run(pipeline, tmp_path, monkeypatch):
    generate(pipeline, PROMPTS[:2], tmp_path, FAST)
    painted = _painting(monkeypatch)
    generate(pipeline, PROMPTS[:1], tmp_path, FAST)
    assert painted == [] and len(_entries(tmp_path)) == 2
    generate(pipeline, PROMPTS, tmp_path, FAST)
    assert painted == PROMPTS[2:] and len(_entries(tmp_path)) == 3


@pytest.mark.parametrize("rest", ["generation.json.part", "manifest.jsonl.part", "00000.png.part"])
@pytest.mark.parametrize("after", [0, 1])
def test_half_written_files_of_a_killed_run_do_no_harm(rest, after, pipeline, tmp_path):
    whole = generate(pipeline, PROMPTS[:2], tmp_path / "whole", FAST)
    out = tmp_path / "out"
    if after:
        with pytest.raises(_Interrupt):
            generate(pipeline, PROMPTS[:2], out, FAST, progress=_stop_after(after))
    elif rest != "generation.json.part":
        pytest.skip("nothing but the settings is written before the first image")
    out.mkdir(exist_ok=True)
    (out / rest).write_text('{"inde')
    paths = generate(pipeline, PROMPTS[:2], out, FAST)
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in whole]


def test_kill_between_image_and_manifest_paints_the_image_again(pipeline, tmp_path, monkeypatch):
    def interrupt(*_):
        raise _Interrupt

    monkeypatch.setattr(generation, "_write_manifest", interrupt)
    with pytest.raises(_Interrupt):
        generate(pipeline, PROMPTS[:1], tmp_path / "out", FAST)
    monkeypatch.undo()
    whole = generate(pipeline, PROMPTS[:1], tmp_path / "whole", FAST)
    assert generate(pipeline, PROMPTS[:1], tmp_path / "out", FAST)[0].read_bytes() == whole[0].read_bytes()


def _other_spacing():
    pipeline = tiny_sd()
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    return pipeline


@pytest.mark.parametrize(
    "change, message",
    [
        ({"prompts": ["another", *PROMPTS[1:]]}, "another prompt at index 0"),
        ({"settings": GenerationSettings(3, seed=10)}, "num_inference_steps"),
        ({"settings": GenerationSettings(2, seed=11)}, "seed"),
        ({"settings": GenerationSettings(2, 1.0, 10)}, "guidance_scale"),
        ({"source": "another"}, "differs in: source"),
        ({"source_sha256": "another"}, "differs in: source_sha256"),
        ({"pipeline": _other_spacing()}, "differs in: scheduler_config"),
        ({"pipeline": tiny_sd(scheduler="pndm")}, "scheduler"),
    ],
)
def test_other_run_in_the_folder_is_refused_and_nothing_changes(change, message, pipeline, tmp_path):
    generate(pipeline, PROMPTS, tmp_path, FAST)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    arguments = {"pipeline": pipeline, "prompts": PROMPTS, "settings": FAST, **change}
    with pytest.raises(InputError, match=message):
        generate(out=tmp_path, **arguments)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_foreign_folder_and_file_are_refused(pipeline, tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(InputError, match="is not empty"):
        generate(pipeline, PROMPTS, tmp_path, FAST)
    with pytest.raises(InputError, match="is a file"):
        generate(pipeline, PROMPTS, tmp_path / "thesis.txt", FAST)
    with pytest.raises(OutputError, match="could not be written"):
        generate(pipeline, PROMPTS, tmp_path / "thesis.txt" / "out", FAST)


@pytest.mark.parametrize("name", ["manifest.jsonl", "generation.json"])
@pytest.mark.parametrize("text", ['{"index": 0, "pro', "[]", "5", "", "\xff", '{"index": "0"}'])
def test_damaged_bookkeeping_is_one_sentence(name, text, pipeline, tmp_path):
    generate(pipeline, PROMPTS[:1], tmp_path, FAST)
    (tmp_path / name).write_bytes(text.encode("latin1"))
    with pytest.raises(InputError, match=r"is damaged|holds images of another run") as caught:
        generate(pipeline, PROMPTS[:1], tmp_path, FAST)
    assert name in str(caught.value) or "another run" in str(caught.value)


def test_full_disk_is_one_sentence_and_keeps_the_images_before(pipeline, tmp_path, monkeypatch):
    real = generation._save_image

    def full(image, path):
        if path.name == "00001.png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(image, path)

    monkeypatch.setattr(generation, "_save_image", full)
    with pytest.raises(OutputError, match=r"00001\.png could not be written: no space is left on the device\.$"):
        generate(pipeline, PROMPTS, tmp_path, FAST)
    assert [entry["index"] for entry in _entries(tmp_path)] == [0]
    monkeypatch.undo()
    painted = _painting(monkeypatch)
    generate(pipeline, PROMPTS, tmp_path, FAST)
    assert painted == PROMPTS[1:]


def test_wrong_arguments_leave_no_folder(pipeline, tmp_path):
    for prompts, steps in [([], 2), (["a\0b"], 2), (["x" * 10_001], 2), (["x"], 0)]:
        with pytest.raises(InputError):
            generate(pipeline, prompts, tmp_path / "out", GenerationSettings(steps))
    assert not (tmp_path / "out").exists()


def test_quantized_pipeline_paints_the_same_in_any_company(sd_artifact, tmp_path):
    pipeline = halftone.load(sd_artifact)
    first = generate(pipeline, ["x", "a red cube"], tmp_path / "a", FAST)
    second = generate(pipeline, ["blue", "a red cube", "z"], tmp_path / "b", FAST)
    assert first[1].read_bytes() == second[1].read_bytes()


def test_source_is_known_by_its_content_however_it_is_spelt(pipeline, tmp_path, monkeypatch):
    generate(pipeline, PROMPTS[:1], tmp_path, FAST, source="./model", source_sha256="abc")
    assert json.loads((tmp_path / "generation.json").read_text())["source"] == "./model"
    painted = _painting(monkeypatch)
    generate(pipeline, PROMPTS[:1], tmp_path, FAST, source="/home/me/model", source_sha256="abc")
    assert painted == []
    for digest in ("def", ""):
        with pytest.raises(InputError, match=r"differs in: .*source_sha256"):
            generate(pipeline, PROMPTS[:1], tmp_path, FAST, source="./model", source_sha256=digest)
    with pytest.raises(InputError, match="differs in: dtype"):
        generate(tiny_sd().to(torch.bfloat16), PROMPTS[:1], tmp_path, FAST, source="", source_sha256="abc")


@pytest.fixture
def another_kernel():
    """One that is taken before all others."""

    @register_kernel("linear", "another", ("cpu",), priority=1000)
    def prepare(weights):
        return reference.prepare_linear(weights)

    yield
    registry._KERNELS[:] = [kernel for kernel in registry._KERNELS if kernel.name != "another"]
    registry._choices.clear()


def test_images_of_other_kernels_are_refused(pipeline, sd_artifact, tmp_path, monkeypatch, another_kernel):
    generate(pipeline, PROMPTS[:1], tmp_path / "float", FAST)
    generate(halftone.load(sd_artifact), PROMPTS[:1], tmp_path / "out", FAST)
    kernels = json.loads((tmp_path / "out" / "generation.json").read_text())["kernels"]
    assert kernels["linear, 8 bits"] == kernels["linear, 10 bits"] == "another" and len(kernels) == 4
    monkeypatch.setenv("HALFTONE_KERNELS", "reference")
    with pytest.raises(InputError, match="differs in: kernels"):
        generate(halftone.load(sd_artifact), PROMPTS[:1], tmp_path / "out", FAST)
    generate(pipeline, PROMPTS[:1], tmp_path / "float", FAST)  # no kernel of ours runs in full precision


@pytest.mark.parametrize("build, expected", [(tiny_sd, 7.5), (tiny_sdxl, 5.0), (tiny_sd3, 7.0)])
def test_default_guidance_is_the_pipelines_own_and_recorded(build, expected, tmp_path):
    pipeline = build()
    assert default_guidance(pipeline) == expected
    generate(pipeline, PROMPTS[:1], tmp_path, FAST)
    assert json.loads((tmp_path / "generation.json").read_text())["guidance_scale"] == expected
    generate(pipeline, PROMPTS[:1], tmp_path, GenerationSettings(2, expected, seed=10))  # the same run


def test_pipeline_without_guidance_has_no_default():
    class Unguided:
        def __call__(self, prompt, guidance_scale=None):
            pass

    class Unknown:
        def __call__(self, prompt):
            pass

    assert default_guidance(Unguided()) is None and default_guidance(Unknown()) is None


@pytest.mark.parametrize("build", [tiny_sd, tiny_sdxl, tiny_sd3])
@pytest.mark.parametrize("side, size", [("height", (16, 24)), ("width", (24, 16))])
def test_one_side_alone_gets_the_pipelines_other_one(build, side, size, tmp_path):
    paths = generate(build(), PROMPTS[:1], tmp_path, GenerationSettings(1, **{side: 24}))
    assert Image.open(paths[0]).size == size
    settings = json.loads((tmp_path / "generation.json").read_text())
    assert (settings["width"], settings["height"]) == size


def test_second_command_in_one_folder_is_refused_while_the_first_one_paints(pipeline, tmp_path):
    refused = []

    def meanwhile(*_):
        with ThreadPoolExecutor(1) as other:
            refused.append(other.submit(generate, pipeline, PROMPTS, tmp_path / "out", FAST).exception())

    generate(pipeline, PROMPTS[:2], tmp_path / "out", FAST, progress=meanwhile)
    assert [type(error) for error in refused] == [InputError] * 2 and "Another command" in str(refused[0])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"00000.png", "00001.png", "manifest.jsonl", "generation.json"}


def test_what_the_safety_checker_made_black_is_marked_and_told(tmp_path):
    pipeline, verdicts, warnings = tiny_sd(), iter([False, True]), []
    pipeline.run_safety_checker = lambda image, *_: (image, [next(verdicts)])
    generate(pipeline, PROMPTS[:2], tmp_path, FAST, warn=warnings.append)
    assert ["flagged" in entry for entry in _entries(tmp_path)] == [False, True]
    assert _entries(tmp_path)[1]["flagged"] is True
    assert len(warnings) == 1 and "made 1 of 2 images black (00001.png)" in warnings[0]
    generate(pipeline, PROMPTS[:2], tmp_path, FAST, warn=warnings.append)  # nothing is painted, and it is told again
    assert len(warnings) == 2
    with pytest.warns(UserWarning, match="safety checker"):
        generate(pipeline, PROMPTS[:2], tmp_path, FAST)


def test_an_image_that_the_vae_decodes_to_nan_is_no_black_image(tmp_path):
    """As those of SDXL in float16: the latents are finite."""
    pipeline = tiny_sd()
    with torch.no_grad():
        pipeline.vae.decoder.conv_in.weight.fill_(1e38)
    with pytest.raises(NonFiniteError, match=r"The decoded image of the prompt 'a' holds NaN .*torch\.float32"):
        paint(pipeline, "a", 0, GenerationSettings(1))
    healthy = tiny_sd()
    paint(healthy, "a", 0, GenerationSettings(1))
    assert not healthy.vae.decoder._forward_hooks, "nothing stays behind"
