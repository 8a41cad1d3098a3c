"""An artifact appears whole or not at all."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from pipelines import tiny_sd
from safetensors import SafetensorError

import halftone
from halftone import locks
from halftone.artifact import save as save_module
from halftone.artifact.manifest import check_files
from halftone.errors import ArtifactError, InputError


@pytest.fixture(scope="module")
def result():
    return halftone.quantize(tiny_sd(), "pcr-w8a8", ["x"], num_inference_steps=2)


def _files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_empty_folder_and_missing_parents_are_fine(result, tmp_path):
    (tmp_path / "empty").mkdir()
    assert result.save(tmp_path / "empty") == tmp_path / "empty"
    result.save(str(tmp_path / "a" / "b" / "out"))
    assert _files(tmp_path / "a" / "b" / "out") == _files(tmp_path / "empty")
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "a"}


def test_folder_that_cannot_be_replaced_is_refused_and_one_in_it_is_not(result, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match="is the current folder"):
        result.save(".")
    result.save("in-it")
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(type(tmp_path), "is_mount", lambda path: path.name == "volume")
    with pytest.raises(InputError, match="is a mount point"):
        result.save(tmp_path / "volume")
    assert {path.name for path in tmp_path.iterdir()} == {"here", "volume"}
    assert not list((tmp_path / "volume").iterdir())
    with pytest.raises(InputError, match=r"^/ is no place for an output"):
        result.save("/")


@pytest.mark.parametrize("exists", [True, False])
def test_link_to_an_empty_or_missing_folder_is_followed(exists, result, tmp_path):
    if exists:
        (tmp_path / "disk" / "real").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")
    result.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "real" / "halftone.json").is_file()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real"]


def test_second_writer_is_refused_and_the_first_one_ends_whole(result, tmp_path, monkeypatch):
    """The second comes when the first has written everything and not yet moved it into its place."""
    refused, real = [], save_module.sync_tree

    def meanwhile(folder):
        with ThreadPoolExecutor(1) as other:
            refused.append(other.submit(result.save, tmp_path / "out").exception())
        real(folder)

    monkeypatch.setattr(save_module, "sync_tree", meanwhile)
    result.save(tmp_path / "out")
    assert isinstance(refused[0], InputError) and "Another command is writing to" in str(refused[0])
    check_files(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_without_locks_writers_do_not_touch_each_others_files(result, tmp_path, monkeypatch):
    """As on file systems that have none."""
    real = save_module.sync_tree

    def other(folder):
        monkeypatch.setattr(save_module, "sync_tree", real)
        result.save(tmp_path / "out")
        real(folder)

    monkeypatch.setattr(locks, "_acquired", lambda *_: None)
    monkeypatch.setattr(save_module, "sync_tree", other)
    with pytest.raises(ArtifactError, match="could not be written"):
        result.save(tmp_path / "out")
    check_files(tmp_path / "out")


def test_what_is_there_is_never_overwritten(result, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("text")
    with pytest.raises(InputError, match="is not empty"):
        result.save(tmp_path / "full")
    with pytest.raises(InputError, match="is a file"):
        result.save(tmp_path / "file")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "years of work" and len(list(tmp_path.iterdir())) == 2


def test_saving_again_changes_nothing_and_another_artifact_is_refused(result, tmp_path):
    result.save(tmp_path / "out")
    before = _files(tmp_path / "out")
    result.save(tmp_path / "out")
    other = halftone.quantize(tiny_sd(), "pcr-w8a8", ["y"], num_inference_steps=2)
    with pytest.raises(InputError, match="is not empty"):
        other.save(tmp_path / "out")
    assert _files(tmp_path / "out") == before and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_rest_of_a_killed_run_is_replaced(result, tmp_path):
    rest, others = tmp_path / ".out.0a1b.part", tmp_path / ".out.other.0a1b.part"
    for folder in (rest, others):
        (folder / "unet").mkdir(parents=True)
        (folder / "unet" / "old.safetensors").write_text("half")
    result.save(tmp_path / "out")
    assert not (tmp_path / "out" / "unet" / "old.safetensors").exists() and not rest.exists() and others.exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),  # what the tokenizers library raises
    ],
)
def test_full_disk_is_one_sentence_and_leaves_nothing(error, result, tmp_path, monkeypatch):
    real = type(result.pipeline.unet).save_pretrained

    def fail(self, folder, **arguments):
        real(self, folder, **arguments)
        raise error

    monkeypatch.setattr(type(result.pipeline.unet), "save_pretrained", fail)
    with pytest.raises(ArtifactError, match=r"no space is left on the device; nothing was left behind\.$"):
        result.save(tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []


def test_write_that_the_system_refuses_is_one_sentence_and_leaves_nothing(result, tmp_path):
    """A real one: the system lets no file grow beyond 20 kB."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(ArtifactError, match="could not be written") as caught:
            result.save(tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", ["write_atomically", "sync_tree", "file_sha256"])
def test_interruption_leaves_nothing(stage, result, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(save_module, stage, interrupt)
    with pytest.raises(KeyboardInterrupt):
        result.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_everything_is_on_the_disk_before_the_folder_appears(result, tmp_path, monkeypatch):
    order = []
    sync, replace = save_module.sync_tree, os.replace

    def note_sync(folder):
        assert (folder / "halftone.json").is_file() and not (tmp_path / "out").exists()
        order.append("sync")
        sync(folder)

    def note_replace(source, target):
        order.append(os.path.basename(target))
        replace(source, target)

    monkeypatch.setattr(save_module, "sync_tree", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    result.save(tmp_path / "out")
    assert order[-3:] == ["halftone.json", "sync", "out"]


def test_its_name_is_on_the_disk_before_the_finished_steps_are_removed(tmp_path, monkeypatch):
    """Also when another process of the same command has put it there."""
    order, unlink = [], type(tmp_path).unlink

    def note_unlink(path, **options):
        order.append(path.suffix)
        unlink(path, **options)

    for _ in range(2):
        made = halftone.quantize(
            tiny_sd(), "pcr-w8a8", ["x"], num_inference_steps=2, checkpoint_folder=tmp_path / "steps"
        )
        with monkeypatch.context() as patch:
            patch.setattr(
                save_module, "sync_folder", lambda folder: order.append((folder, (tmp_path / "out").exists()))
            )
            patch.setattr(type(tmp_path), "unlink", note_unlink)
            made.save(tmp_path / "out")
        assert order.index((tmp_path, True)) < order.index(".safetensors")
        order.clear()


def test_saved_artifact_does_not_depend_on_the_pipeline_any_more(result, tmp_path):
    result.save(tmp_path / "out")
    latents = halftone.load(tmp_path / "out")("x", num_inference_steps=1, output_type="latent").images
    shutil.rmtree(tmp_path / "out")
    assert torch.isfinite(latents).all()


RANKS = """
import sys
import torch.distributed as dist
from pipelines import tiny_sd
import halftone
dist.init_process_group("gloo")
result = halftone.quantize(tiny_sd(), "pcr-w8a8", ["x"], num_inference_steps=1)
result.save(f"{sys.argv[1]}/{dist.get_rank()}")
dist.barrier()
"""


def test_every_process_of_a_group_writes_a_whole_artifact(tmp_path):
    """transformers writes on the first one alone."""
    (tmp_path / "ranks.py").write_text(RANKS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": path}
    command = [*launcher, str(tmp_path / "ranks.py"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / "out" / rank / "halftone.json").read_text()) for rank in "01")
    assert first == second and "text_encoder/model.safetensors" in first["files"]


def test_half_an_artifact_is_none(result, tmp_path, monkeypatch):
    monkeypatch.setattr(type(result.pipeline.vae), "save_pretrained", lambda self, folder, **_: os.makedirs(folder))
    with pytest.raises(ArtifactError, match="the weights of the vae were not written; nothing was left behind"):
        result.save(tmp_path / "out")
    assert not list(tmp_path.iterdir())
