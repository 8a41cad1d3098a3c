"""Two processes share a benchmark and find what one finds."""

import json
import os
import subprocess
import sys

import pytest

from halftone.cli.app import app
from halftone.cli.console import run_guarded
from halftone.qdiffbench.ranks import Ranks, processes

VOLATILE = {"seconds_per_image", "seconds_per_step", "peak_memory_bytes", "created", "commands", "processes"}


def _stable(value):
    if isinstance(value, dict):
        return {key: _stable(one) for key, one in value.items() if key not in VOLATILE}
    return [_stable(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_every_image_has_one_process(world, count):
    shares = [list(Ranks(rank, world).mine(count)) for rank in range(world)]
    assert sorted(index for share in shares for index in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_is_no_group(monkeypatch):
    for value in (None, "", "1"):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        if value is not None:
            monkeypatch.setenv("WORLD_SIZE", value)
        assert processes() == 1 and Ranks.from_environment() == Ranks(0, 1)


@pytest.mark.parametrize("prefix", ["PMI_", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_"])
def test_ranks_of_mpi_are_understood(prefix, monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv(f"{prefix}SIZE", "4")
    monkeypatch.setenv(f"{prefix}RANK", "3")
    assert processes() == 4 and os.environ["RANK"] == "3"


DIFFERENT = """
import sys
from halftone.errors import InputError
from halftone.qdiffbench.ranks import Ranks
ranks = Ranks.from_environment()
ranks.agree({"same": 1}, "what they are")
try:
    ranks.agree({"same": 1, "threads": ranks.rank}, "what they are")
except InputError as error:
    print(error)
if ranks.is_first:
    sys.exit(0)
try:
    ranks.wait()
except InputError as error:
    print(error)
"""


def test_ranks_that_differ_or_end_are_told(tmp_path):
    (tmp_path / "ranks.py").write_text(DIFFERENT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*launcher, str(tmp_path / "ranks.py")], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.stdout.count("Process 1 differs from the first one in what they are: threads") == 2
    assert done.stdout.count("Another process of this benchmark has ended") == 1


def test_two_processes_give_the_results_of_one(sd_folder, sd_artifact, clip_folder, tmp_path):
    """torchrun with gloo: each paints every second image, and the first one measures."""
    (tmp_path / "set.txt").write_text("".join(f"a red cube {letter}\n" for letter in "abcdefg"))

    def words(name):
        what = ["bench", sd_folder, f"ours={sd_artifact}", "--prompts", f"one={tmp_path / 'set.txt'}", "--steps", 2]
        where = ["--out", tmp_path / name, "--cache", tmp_path / f"{name}-cache", "--clip", clip_folder]
        return [str(word) for word in [*what, "--num-images", 5, "--noise-floor", "seed", "--json", *where]]

    alone = run_guarded(lambda: app(words("one"), standalone_mode=False), debug=False)
    assert alone == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "halftone"]
    done = subprocess.run(
        [*launcher, *words("two")],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    printed = json.loads(done.stdout)
    one, two = (json.loads((tmp_path / name / "results.json").read_text(encoding="utf-8")) for name in ("one", "two"))
    assert printed == two and two["settings"]["processes"] == 2
    assert _stable(one) == _stable(two)
    for records in (tmp_path / "two-cache").rglob("records-*.jsonl"):
        indices = [json.loads(line)["index"] for line in records.read_text().splitlines()]
        assert indices == ([0, 2, 4] if records.name.startswith("records-000-") else [1, 3])
    assert len(list((tmp_path / "two-cache").rglob("records-001-*.jsonl"))) == 2  # the reference and its floor
    assert (tmp_path / "two" / "report.html").is_file()
