"""Ctrl-C at any moment is told as one, ends with 130, and never looks like a fault of Halftone or of the model."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from halftone.cli import console, interruption

# A process that gets a real SIGINT while it imports the module MOMENT; how it is done there differs.
SCRIPT = """
import os, signal, sys

moment = sys.argv.pop(1)

class AtImport:
    def find_spec(self, name, path=None, target=None):
        if name == moment:
            sys.meta_path.remove(self)
            {strike}

sys.meta_path.insert(0, AtImport())
from halftone.cli import main
main()
"""
KILL = "os.kill(os.getpid(), signal.SIGINT)"
STRIKES = {
    "plain": KILL,
    "in a text that is executed": f"exec({KILL!r})",
    "turned into another error": f"""
            try:
                {KILL}
            except KeyboardInterrupt:
                raise ImportError('cannot import it') from None""",
}


def _interrupted(moment, strike, *words):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(strike=strike), moment, *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def _check_told(done):
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    assert done.stderr.startswith("halftone: Interrupted") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("strike", STRIKES)
@pytest.mark.parametrize("moment", ["typer", "halftone.cli.console", "halftone.observers"])
def test_during_imports(moment, strike):
    """`recipes` needs no torch: it is quick to get there."""
    _check_told(_interrupted(moment, STRIKES[strike], "recipes"))


def test_while_a_library_imports_what_a_model_needs(sd_folder, prompts, tmp_path):
    """transformers makes a ModuleNotFoundError or an ImportError of whatever goes wrong in its lazy imports."""
    words = ["quantize", sd_folder, "--prompts", prompts, "--steps", "1", "--out", tmp_path / "out"]
    strike = STRIKES["turned into another error"]
    _check_told(_interrupted("transformers.models.clip.modeling_clip", strike, *words))


@pytest.fixture
def watched(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(interruption, "_noticed", False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    interruption.watch()
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("kind", [OSError, RuntimeError, SystemExit])
def test_error_that_a_ctrl_c_was_made_into(kind, watched, capsys):
    def read_weights():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise kind("Unable to load weights from checkpoint file") from None

    assert console.run_guarded(read_weights, debug=False) == 130
    assert capsys.readouterr().err.startswith("halftone: Interrupted")


def test_swallowed_ctrl_c_is_heard_at_the_next_step(watched, capsys):
    seen = []

    def work():
        with console.progress("working") as advance:
            for number in range(3):
                seen.append(number)
                with suppress(KeyboardInterrupt):
                    os.kill(os.getpid(), signal.SIGINT)
                advance(number + 1, 3)

    assert console.run_guarded(work, debug=False) == 130 and seen == [0]


def test_ignored_ctrl_c_stays_ignored(watched):
    """As for what a shell starts in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interruption.watch()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
