"""What all commands share: exit codes, one sentence, nothing but results on stdout."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest

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
    words = ["quantize", str(sd_folder), "--prompts", str(prompts), "--steps", "40"]
    steps = tmp_path / "out.unfinished"
    child = subprocess.Popen(
        [sys.executable, "-m", "halftone", *words, "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # what a shell starts in the background ignores Ctrl-C, and its children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while child.poll() is None and not list(steps.glob("call-*.safetensors")):
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=120)
    assert (child.returncode, out) == (130, ""), err
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("halftone: Interrupted; what is finished is kept")
    assert not (tmp_path / "out").exists()
    finished = len(list(steps.glob("call-*.safetensors")))
    assert 0 < finished < 40
    assert halftone(*words, "--out", tmp_path / "out", "--json").json["resumed_calls"] == finished
    assert halftone(*words, "--out", tmp_path / "whole", "--json").json["resumed_calls"] == 0
    assert _contents(tmp_path / "out") == _contents(tmp_path / "whole")


def _contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
