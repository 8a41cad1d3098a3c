"""Commands run in this process, as `halftone …` runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from halftone.cli.app import app
from halftone.cli.console import run_guarded


@dataclass(frozen=True)
class Ran:
    """What a command left: exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        """stdout, all of which must be one JSON object."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found

    @property
    def sentence(self) -> str:
        """What wrong input gets: exit code 2, nothing on stdout, one line of complaint after what was done so far."""
        assert self.code == 2, self.err
        assert self.out == "", self.out
        complaints = [line for line in self.err.splitlines() if line.startswith("halftone: ")]
        assert complaints == self.err.splitlines()[-1:], self.err
        assert "Traceback" not in self.err and "fault of Halftone" not in self.err
        return complaints[0].removeprefix("halftone: ")


Command = Callable[..., Ran]


@pytest.fixture
def halftone(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """``halftone("inspect", folder, "--json")``; relative paths lie in tmp_path, and so does the cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HALFTONE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.argv", ["halftone"])

    def run(*arguments: object) -> Ran:
        words = [str(argument) for argument in arguments]
        capfd.readouterr()
        code = run_guarded(lambda: app(words, standalone_mode=False), debug="--debug" in words)
        return Ran(code, *capfd.readouterr())

    return run


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A file of two prompts."""
    path = tmp_path / "prompts.txt"
    path.write_text("a red cube\na blue ball\n", encoding="utf-8")
    return path
