"""Killed or interrupted, the same command goes on where it was and ends as if nothing had happened."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_killed_and_interrupted_commands_end_as_undisturbed_ones(tmp_path):
    """quantize: the same bytes. generate, bench: nothing finished is painted again or lost. See crashes.py."""
    script = Path(__file__).with_name("crashes.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["quantize"] == {"kill": 4, "interrupt": 4}
    assert counts["generate"] >= 10
    assert counts["bench"]["kills"] == 10 and counts["bench"]["images"] == 5 + 4 + 4 + 5 + 5
