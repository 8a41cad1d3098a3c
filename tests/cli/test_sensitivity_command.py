"""`halftone sensitivity`: its contract, a kill in the middle, and every kind of wrong input."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest


@pytest.fixture
def words(sd_folder, clip_folder, prompts, tmp_path):
    """The command's words."""
    path = tmp_path / "set.txt"
    path.write_text("".join(f"a red cube {letter}\n" for letter in "abcdef"), encoding="utf-8")

    def make(*more, source=sd_folder, out="out", set_file=path):
        few = ["--steps", 4, "--intervals", 2, "--num-images", 4, "--num-calibration-prompts", 2]
        files = ["--prompts", set_file, "--calibration-prompts", prompts, "--clip", clip_folder, "--out", out]
        return ["sensitivity", source, *few, *files, *more]

    return make


@pytest.fixture
def sensitivity(halftone, words):
    return lambda *more, **changes: halftone(*words(*more, **changes))


def _times(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}


def test_result_for_machines(sensitivity, tmp_path):
    ran = sensitivity("--json", "--noise", 0.1)
    assert ran.code == 0, ran.err
    assert ran.json == json.loads((tmp_path / "out" / "sensitivity.json").read_text(encoding="utf-8"))
    assert ran.json["schema"] == "halftone.sensitivity/1"
    perturb, mixed = ran.json["experiments"]
    assert (perturb["name"], perturb["noise"], mixed["name"]) == ("perturb", 0.1, "float")
    assert mixed["quantized_model"]["recipe"] == "per-step-w8a8"
    assert [len(one["intervals"]) for one in (perturb, mixed)] == [2, 2]
    assert "painting variants: 20 of 20" in ran.err and "calibrating: 4 of 4" in ran.err
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "steps 1 to 2" in page and "http://" not in page
    assert (tmp_path / "out" / "model" / "halftone.json").is_file()


def test_result_for_people_is_on_stderr(sensitivity, tmp_path):
    ran = sensitivity("--experiment", "perturb")
    assert ran.code == 0 and ran.out == "", ran.err
    assert "noise in steps 1 to 2: PSNR " in ran.err and "CLIP score change" in ran.err
    assert "Note: 4 images are few" in ran.err and "For fidelity the" in ran.err
    assert ran.err.splitlines()[-1].startswith("The report: ") and ran.err.rstrip().endswith("report.html")
    assert not (tmp_path / "out" / "model").exists(), "nothing was quantized"


def test_one_experiment_after_the_other_paints_nothing_twice(sensitivity, tmp_path):
    assert sensitivity("--experiment", "perturb").code == 0
    before = _times(tmp_path)
    assert len(before) == 4 * 3
    ran = sensitivity("--experiment", "float", "--json")
    assert [one["name"] for one in ran.json["experiments"]] == ["float"]
    after = _times(tmp_path)
    assert before.items() <= after.items() and len(after) == 4 * 6
    assert sensitivity().code == 0 and _times(tmp_path) == after


def test_without_clip_no_matching_is_measured(sensitivity, clip_folder):
    more = ["--clip", "none", "--features", f"clip:{clip_folder}"]
    ran = sensitivity("--experiment", "perturb", *more, "--json")
    result = ran.json["experiments"][0]["intervals"][0]["result"]
    sides = ran.json["experiments"][0]["sides"]
    assert "clip_score" not in result and [one["measure"] for one in sides] == ["fidelity"]


def test_killed_it_goes_on_and_ends_as_an_undisturbed_one(sensitivity, words, tmp_path):
    """SIGKILL while variants are painted; what was finished is not painted again."""
    environment = {**os.environ, "HALFTONE_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "halftone", *map(str, words(out=tmp_path / "out"))]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(command, env=environment, stderr=log, stdout=log, cwd=tmp_path)
        deadline = time.monotonic() + 240
        while len(_times(tmp_path / "out")) < 6 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, (tmp_path / "log").read_text()
    recorded = {
        records.parent / f"{json.loads(line)['index']:05d}.png"
        for records in (tmp_path / "out").rglob("records-*.jsonl")
        for line in records.read_text().splitlines()
        if line.endswith("}")
    }
    before = {path: time for path, time in _times(tmp_path / "out").items() if path in recorded}
    assert len(before) >= 5
    ran = sensitivity("--json")
    assert ran.code == 0, ran.err
    assert before.items() <= _times(tmp_path / "out").items()
    whole = sensitivity("--json", out="whole")
    assert ran.json["experiments"] == whole.json["experiments"]
    assert not [*(tmp_path / "out").rglob("*.part")]


@pytest.mark.parametrize(
    "more, said",
    [
        (["--intervals", 5], "5 intervals need at least as many steps, and there are 4"),
        (["--intervals", 0], "--intervals"),
        (["--noise", 0], "noise is 0.0"),
        (["--noise", -1], "noise is -1.0"),
        (["--noise", "nan"], "noise is nan"),
        (["--noise", "inf"], "noise is inf"),
        (["--recipe", "per-step-w8a"], "did you mean 'per-step-w8a"),
        (["--experiment", "perturbe"], "did you mean 'perturb'?"),
        (["--num-images", 3], "--num-images"),
        (["--num-images", 7], "has 6 prompts, and 7 images"),
        (["--num-calibration-prompts", 3], "2 prompts, and 3 are asked for"),
        (["--calibration-prompts", "none.txt"], "none.txt does not exist"),
        (["--clip", "nowhere"], "nowhere"),
        (["--features", "clipp"], "did you mean 'clip'?"),
        (["--guidance", "nan"], "guidance_scale is nan"),
        (["--dtype", "float31"], "did you mean 'float32'?"),
        (["--device", "gpu"], "'gpu' cannot be used here"),
    ],
)
def test_wrong_options_leave_nothing(more, said, sensitivity, tmp_path):
    assert said in sensitivity(*more).sentence
    assert not (tmp_path / "out").exists() and not (tmp_path / "cache").exists()


def test_wrong_scheduler(sensitivity):
    assert "did you mean 'DDIM'?" in sensitivity("--scheduler", "DDIMM").sentence


def test_wrong_sources_and_folders(sensitivity, sd_artifact, tmp_path):
    assert "is quantized" in sensitivity(source=sd_artifact).sentence
    assert "neither a folder" in sensitivity(source=tmp_path / "nowhere").sentence
    assert "no bundled model" in sensitivity(source="bundled:mini-sdd").sentence
    assert "does not exist" in sensitivity(set_file=tmp_path / "none.txt").sentence
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    assert "is not empty and holds no measurement of sensitivity" in sensitivity().sentence
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    assert "is a file" in sensitivity(out=tmp_path / "out" / "thesis.txt").sentence


def test_another_recipe_in_the_same_folder_is_refused(sensitivity):
    assert sensitivity("--experiment", "float").code == 0
    assert "made with other settings" in sensitivity("--experiment", "float", "--recipe", "minmax-w8a8").sentence
