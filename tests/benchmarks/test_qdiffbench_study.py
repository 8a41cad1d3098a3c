"""The study of the benchmark: its own arithmetic by hand, and the whole of it on a tiny model."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.qdiffbench.coverage import (
    counted,
    drawn,
    intervals,
    large_sample_values,
    one_trial,
    read_columns,
    write_columns,
)
from benchmarks.qdiffbench.settings import Study, StudySettings
from benchmarks.qdiffbench.verdicts import criteria
from benchmarks.qdiffbench.weight_noise import add_noise
from halftone.errors import InputError
from halftone.qdiffbench.columns import Columns
from halftone.qdiffbench.kernel_distance import kid
from halftone.qdiffbench.moments import Moments, frechet_distance

ROOT = Path(__file__).parents[2]
SETTINGS = StudySettings("model", "clip", {"in": "a", "out": "b"}, 20, 8, 2, 4.0, (0.1, 0.5), 0.5, 15, 3, 2, 1)


def columns(n=60, d=4, seed=0):
    generator = np.random.default_rng(seed)
    reference = generator.normal(size=(n, d)).astype(np.float32)
    features = reference + 0.5 * generator.normal(size=(n, d)).astype(np.float32)
    hits = generator.random((2, n)) < 0.7
    values = {
        "psnr": generator.normal(30, 3, n),
        "latent_error": generator.gamma(2, 0.1, 20),
        "clip_score": generator.normal(25, 2, n),
        "attribute_accuracy": hits[0].astype(float),
    }
    references = {"clip_score": generator.normal(26, 2, n), "attribute_accuracy": hits[1].astype(float)}
    return Columns(values, references, {"main": features}, {"main": reference})


def test_large_sample_values_are_where_ever_more_draws_end():
    whole = columns()
    rows = np.random.default_rng(1).integers(0, 60, 6000)
    many, truth = drawn(whole, rows), large_sample_values(whole)
    moments = []
    for one in (many.features["main"], many.reference_features["main"]):
        moments.append(Moments(4))
        moments[-1].update(one)
    estimates = {
        "psnr": many.values["psnr"].mean(),
        "latent_error": many.values["latent_error"].mean(),
        "clip_score_difference": (many.values["clip_score"] - many.reference_values["clip_score"]).mean(),
        "attribute_accuracy": many.values["attribute_accuracy"].mean(),
        "fid_to_fp": frechet_distance(*moments),
        "kid_to_fp": kid(many.features["main"], many.reference_features["main"], paired=True),
    }
    assert set(estimates) | {"attribute_accuracy_difference"} == set(truth)
    for name, value in estimates.items():
        assert value == pytest.approx(truth[name], rel=0.06, abs=0.1 if name == "clip_score_difference" else 0), name


def test_a_draw_keeps_rows_together_and_followed_prompts_apart():
    whole = columns()
    rows = np.array([3, 3, 59, 19, 20])
    one = drawn(whole, rows)
    assert np.array_equal(one.values["psnr"], whole.values["psnr"][rows])
    assert np.array_equal(one.features["main"], whole.features["main"][rows])
    assert np.array_equal(one.values["latent_error"], whole.values["latent_error"][[3, 3, 19]])
    assert "latent_error" not in drawn(whole, np.array([30, 40, 50, 55])).values


def test_columns_survive_their_file(tmp_path):
    whole = columns()
    write_columns(whole, tmp_path / "columns.npz")
    again = read_columns(tmp_path / "columns.npz")
    for part in ("values", "reference_values", "features", "reference_features"):
        ours, theirs = getattr(whole, part), getattr(again, part)
        assert set(ours) == set(theirs) and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_intervals_of_many_samples_hold_in_most_cases_and_a_shifted_truth_is_noticed():
    whole = columns(n=200, d=2)
    trials = [one_trial(whole, 100, trial) for trial in range(40)]
    assert trials[3] == one_trial(whole, 100, 3), "a trial follows from its number"
    assert set(trials[0]) == set(large_sample_values(whole)) == set(intervals(whole, 0))
    found = counted(large_sample_values(whole), trials)
    for name, one in found.items():
        assert one["share"] >= 0.8, name  # 40 draws: 95 % less four standard deviations
        assert one["held"] + one["below"] + one["above"] == one["trials"] == 40
    moved = counted({"psnr": large_sample_values(whole)["psnr"] + 3.0}, trials)
    assert moved["psnr"]["share"] == 0.0 and moved["psnr"]["below"] == 40


def test_noise_is_relative_to_each_weight_and_only_scaled_by_its_strength():
    def noisy(sigma):
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(400, 300), torch.nn.Conv2d(30, 40, 3))
        plain = [weight.detach().clone() for weight in module.parameters()]
        add_noise(module, sigma, seed=1)
        return plain, [weight.detach() - was for weight, was in zip(module.parameters(), plain, strict=True)]

    plain, weak = noisy(0.01)
    _, strong = noisy(0.04)
    for was, a, b in zip(plain, weak, strong, strict=True):
        if was.dim() == 1:
            assert not a.any() and not b.any()
        else:
            assert float(a.std() / was.square().mean().sqrt()) == pytest.approx(0.01, rel=0.05)
            assert torch.allclose(4 * a, b, atol=1e-6)


def test_images_to_paint_by_hand():
    # reference and itself: 2 sets of 20, twice; two noisy models on 2 sets of 8, one of them on 12 more of one set
    assert SETTINGS.images_to_paint == 80 + 32 + 12


def test_wrong_settings_and_other_studies_are_refused(tmp_path):
    for change in ({"coverage_sigma": 0.2}, {"sigmas": (0.5, 0.1)}, {"rank_images": 21}):
        with pytest.raises(InputError):
            dataclasses.replace(SETTINGS, **change)
    models = {"source": "abc"}
    Study(SETTINGS, tmp_path / "work").claim(models)
    assert Study.reopened(tmp_path / "work").settings == SETTINGS
    Study(SETTINGS, tmp_path / "work").claim(models)
    with pytest.raises(InputError, match="differs in: contents"):
        Study(SETTINGS, tmp_path / "work").claim({"source": "abd"})
    with pytest.raises(InputError, match="differs in: steps"):
        Study(dataclasses.replace(SETTINGS, steps=3), tmp_path / "work").claim(models)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(InputError, match="holds no study"):
        Study(SETTINGS, tmp_path / "other").claim(models)


def test_criteria_notice_what_is_wrong():
    good = {
        "itself": {
            "fid_to_fp": {"in": 1e-15},
            "worst_psnr": {"in": 100.0},
            "peak_memory_bytes": 1e9,
            "kills": 3,
            "same_results_after_kills": True,
            "images_recorded_twice": 0,
        },
        "undisturbed": {"peak_memory_bytes": 2e9},
        "ranking": {"sets": {"in": {"psnr": {"order": "right"}}}},
        "coverage": {"metrics": {"psnr": {"held": 187, "trials": 200}, "ssim": {"held": 200, "trials": 200}}},
    }
    assert all(one["holds"] for one in criteria(good, kills=3))
    # 0.95^200 is 3.5e-5; 187 of 200 or fewer hold by chance with a probability of 20 %
    assert criteria(good, kills=3)[3]["found"] == "ssim oftener"
    bad = {
        "itself": {
            **good["itself"],
            "fid_to_fp": {"in": 0.002},
            "worst_psnr": {"in": 89.0},
            "images_recorded_twice": 1,
        },
        "undisturbed": {"peak_memory_bytes": 4e9},
        "ranking": {"sets": {"in": {"psnr": {"order": "not distinguished"}}}},
        "coverage": {"metrics": {"psnr": {"held": 180, "trials": 200}}},
    }
    assert not any(one["holds"] for one in criteria(bad, kills=3))
    assert not criteria(good, kills=4)[-1]["holds"], "fewer kills than asked for"


@pytest.mark.slow
def test_the_whole_study_on_a_tiny_model(sd_folder, clip_folder, tmp_path):
    for name in ("in", "out"):
        rows = [
            {"prompt": f"{name} cube {a}{b}", "alternatives": [f"{name} ball {a}{b}"]} for a in "abcd" for b in "xyz"
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        *("--source", sd_folder, "--clip", clip_folder, "--work", tmp_path / "work", "--out", tmp_path / "result"),
        *("--in-domain", tmp_path / "in.jsonl", "--out-of-domain", tmp_path / "out.jsonl"),
        *("--num-images", 8, "--rank-images", 4, "--steps", 2, "--sigmas", "0.1,0.5", "--coverage-sigma", 0.5),
        *("--trials", 3, "--kills", 2, "--processes", 1),
    ]
    command = [sys.executable, "-m", "benchmarks.qdiffbench", *map(str, words)]
    for _ in range(2):  # the second time everything is there
        ran = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
        assert ran.returncode in (0, 1), ran.stderr.decode()
    assert b"comparing" not in ran.stderr
    study = json.loads((tmp_path / "result" / "study.json").read_text())
    first = study["parts"]["itself"]
    assert first["n"] == {"in-domain": 8, "out-of-domain": 8} and max(first["fid_to_fp"].values()) <= 1e-3
    assert set(first["worst_psnr"].values()) == {100.0} and first["kills"] == 2
    assert first["same_results_after_kills"] and first["images_recorded_twice"] == 0
    for metrics in study["parts"]["ranking"]["sets"].values():
        assert all(metrics[name]["order"] == "right" for name in ("psnr", "ssim", "latent_error", "fid_to_fp"))
    assert study["parts"]["coverage"]["metrics"]["psnr"]["trials"] == 3
    images = list((tmp_path / "work").rglob("*.png"))
    assert len(images) == 2 * 2 * 8 + 2 * 2 * 4 + (8 - 4), "and no more than images_to_paint says"
    assert (tmp_path / "result" / "study.png").stat().st_size > 0
    assert "| kills | 2;" in (tmp_path / "result" / "study.md").read_text()
