"""`halftone study`: its contract, a kill in the middle, and every kind of wrong input."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml


@pytest.fixture
def plan(prompts, tmp_path):
    """A plan of two tables; returns its path."""
    sets = tmp_path / "set.txt"
    sets.write_text("".join(f"a red cube {letter}\n" for letter in "abcdef"), encoding="utf-8")
    shared = {
        "steps": 4,
        "num_calibration_prompts": 2,
        "sets": [{"name": "in-domain", "prompts": str(sets), "num_images": 4}],
    }
    main = {
        **shared,
        "name": "main",
        "sentence": "Which is nearer?",
        "rows": [{"name": name, "recipe": name, "group": "w8a6"} for name in ("minmax-w8a6", "pcr-w8a6")],
    }
    parts = {
        **shared,
        "name": "parts",
        "sentence": "What does each give?",
        "kind": "ablation",
        "rows": [{"name": name, "recipe": name, "group": "w8a6"} for name in ("pcr-no-relax-w8a6", "pcr-w8a6")],
    }
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({"name": "small", "calibration_prompts": str(prompts), "tables": [main, parts]}))
    return path


@pytest.fixture
def words(sd_folder, clip_folder, plan):
    """The command's words."""

    def make(*more, source=sd_folder, out="out"):
        return ["study", source, "--plan", plan, "--clip", clip_folder, "--out", out, *more]

    return make


@pytest.fixture
def study(halftone, words):
    return lambda *more, **changes: halftone(*words(*more, **changes))


def _times(root, pattern="*.png"):
    return {path: path.stat().st_mtime_ns for path in root.rglob(pattern)}


def _numbers(found):
    """Rows of all tables without what differs from run to run."""
    rows = [row for table in found["tables"] for row in table["rows"]]
    for row in rows:
        row["calibration"].pop("seconds", None)
    return rows


def test_result_for_machines(study, tmp_path):
    ran = study("--json")
    assert ran.code == 0, ran.err
    assert ran.json == json.loads((tmp_path / "out" / "study.json").read_text(encoding="utf-8"))
    assert ran.json["schema"] == "halftone.study/1" and ran.json["plan"] == "small"
    assert [table["name"] for table in ran.json["tables"]] == ["main", "parts"]
    assert "calibrating: 4 of 4" in ran.err and "The whole study: about " in ran.err
    assert "painting pcr-w8a6, in-domain: 4 of 4" in ran.err and "All of it: about " in ran.err
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Which is nearer?" in page and "http://" not in page
    assert (tmp_path / "out" / "tables" / "parts" / "results.json").is_file()
    assert len([*(tmp_path / "out" / "artifacts").glob("*/halftone.json")]) == 3


def test_result_for_people_is_on_stderr(study, tmp_path):
    ran = study("--only", "main", "--markdown", "tables.md")
    assert ran.code == 0 and ran.out == "", ran.err
    assert "main, w8a6: " in ran.err and "has the lowest FID to full precision" in ran.err
    assert "Note, table main: 4 images are few" in ran.err and "Not measured yet: parts." in ran.err
    assert ran.err.splitlines()[-1].startswith("The report: ")
    text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert "<!-- study: main -->" in text and "Which is nearer?" in text


def test_the_estimate_writes_nothing(study, tmp_path):
    before = {*tmp_path.rglob("*")}
    ran = study("--estimate")
    assert ran.code == 0 and ran.out == "", ran.err
    assert "Table main: 2 models to make in about " in ran.err and "Table parts: 1 model to make" in ran.err
    assert {*tmp_path.rglob("*")} == before
    found = study("--estimate", "--json").json
    assert found["seconds"] > 0 and found["bytes"] > 0


def test_killed_it_goes_on_and_ends_as_an_undisturbed_one(study, words, tmp_path):
    """SIGKILL while images are painted; what was finished is not made again."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
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
    before |= _times(tmp_path / "out", "halftone.json")
    assert len(before) >= 5 + 2
    ran = study("--json")
    assert ran.code == 0, ran.err
    assert before.items() <= (_times(tmp_path / "out") | _times(tmp_path / "out", "halftone.json")).items()
    whole = study("--json", out="whole")
    assert _numbers(ran.json) == _numbers(whole.json)
    assert not [*(tmp_path / "out").rglob("*.part")]


@pytest.mark.parametrize(
    "more, said",
    [
        (["--plan", "papr"], "did you mean 'paper'?"),
        (["--plan", "none.yaml"], "cannot be read"),
        (["--only", "mian"], "did you mean 'main'?"),
        (["--prompts", "in-domain"], "write NAME=FILE"),
        (["--prompts", "other=set.txt"], "no prompt set 'other'"),
        (["--prompts", "in-domain=a", "--prompts", "in-domain=b"], "the set 'in-domain' twice"),
        (["--prompts", "in-domain=none.txt"], "none.txt does not exist"),
        (["--calibration-prompts", "none.txt"], "none.txt does not exist"),
        (["--guidance", "nan"], "guidance_scale is nan"),
        (["--clip", "nowhere"], "nowhere"),
        (["--features", "clipp"], "did you mean 'clip'?"),
        (["--dtype", "float31"], "did you mean 'float32'?"),
        (["--device", "gpu"], "'gpu' cannot be used here"),
        (["--batch-size", 0], "--batch-size"),
        (["--markdown", "plan.yaml"], "has no place for a table"),
    ],
)
def test_wrong_options_leave_nothing(more, said, study, tmp_path):
    assert said in study(*more).sentence
    assert not (tmp_path / "out").exists()


def test_wrong_plans_sources_and_folders(study, plan, sd_artifact, tmp_path):
    assert "is quantized" in study(source=sd_artifact).sentence
    assert "neither a folder" in study(source=tmp_path / "nowhere").sentence
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    assert "is not empty and holds no study" in study().sentence
    plan.write_text(plan.read_text().replace("pcr-no-relax-w8a6", "pcr-no-relax-w8a5"))
    assert "table 'parts', row 'pcr-no-relax-w8a5': unknown recipe" in study().sentence
    plan.write_text(plan.read_text().replace("steps:", "stepz:"))
    assert "unknown key 'tables.0.stepz'; did you mean 'steps'?" in study().sentence


def test_another_scheduler_is_told_before_anything_is_made(study, tmp_path):
    assert "did you mean 'DDIM'?" in study("--scheduler", "DDIMM").sentence
    assert not [*(tmp_path / "out").rglob("*.png")]


def test_two_processes_share_models_and_images(study, words, tmp_path):
    """torchrun with gloo: every model and image is made by one of them, and the first one writes the results."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "halftone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [*launcher, *map(str, words(out=tmp_path / "shared"))]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    shared = json.loads((tmp_path / "shared" / "study.json").read_text(encoding="utf-8"))
    folders = {path.parent for path in (tmp_path / "shared").rglob("records-*.jsonl")}
    assert folders and all(len([*folder.glob("records-*.jsonl")]) == 2 for folder in folders)
    assert done.stderr.count("model 1 of 2") == done.stderr.count("model 2 of 2") == 1
    alone = study("--json", out="alone")
    assert _numbers(shared) == _numbers(alone.json)
