"""The command ``halftone``: thin; every command calls one function of the library."""

from __future__ import annotations

import os
import sys

from halftone.cli.app import app
from halftone.cli.console import run_guarded

__all__ = ["app", "main"]


def main() -> None:
    """Entry point: runs the command, says what went wrong in one sentence, exits with 0, 1, 2 or 130."""
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):  # read while they are being imported
        os.environ.setdefault(name, "error")
    sys.exit(run_guarded(lambda: app(standalone_mode=False), debug="--debug" in sys.argv))
