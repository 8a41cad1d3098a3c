"""The command ``halftone``: thin; every command calls one function of the library."""

from __future__ import annotations

import io
import os
import sys

from halftone.cli import interruption

__all__ = ["main"]


def main() -> None:
    """Entry point: runs the command, says what went wrong in one sentence, exits with 0, 1, 2 or 130."""
    interruption.watch()
    try:
        code = interruption.unmasked(_run)
    except interruption.Interruption:  # before there was anybody else to tell it
        interruption.ignore()
        from halftone.cli.console import tell_interrupted

        code = tell_interrupted()
    interruption.ignore()
    sys.exit(code)


def _run() -> int:
    from halftone.cli.app import app  # only now, when a Ctrl-C is told as one
    from halftone.cli.console import run_guarded

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console may know fewer characters than prompts and names have
            stream.reconfigure(errors="backslashreplace")
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):  # read while they are being imported
        os.environ.setdefault(name, "error")
    return run_guarded(lambda: app(standalone_mode=False), debug="--debug" in sys.argv)
