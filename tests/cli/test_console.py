"""What all commands share: exit codes, one sentence, nothing but results on stdout."""

import errno
import io
import json
import os
import signal
import subprocess
import sys

import pytest

from halftone.calibration.stages import Advance
from halftone.cli import console
from halftone.errors import InputError

COMMANDS = ["quantize", "generate", "inspect", "bench", "demo", "card", "recipes"]


def _raise(error):
    raise error


def test_help_and_version_load_no_torch():
    """In a process of its own: this one has torch already."""
    script = (
        "import sys\nfrom halftone.cli.app import app\n"
        "for words in (['--help'], ['--version'], *([name, '--help'] for name in sys.argv[1:])):\n"
        "    app(words, standalone_mode=False)\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *COMMANDS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert name in done.stdout


def test_halftone_alone_shows_the_help(halftone):
    ran = halftone()
    assert ran.code == 2 and ran.out == ""
    for name in COMMANDS:
        assert f"\n  {name} " in ran.err, "lines of the help must stay lines"


@pytest.mark.parametrize(
    "words, said",
    [
        (["qantize"], "qantize"),
        (["quantize"], "SOURCE"),
        (["quantize", "sd", "--prompts", "p"], "--out"),
        (["generate", "sd", "--out", "x", "--steps", "0"], "--steps"),
        (["generate", "sd", "--out", "x", "--steps", "few"], "--steps"),
        (["bench", "sd", "--out", "x"], "CANDIDATE"),
        (["bench", "sd", "sd", "--out", "x", "--num-images", "1"], "--num-images"),
        (["inspect", "x", "--jsn"], "--jsn"),
        (["card"], "ARTIFACT"),
    ],
)
def test_wrong_usage_is_one_sentence(words, said, halftone):
    assert said in halftone(*words).sentence


def test_exit_codes(capsys):
    assert console.run_guarded(lambda: None, debug=False) == 0
    assert console.run_guarded(lambda: 3, debug=False) == 3
    assert console.run_guarded(lambda: _raise(InputError("no such\nthing")), debug=False) == 2
    assert capsys.readouterr().err == "halftone: no such thing\n"
    for interrupted in (lambda: _raise(KeyboardInterrupt()), lambda: 130):
        assert console.run_guarded(interrupted, debug=False) == 130
        assert capsys.readouterr().err.startswith("halftone: Interrupted")
    assert console.run_guarded(lambda: _raise(ZeroDivisionError("x")), debug=False) == 1
    assert "fault of Halftone itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("x"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory."),
    ],
)
def test_out_of_memory_is_no_fault_of_ours(error, capsys):
    assert console.run_guarded(lambda: _raise(error), debug=False) == 2
    assert "Out of memory" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.ENAMETOOLONG])
def test_what_the_system_refuses_is_no_fault_of_ours(number, capsys):
    assert console.run_guarded(lambda: _raise(OSError(number, os.strerror(number), "some/file")), debug=False) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and ("no space" if number == errno.ENOSPC else "some/file") in err


def test_debug_shows_the_traceback_and_the_sentence(halftone, tmp_path):
    ran = halftone("inspect", tmp_path / "nothing", "--debug")
    assert ran.code == 2 and "Traceback" in ran.err
    assert ran.err.splitlines()[-1].startswith("halftone: ")


def test_complaints_fit_any_encoding(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    console.complain("no 😀 here\0")
    assert raw.getvalue() == b"halftone: no \\U0001f600 here\x00\n"


def test_json_fits_any_encoding(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    console.emit({"prompt": "a 😀 \u2028"})
    assert json.loads(raw.getvalue()) == {"prompt": "a 😀 \u2028"}


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_stdout_of_any_encoding_takes_any_text(encoding):
    """As in a console of Windows, or a shell without a locale."""
    script = (
        "import sys\nfrom halftone.cli import console, main\n"
        "console.run_guarded = lambda *_, **__: print('a 😀 → b') or print('c 😀', file=sys.stderr) or 0\nmain()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == rb"a \U0001f600 \u2192 b".split() and rb"c \U0001f600" in done.stderr


def test_progress_goes_to_stderr_by_tenths(capsys):
    with console.progress("painting") as advance:
        for done in range(1, 101):
            advance(done, 100)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == "" and lines[-1] == "painting: 100 of 100" and 2 <= len(lines) <= 11


class _Time:
    """A clock that goes only when it is told to."""

    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def time(monkeypatch):
    made = _Time()
    monkeypatch.setattr(console, "time", made)
    return made


def test_what_was_found_on_disk_is_no_measure_of_what_is_left(time, capsys):
    """40 of 100 are found within a second; then each takes a minute."""
    with console.progress("painting") as advance:
        for done in range(1, 101):
            time.now += 0.02 if done <= 40 else 60.0
            advance(done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert "painting: 50 of 100, about 50 min left" in lines and lines[-1] == "painting: 100 of 100"


def test_stages_have_times_of_their_own(time, capsys):
    """Calls take 1 s, units 10 s for each of their work; what was replayed tells nothing, and a large unit counts."""
    calls = [Advance("trajectory", done, 4, 1.0, 4 - done, done <= 2) for done in range(1, 5)]
    work, left = [1, 1, 2, 6, 2], [11, 10, 8, 2, 0]
    units = [Advance("rounding", n + 1, 5, work[n], left[n], n == 0) for n in range(5)]
    with console.stages() as follow:
        for advance in (*calls, *units):
            seconds = 1.0 if advance.stage == "trajectory" else 10.0 * advance.work
            time.now += 0.01 if advance.replayed else seconds
            follow(advance)
    assert capsys.readouterr().err.splitlines() == [
        "trajectory: 1 of 4",
        "trajectory: 4 of 4",
        "rounding: 1 of 5",
        "rounding: 2 of 5, about 100 s left",
        "rounding: 3 of 5, about 80 s left",
        "rounding: 4 of 5, about 20 s left",
        "rounding: 5 of 5",
    ]


def test_bars_show_the_same(time, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    with console.stages() as follow:
        time.now += 3600.0
        follow(Advance("rounding", 1, 5, 1.0, 4.0, False))
        follow(Advance("calibrating", 5, 5, 1.0, 0.0, True))
    shown = capsys.readouterr().err
    assert "about 4.0 h left" in shown and "rounding" in shown and "5/5" in shown


def test_a_reader_who_leaves_is_no_error(sd_artifact):
    """As in `halftone inspect … | head -c 1`; the pipe is closed before anything is written."""
    read, write = os.pipe()
    os.close(read)
    script = (
        "import sys\nfrom halftone.cli.console import emit, run_guarded\n"
        "sys.exit(run_guarded(lambda: emit({'many': list(range(100_000))}), debug=False))"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_stdout_on_a_full_disk_is_one_sentence():
    script = (
        "import sys\nfrom halftone.cli.console import emit, run_guarded\n"
        "sys.exit(run_guarded(lambda: emit({'a': 1}), debug=False))"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert done.returncode == 2 and "no space is left" in done.stderr and done.stderr.count("\n") == 1


def test_ctrl_c_in_a_real_process_keeps_what_is_finished(sd_folder, prompts, tmp_path, halftone):
    """It comes when the second call has just been finished."""
    script = (
        "import os, signal\nfrom halftone.calibration.checkpoint import Checkpoint\nfrom halftone.cli import main\n"
        "save = Checkpoint.save\n"
        "def save_and_interrupt(self, call, *rest):\n"
        "    save(self, call, *rest)\n"
        "    if call == 1:\n        os.kill(os.getpid(), signal.SIGINT)\n"
        "Checkpoint.save = save_and_interrupt\nmain()\n"
    )
    words = ["quantize", str(sd_folder), "--prompts", str(prompts), "--steps", "4"]
    done = subprocess.run(
        [sys.executable, "-c", script, *words, "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # what a shell starts in the background ignores Ctrl-C, and its children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("halftone: Interrupted; what is finished is kept")
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / "out.unfinished").glob("call-*.safetensors"))) == 2
    assert halftone(*words, "--out", tmp_path / "out", "--json").json["resumed_calls"] == 2
    assert halftone(*words, "--out", tmp_path / "whole", "--json").json["resumed_calls"] == 0
    assert _contents(tmp_path / "out") == _contents(tmp_path / "whole")


def _contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
