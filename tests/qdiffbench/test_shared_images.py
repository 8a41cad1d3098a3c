"""What studies ask of the engine: one place for images of several benchmarks, sets of different sizes, some pairs."""

from contextlib import contextmanager

import pytest
from pipelines import save_folder, tiny_sd

from halftone.generation import GenerationSettings
from halftone.qdiffbench.bench import BenchRequest, bench


@contextmanager
def _quiet(label):
    yield lambda done, total: None


@pytest.fixture
def request_of(sd_folder, clip_folder, tmp_path):
    """Two prompt sets of six, and images in one place."""
    for name in ("in", "out"):
        (tmp_path / f"{name}.txt").write_text("".join(f"a red cube {name} {letter}\n" for letter in "abcdef"))

    def make(candidates, **changes):
        fields = {
            "reference": str(sd_folder),
            "candidates": tuple(candidates),
            "prompt_sets": {name: str(tmp_path / f"{name}.txt") for name in ("in", "out")},
            "out": tmp_path / "first",
            "settings": GenerationSettings(num_inference_steps=3, seed=5),
            "cache": tmp_path / "cache",
            "features": (f"clip:{clip_folder}",),
            "clip": str(clip_folder),
            "noise_floor": (),
            "images": tmp_path / "images",
        }
        return BenchRequest(**{**fields, **changes})

    return make


def _painted(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}


def test_benchmarks_share_images_whatever_candidates_are_called(request_of, sd_artifact, tmp_path):
    first = bench(request_of([f"one={sd_artifact}"], num_images=4), _quiet)
    before = _painted(tmp_path)
    assert len(_painted(tmp_path / "images")) == 8 and not (tmp_path / "first" / "images").exists()
    second = bench(request_of([f"two={sd_artifact}", f"three={sd_artifact}"], num_images=4, out=tmp_path / "b"), _quiet)
    assert _painted(tmp_path) == before
    (one,), (two, three) = first.results.candidates, second.results.candidates
    assert one.sets == two.sets == three.sets


def test_sets_of_different_sizes(request_of, sd_artifact, tmp_path):
    outcome = bench(request_of([f"one={sd_artifact}"], num_images={"in": 6, "out": 4}), _quiet)
    (one,) = outcome.results.candidates
    assert {name: result.n for name, result in one.sets.items()} == {"in": 6, "out": 4}
    assert {name: facts.n for name, facts in outcome.results.settings.prompt_sets.items()} == {"in": 6, "out": 4}
    assert len(_painted(tmp_path / "images")) == 10
    assert (
        bench(request_of([f"one={sd_artifact}"], num_images={"in": 4}), _quiet).results.candidates[0].sets["out"].n == 6
    )


def test_only_some_pairs_are_compared(request_of, sd_folder, sd_artifact, tmp_path):
    other = save_folder(tiny_sd(seed=3), tmp_path / "other")
    candidates = [f"a={sd_folder}", f"b={sd_artifact}", f"c={other}"]
    every = bench(request_of(candidates, num_images=4), _quiet).results.comparisons
    some = bench(request_of(candidates, num_images=4, pairs=[("a", "c")]), _quiet).results.comparisons
    assert {(one.a, one.b) for one in every} == {("a", "b"), ("a", "c"), ("b", "c")}
    assert some == tuple(one for one in every if (one.a, one.b) == ("a", "c")) and some
