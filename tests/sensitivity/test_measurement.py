"""Both experiments on a tiny model: images by independent code, nothing painted twice, wrong requests refused."""

import dataclasses
import json
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import tiny_sd

import halftone
from halftone.errors import InputError
from halftone.generation import GenerationSettings, paint
from halftone.qdiffbench.fidelity import ssim
from halftone.sensitivity import SensitivityRequest, SensitivityResults, measure_sensitivity
from halftone.sensitivity.forwards import noise_seed

LETTERS = "abcdefgh"
STEPS, SEED = 4, 5


@contextmanager
def _quiet(label):
    yield lambda done, total: None


class _Killed(Exception):
    pass


@pytest.fixture(scope="module")
def prompt_files(tmp_path_factory):
    """Prompts with alternatives to paint, and two to calibrate on."""
    folder = tmp_path_factory.mktemp("prompts")
    rows = [{"prompt": f"a red cube {one}", "alternatives": [f"a blue ball {one}"]} for one in LETTERS]
    (folder / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "calibration.txt").write_text("a red cube\na blue ball\n")
    return folder


@pytest.fixture
def request_of(sd_folder, clip_folder, prompt_files, tmp_path):
    """A request with defaults for what is not given."""

    def make(**changes):
        fields = {
            "source": str(sd_folder),
            "out": tmp_path / "out",
            "cache": tmp_path / "cache",
            "settings": GenerationSettings(num_inference_steps=STEPS, seed=SEED),
            "prompts": str(prompt_files / "set.jsonl"),
            "num_images": 4,
            "intervals": 2,
            "calibration_prompts": str(prompt_files / "calibration.txt"),
            "num_calibration_prompts": 2,
            "features": (f"clip:{clip_folder}",),
            "clip": str(clip_folder),
        }
        return SensitivityRequest(**{**fields, **changes})

    return make


def _pixels(path):
    return np.asarray(Image.open(path))


def _images(folder):
    """PNG files in order; there is one folder of them."""
    (parent,) = {path.parent for path in folder.rglob("*.png")}
    return sorted(parent.glob("*.png"))


def _times(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}


def _manifest(request):
    lines = (_images(request.cache)[0].parent / "manifest.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_results_by_independent_code(request_of):
    request = request_of(noise=0.3, recipe="per-step-w8a6")
    results = measure_sensitivity(request, _quiet)
    assert SensitivityResults.from_json((request.out / "sensitivity.json").read_text()) == results
    assert [one.name for one in results.experiments] == ["perturb", "float"]
    perturb, mixed = results.experiments
    assert perturb.noise == 0.3 and perturb.all_quantized is None and perturb.quantized_model is None
    model = mixed.quantized_model
    assert (model.recipe, model.weight_bits, model.average_activation_bits) == ("per-step-w8a6", 8, 6)
    assert model.calibration_prompts == 2 and mixed.noise is None
    for one in results.experiments:
        found = [(i.interval.first, i.interval.last, i.interval.first_timestep) for i in one.intervals]
        assert found == [(1, 2, 751.0), (3, 4, 251.0)] and [i.interval.last_timestep for i in one.intervals] == [501, 1]

    expected = {
        "perturb-001-002": perturb.intervals[0].result,
        "perturb-003-004": perturb.intervals[1].result,
        "float-001-002": mixed.intervals[0].result,
        "float-003-004": mixed.intervals[1].result,
        "all-quantized": mixed.all_quantized,
    }
    assert {path.name for path in (request.out / "images").iterdir()} == set(expected)
    references = [_pixels(path) for path in _images(request.cache)]
    for name, result in expected.items():
        images = [_pixels(path) for path in _images(request.out / "images" / name)]
        errors = [((a.astype(float) - b) ** 2).mean() for a, b in zip(images, references, strict=True)]
        assert result.psnr.mean == pytest.approx(np.mean([10 * np.log10(255**2 / error) for error in errors]))
        likeness = [ssim(*pair) for pair in zip(images, references, strict=True)]
        assert result.ssim.mean == pytest.approx(np.mean(likeness))
        assert result.n == 4 and result.psnr.ci95[0] <= result.psnr.mean <= result.psnr.ci95[1] < 100
        change = result.clip_score - result.clip_score_reference
        assert result.clip_score_difference.mean == pytest.approx(change, abs=1e-9)
        assert result.attribute_accuracy is not None and result.fid_to_fp > 0
        assert [one.step for one in result.drift] == [0, 1, 2, 3]
    ends = mixed.none_quantized
    assert (ends.psnr.mean, ends.ssim.mean, ends.clip_score_difference.mean) == (100.0, 1.0, 0.0)
    # until the first step of an interval nothing differs, and noise in it does
    assert [one.latent_error.mean > 0 for one in perturb.intervals[1].result.drift] == [False, False, True, True]
    assert [one.latent_error.mean > 0 for one in mixed.intervals[0].result.drift] == [False, False, True, True]
    assert any("4 images are few" in text for text in results.warnings)
    assert len(results.warnings) == len(set(results.warnings))


def test_perturbed_images_by_independent_code(request_of):
    """A hook that counts calls, on a pipeline of its own."""
    request = request_of(experiments=("perturb",), noise=0.2, intervals=4)
    measure_sensitivity(request, _quiet)
    pipeline, calls = tiny_sd(), []

    def hook(module, arguments, output):
        step = len(calls) % STEPS
        calls.append(step)
        if step == 2:
            prediction = output[0]
            generator = torch.Generator().manual_seed(noise_seed(seed, step))
            drawn = torch.randn(prediction.shape[1:], generator=generator)
            return (prediction + 0.2 * prediction.std(correction=0) * drawn, *output[1:])
        return output

    pipeline.unet.register_forward_hook(hook)
    images = _images(request.out / "images" / "perturb-003-003")
    for entry, path in zip(_manifest(request), images, strict=True):
        seed = entry["seed"]
        generator = torch.Generator().manual_seed(seed)
        expected = pipeline(entry["prompt"], num_inference_steps=STEPS, generator=generator).images[0]
        assert int(np.abs(np.asarray(expected).astype(int) - _pixels(path)).max()) <= 1
    assert len(calls) == STEPS * len(images)


def test_floating_point_in_all_steps_is_full_precision_bit_for_bit(request_of):
    request = request_of(experiments=("float",), intervals=1)
    (experiment,) = measure_sensitivity(request, _quiet).experiments
    ours, theirs = _images(request.out / "images" / "float-001-004"), _images(request.cache)
    assert [path.read_bytes() for path in ours] == [path.read_bytes() for path in theirs]
    assert experiment.intervals[0].result.psnr.mean == experiment.none_quantized.psnr.mean == 100.0
    assert experiment.sides == () and experiment.all_quantized.psnr.mean < 100


def test_all_steps_quantized_is_the_artifact_bit_for_bit(request_of):
    request = request_of(experiments=("float",), recipe="minmax-w8a6")
    measure_sensitivity(request, _quiet)
    pipeline = halftone.load(request.out / "model")
    pipeline.set_progress_bar_config(disable=True)
    for entry, path in zip(_manifest(request), _images(request.out / "images" / "all-quantized"), strict=True):
        expected = paint(pipeline, entry["prompt"], entry["seed"], request.settings)
        assert np.array_equal(np.asarray(expected), _pixels(path))


def test_an_image_does_not_depend_on_its_neighbours(request_of, tmp_path):
    """Not on how many are painted, nor on the experiments before it."""
    few = request_of(out=tmp_path / "few", experiments=("perturb",))
    more = request_of(out=tmp_path / "more", num_images=6)
    for request in (few, more):
        measure_sensitivity(request, _quiet)
    for name in ("perturb-001-002", "perturb-003-004"):
        first, second = (_images(one.out / "images" / name) for one in (few, more))
        assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second[:4]]
        assert len({path.read_bytes() for path in second}) == 6


def test_more_images_and_experiments_go_on_where_fewer_ended(request_of):
    measure_sensitivity(request_of(experiments=("perturb",)), _quiet)
    request = request_of(num_images=5)
    before = _times(request.out) | _times(request.cache)
    assert len(before) == 4 * 3
    measure_sensitivity(request, _quiet)
    after = _times(request.out) | _times(request.cache)
    assert before.items() <= after.items() and len(after) == 5 * 6
    again = measure_sensitivity(request, _quiet)
    assert _times(request.out) | _times(request.cache) == after and again.experiments[0].intervals[0].result.n == 5


@pytest.mark.parametrize("label, at", [("calibrating", 2), ("painting variants", 1), ("painting variants", 11)])
def test_killed_run_goes_on_and_ends_as_an_undisturbed_one(label, at, request_of, tmp_path):
    @contextmanager
    def striking(name):
        def advance(done, total):
            if name == label and done == at:
                raise _Killed

        yield advance

    request, whole = request_of(), request_of(out=tmp_path / "whole")
    with pytest.raises(_Killed):
        measure_sensitivity(request, striking)
    before = _times(request.out)
    assert len(before) == (at if label == "painting variants" else 0)
    found, expected = measure_sensitivity(request, _quiet), measure_sensitivity(whole, _quiet)
    assert before.items() <= _times(request.out).items()
    assert found.experiments == expected.experiments
    for path in (whole.out / "images").rglob("*.png"):
        assert path.read_bytes() == (request.out / path.relative_to(whole.out)).read_bytes()
    assert not [*request.out.rglob("*.part")] and not (request.out / "model.unfinished").exists()


def test_a_lost_image_is_painted_again(request_of):
    request = request_of()
    whole, before = measure_sensitivity(request, _quiet), _times(request.out)
    lost = _images(request.out / "images" / "float-003-004")[1]
    content = lost.read_bytes()
    lost.unlink()
    again = measure_sensitivity(request, _quiet)
    changed = {path for path, time in _times(request.out).items() if before[path] != time}
    assert changed == {lost} and lost.read_bytes() == content and again.experiments == whole.experiments


def test_other_noise_and_intervals_have_images_of_their_own(request_of):
    measure_sensitivity(request_of(experiments=("perturb",)), _quiet)
    request = request_of(experiments=("perturb",))
    before = _times(request.out)
    for change in ({"noise": 0.1}, {"intervals": 3}):
        measure_sensitivity(dataclasses.replace(request, **change), _quiet)
    after = _times(request.out)
    assert before.items() <= after.items()
    assert len(after) == 4 * (2 + 2 + 2)  # of three intervals one has steps 3 and 4 as before


@pytest.mark.parametrize("change", [{"recipe": "minmax-w8a8"}, {"num_calibration_prompts": 1}, {"source": "other"}])
def test_a_quantized_model_of_other_settings_is_refused_and_kept(change, request_of, tmp_path):
    request = request_of(experiments=("float",))
    measure_sensitivity(request, _quiet)
    before = (request.out / "model" / "halftone.json").read_bytes()
    if "source" in change:
        pipeline = tiny_sd(seed=1)
        pipeline.save_pretrained(tmp_path / "other", safe_serialization=True)
        change = {"source": str(tmp_path / "other")}
    with pytest.raises(InputError, match="was made with other settings or from another model"):
        measure_sensitivity(dataclasses.replace(request, **change), _quiet)
    assert (request.out / "model" / "halftone.json").read_bytes() == before


def test_a_recipe_that_relaxes_steps_is_told(request_of):
    results = measure_sensitivity(request_of(experiments=("float",), recipe="pcr-w8a8"), _quiet)
    assert any("pcr-w8a8 relaxes some steps by itself" in text for text in results.warnings)
    results = measure_sensitivity(request_of(experiments=("perturb",), recipe="pcr-w8a8"), _quiet)
    assert not any("relaxes" in text for text in results.warnings)


def test_scheduler_and_size_are_those_asked_for(request_of):
    settings = GenerationSettings(num_inference_steps=3, seed=1, height=24, width=16)
    results = measure_sensitivity(request_of(settings=settings, scheduler="DPMSolverMultistep", intervals=3), _quiet)
    assert results.settings.scheduler == "DPMSolverMultistepScheduler"
    assert (results.settings.width, results.settings.height) == (16, 24)
    assert all(len(one.intervals) == 3 for one in results.experiments)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"intervals": 5}, "5 intervals need at least as many steps, and there are 4"),
        ({"intervals": 0}, "intervals is 0"),
        ({"noise": 0.0}, "noise is 0.0"),
        ({"noise": -0.1}, "noise is -0.1"),
        ({"noise": float("nan")}, "noise is nan"),
        ({"noise": float("inf")}, "noise is inf"),
        ({"experiments": ("float", "perturbe")}, "did you mean 'perturb'"),
        ({"experiments": ()}, "No experiment"),
        ({"num_images": 3}, "at least 4"),
        ({"num_images": 99}, "8 prompts, and 99 images"),
        ({"num_calibration_prompts": 3}, "2 prompts, and 3 are asked for"),
        ({"prompts": "nowhere.txt"}, "nowhere.txt does not exist"),
        ({"recipe": "per-step-w8a9"}, "did you mean"),
        ({"source": "torchao:int8wo@bundled:mini-sd"}, "torchao|is quantized"),
        ({"settings": GenerationSettings(4, seed=2**63 - 1)}, "seed"),
    ],
)
def test_wrong_requests_leave_nothing(change, said, request_of):
    request = request_of(**change)
    with pytest.raises(halftone.HalftoneError, match=said):
        measure_sensitivity(request, _quiet)
    assert not request.out.exists() and not request.cache.exists()


def test_only_a_full_precision_model_that_runs_will_do(request_of, sd_artifact, tmp_path):
    with pytest.raises(InputError, match="is quantized; sensitivity starts from the full-precision model"):
        measure_sensitivity(request_of(source=str(sd_artifact)), _quiet)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "manifest.jsonl").write_text("")
    with pytest.raises(InputError, match="is a folder of images"):
        measure_sensitivity(request_of(source=str(tmp_path / "images")), _quiet)


def test_folder_of_something_else_is_kept(request_of):
    request = request_of()
    request.out.mkdir()
    (request.out / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no measurement of sensitivity"):
        measure_sensitivity(request, _quiet)
    assert [path.name for path in request.out.iterdir()] == ["thesis.txt"]


def test_runs_in_one_process(request_of, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="one process"):
        measure_sensitivity(request_of(), _quiet)


def test_nan_in_a_perturbed_step_is_one_sentence(request_of):
    request = request_of(experiments=("perturb",), noise=1e38)
    with pytest.raises(halftone.HalftoneError, match="NaN or infinity"):
        measure_sensitivity(request, _quiet)


def test_a_copy_of_the_model_is_the_same_run(request_of, sd_folder, tmp_path):
    request = request_of()
    measure_sensitivity(request, _quiet)
    before = _times(request.out) | _times(request.cache)
    copy = shutil.copytree(sd_folder, tmp_path / "copy")
    measure_sensitivity(dataclasses.replace(request, source=str(copy)), _quiet)
    assert _times(request.out) | _times(request.cache) == before
