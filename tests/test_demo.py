"""The demonstration on a tiny model: it leaves a page, goes on where it was, and keeps what is not its own."""

import json
import shutil
from contextlib import contextmanager
from dataclasses import replace

import pytest
import yaml
from pipelines import save_folder, tiny_sd

import halftone
from halftone import demo
from halftone.demo import DemoSettings, activation_ranges, quantization_facts, run_demo
from halftone.errors import InputError

SMALL = DemoSettings(calibration_prompts=2, images=4, noise_images=4, steps=5, batch_size=2)


@contextmanager
def _quiet(label):
    yield lambda done, total: None


@pytest.fixture
def run(sd_folder, clip_folder, tmp_path):
    def run_it(settings=SMALL, out=tmp_path / "out", announce=None):
        return run_demo(out, settings, _quiet, announce, source=str(sd_folder), clip=str(clip_folder))

    return run_it


def _times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix in (".png", ".safetensors")}


def test_leaves_model_images_results_and_page(run, tmp_path):
    said = []
    finished = run(announce=said.append)
    assert finished.page == tmp_path / "out" / "report.html"
    page = finished.page.read_text(encoding="utf-8")
    assert "pcr-w8a8" in page
    results = finished.outcome.results
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(results.to_json())
    candidate = results.candidates[0]
    assert candidate.name == "pcr-w8a8" and candidate.avg_activation_bits == (4 * 8 + 10) / 5
    assert candidate.sets["in-domain"].n == 4 and 10 < candidate.sets["in-domain"].psnr.mean < 100
    assert [one.kind for one in results.noise_floor] == ["dtype"]
    assert len(said) == 1 and "passes through the denoiser" in said[0]
    assert halftone.load(tmp_path / "out" / "model").unet is not None
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "bench.json", "images", "model", "report.html", "results.json"
    }  # fmt: skip

    before = _times(tmp_path / "out")
    again = run()
    assert _times(tmp_path / "out") == before, "nothing is quantized or painted again"
    assert again.outcome.results.candidates[0].sets == candidate.sets


def test_goes_on_after_an_interruption_of_the_painting(run, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo, "bench", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run()
    before = _times(tmp_path / "out" / "model")
    assert before and run().page.is_file() and _times(tmp_path / "out" / "model") == before


def test_other_settings_in_the_same_folder_are_refused(run, tmp_path):
    run()
    before = _times(tmp_path / "out")
    others = ({"steps": 4}, {"calibration_prompts": 3}, {"recipe": "pcr-no-relax-w8a8"}, {"seed": 1}, {"guidance": 2.0})
    for change in others:
        with pytest.raises(InputError, match="made with other settings"):
            run(replace(SMALL, **change))
    assert _times(tmp_path / "out") == before


def test_folder_of_something_else_is_kept(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no benchmark"):
        run()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]


def test_a_recipe_file_will_do_and_is_recognised_again(run, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"name": "own/a=b", "activations": {"num_bits": 7}}))
    finished = run(replace(SMALL, recipe=str(path)))
    assert finished.outcome.results.candidates[0].name == "own-a-b"
    assert finished.outcome.results.candidates[0].avg_activation_bits == 7
    before = _times(tmp_path / "out")
    run(replace(SMALL, recipe=str(path)))
    assert _times(tmp_path / "out") == before
    path.write_text(yaml.safe_dump({"name": "own/a=b", "activations": {"num_bits": 6}}))
    with pytest.raises(InputError, match="made with other settings"):
        run(replace(SMALL, recipe=str(path)))


def test_runs_in_one_process(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="one process"):
        run()


def test_what_the_page_says_of_the_artifact(sd_artifact):
    """Ranges from the tables: a row's smallest and largest value are those of the codes 0 and 2^bits - 1."""
    from halftone.artifact.inspection import inspect_artifact
    from halftone.layers import quantized_layers

    pipeline = halftone.load(sd_artifact)
    ranges = activation_ranges(pipeline)
    layers = dict(quantized_layers(pipeline.unet))
    assert set(ranges) == set(layers)
    for name, rows in ranges.items():
        layer = layers[name]
        assert [row.timestep for row in rows] == [751, 501, 251, 1]
        for slot, row in enumerate(rows):
            scale, zero, bits = (
                table[slot].item() for table in (layer.input_scale, layer.input_zero_point, layer.input_num_bits)
            )
            assert row.low == pytest.approx((0 - zero) * scale)
            assert row.high == pytest.approx((2**bits - 1 - zero) * scale) and row.low <= 0 <= row.high
    facts = quantization_facts(inspect_artifact(sd_artifact))
    assert list(facts.slot_bits) == [8, 8, 8, 10] and facts.layers_quantized == 79 and facts.recipe == "pcr-w8a8"


def test_full_precision_has_no_ranges(sd_folder):
    from halftone.sources import open_pipeline

    assert activation_ranges(open_pipeline(sd_folder)) == {}


def test_artifact_of_other_weights_is_refused(sd_folder, clip_folder, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    source = shutil.copytree(sd_folder, tmp_path / "sd")
    monkeypatch.setattr(demo, "bench", interrupted)

    def run_it():
        run_demo(tmp_path / "out", SMALL, _quiet, source=str(source), clip=str(clip_folder))

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_it()
    shutil.copytree(save_folder(tiny_sd(seed=1), tmp_path / "other"), source, dirs_exist_ok=True)
    with pytest.raises(InputError, match="made from another model"):
        run_it()
