"""Child processes of the speed benchmark: what is made once, who fails, who is ended. And a small run of all of it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.cpu_speed import processes, stages
from benchmarks.cpu_speed.jobs import Job
from benchmarks.cpu_speed.processes import Child, ChildFailed
from benchmarks.cpu_speed.stages import Stage

ROOT = Path(__file__).parents[2]


def job(tmp_path, model="mini-sd"):
    return Job(model, 1, str(tmp_path))


def test_a_stage_is_made_once_and_again_for_another_version(tmp_path, monkeypatch):
    made = []

    def make(job, folder):
        made.append(job.model)
        (folder / "file").write_text("content")
        return {"told": 1}

    stage = Stage("thing", "a thing", make)
    assert not stages.is_made(stage, job(tmp_path, "sdxl-1024"))
    assert stages.run(stage, job(tmp_path, "sdxl-1024"))["told"] == 1
    assert stages.run(stage, job(tmp_path, "sdxl-512"))["told"] == 1
    assert made == ["sdxl-512"], "of the weights alone, so at the smaller size, and for both"
    assert (tmp_path / "sdxl" / "thing" / "file").read_text() == "content"
    monkeypatch.setattr(stages, "VERSION", stages.VERSION + 1)
    assert not stages.is_made(stage, job(tmp_path, "sdxl-512"))
    stages.run(stage, job(tmp_path, "sdxl-512"))
    assert len(made) == 2


def test_a_stage_that_fails_leaves_nothing_that_counts(tmp_path):
    def fail(job, folder):
        (folder / "half").touch()
        raise RuntimeError("no")

    stage = Stage("thing", "a thing", fail, of_weights=False)
    with pytest.raises(RuntimeError):
        stages.run(stage, job(tmp_path))
    assert not stages.is_made(stage, job(tmp_path)) and not (tmp_path / "mini-sd" / "thing").exists()


class Script(Child):
    """A child that runs a few lines instead of the worker."""

    def __init__(self, tmp_path, monkeypatch, lines, time_limit=60.0):
        script = tmp_path / "child.py"
        script.write_text(lines)
        original = subprocess.Popen
        with monkeypatch.context() as patch:
            patch.setattr(
                processes.subprocess, "Popen", lambda command, **how: original([sys.executable, str(script)], **how)
            )
            super().__init__("peer", "script", Job("mini-sd", 1, str(tmp_path)), tmp_path / "log", time_limit)


def test_answers_and_failures_of_a_child(tmp_path, monkeypatch):
    lines = "import sys\nfor line in sys.stdin:\n print('{\"got\": ' + line.strip() + '}', flush=True)\n"
    with Script(tmp_path, monkeypatch, lines) as child:
        assert child.ask({"turn": ""}) == {"got": {"turn": ""}}
        assert child.cpu_seconds() >= 0
        pid = child._process.pid
    assert not psutil.pid_exists(pid)
    with (
        Script(tmp_path, monkeypatch, 'print(\'{"failed": "no such thing"}\')') as child,
        pytest.raises(ChildFailed, match="no such thing"),
    ):
        child.ask()
    with (
        Script(tmp_path, monkeypatch, "raise SystemExit(3)") as child,
        pytest.raises(ChildFailed, match="status 3"),
    ):
        child.ask()


def test_a_child_that_is_killed_or_takes_too_much_is_told(tmp_path, monkeypatch):
    with (
        Script(tmp_path, monkeypatch, "import os\nos.kill(os.getpid(), 9)") as child,
        pytest.raises(ChildFailed, match="killed"),
    ):
        child.ask()
    sleeping = "import time\ntime.sleep(600)"
    with Script(tmp_path, monkeypatch, sleeping, time_limit=0.1) as child, pytest.raises(ChildFailed, match="minutes"):
        child.ask()
    monkeypatch.setattr(processes, "RESERVE_GIB", 1e9)
    with Script(tmp_path, monkeypatch, sleeping) as child, pytest.raises(ChildFailed, match="GiB"):
        child.ask()


def test_an_interruption_ends_children_and_theirs(tmp_path, monkeypatch):
    lines = (
        "import subprocess, sys, time\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('{\"other\": %d}' % other.pid, flush=True)\ntime.sleep(600)\n"
    )
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Script(tmp_path, monkeypatch, lines) as child:
        pids = [child._process.pid, child.ask()["other"]]
        raise KeyboardInterrupt
    assert time.monotonic() - started < 60
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def command(*arguments):
    return [sys.executable, "-m", "benchmarks.cpu_speed", *arguments]


def test_wrong_names_are_one_sentence():
    for arguments, hint in ((["--model", "sd16"], "'sd15'"), (["--peers", "halftone-f3"], "'halftone-f32'")):
        done = subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and "did you mean" in done.stderr and hint in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_small_run(tmp_path):
    _run_small(tmp_path, "torch-bf16", "torch-fp32")


@pytest.mark.slow
def test_a_small_run_with_openvino(tmp_path):
    pytest.importorskip("openvino")
    result = _run_small(tmp_path, "openvino-f32", "torch-fp32")
    assert result["contestants"]["openvino-f32"]["error"] < 1e-3


def _run_small(tmp_path, *peers):
    page = tmp_path / "page.md"
    page.write_text("<!-- results: begin -->\n<!-- results: end -->\n")
    arguments = ["--model", "mini-sd", "--threads", "1", "--rounds", "2", "--no-profile", "--peers", *peers]
    files = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "speed.json"), "--markdown", str(page)]
    done = subprocess.run(command(*arguments, *files), cwd=ROOT, capture_output=True, text=True, env=_environment())
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "speed.json").read_text())["runs"]["mini-sd, 1 threads"]
    for peer in (*peers, "halftone-bf16"):
        assert run["contestants"][peer]["agrees"] and run["contestants"][peer]["median_s"] > 0, run["not_run"]
    assert run["contestants"]["torch-fp32"]["speedup_over_fp32"]["median"] == 1.0
    assert {"float32", "bfloat16"} <= set(run["ceilings"])
    assert str(tmp_path) not in json.dumps(run)
    assert "PyTorch float32" in page.read_text()
    return run


def _environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _hear_interrupts():
    """A shell has its background jobs ignore Ctrl-C, and what they start inherits that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_a_run_with_its_children(tmp_path):
    arguments = ["--model", "mini-sd", "--threads", "1", "--work", str(tmp_path), "--out", str(tmp_path / "speed.json")]
    process = subprocess.Popen(
        command(*arguments), cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=_hear_interrupts
    )
    try:
        assert process.stderr is not None
        assert any("making" in line for line in process.stderr)
        deadline = time.monotonic() + 60
        while not (children := psutil.Process(process.pid).children(recursive=True)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not alive
    finally:
        process.kill()
        process.wait()
