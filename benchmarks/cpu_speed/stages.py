"""What is made once and kept: weights, reference outputs, artifacts and converted graphs, each in a child of its own.

A stage leaves a folder with ``stage.json``, which says what it depended on; another configuration or another version
of a library makes it anew. The folder appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cpu_speed.jobs import Job
from benchmarks.cpu_speed.models import Model, smallest_of, unet_config

#: Counted up when stages make something else than before.
VERSION = 1
STAMP = "stage.json"
_ROOMS = ("recipe.py", "recipes/*.yaml", "artifact/*.py", "layers/*.py", "denoiser.py", "numerics.py")


@dataclass(frozen=True)
class Stage:
    """Something that peers start from.

    Attributes:
        name: also of its folder.
        words: what it is, for progress and reasons.
        make: writes it into an empty folder; what it returns is kept in the stamp.
        needs: stages before it.
        packages: whose versions it depends on.
        of_weights: whether it is the same for all image sizes.
    """

    name: str
    words: str
    make: Callable[[Job, Path], dict[str, Any]]
    needs: tuple[str, ...] = ()
    packages: tuple[str, ...] = ("torch", "diffusers")
    of_weights: bool = True

    def job(self, job: Job) -> Job:
        """The job at the size that the stage works at."""
        return Job(smallest_of(job.of.weights).name, job.threads, job.work) if self.of_weights else job

    def folder(self, job: Job) -> Path:
        return job.folder(self.name, self.of_weights)


def run(stage: Stage, job: Job) -> dict[str, Any]:
    """Makes a stage, unless it is there."""
    target = stage.folder(job)
    if is_made(stage, job):
        return read_stamp(target)
    part = target.with_name(f"{target.name}.part")
    for folder in (part, target):
        shutil.rmtree(folder, ignore_errors=True)
    part.mkdir(parents=True)
    facts = {**stage.make(stage.job(job), part), "key": key_of(stage, job.of)}
    (part / STAMP).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    part.rename(target)
    return facts


def is_made(stage: Stage, job: Job) -> bool:
    """Whether it is there, made of the same things."""
    try:
        return read_stamp(stage.folder(job))["key"] == key_of(stage, job.of)
    except (OSError, ValueError, KeyError):
        return False


def read_stamp(folder: Path) -> dict[str, Any]:
    """What a stage told."""
    return dict(json.loads((folder / STAMP).read_text(encoding="utf-8")))


def key_of(stage: Stage, model: Model) -> str:
    """A digest of what a stage depends on."""
    of = smallest_of(model.weights) if stage.of_weights else model
    content = _content_of(of.source) if of.source is not None else unet_config(of)
    facts = [VERSION, stage.name, of.name, content, {name: version_of(name) for name in stage.packages}]
    if "halftone" in stage.packages:
        facts.append(_sources())  # an artifact is what this checkout makes of the weights
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _sources() -> str:
    """A digest of the sources that decide what an artifact is."""
    import halftone

    root = Path(halftone.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for room in _ROOMS for path in root.glob(room)):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def _content_of(source: str) -> str:
    from halftone.sources import content_sha256

    return content_sha256(source)


def version_of(package: str) -> str | None:
    """Of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def in_order(wanted: set[str], stages: dict[str, Stage]) -> list[Stage]:
    """The wanted stages and those that they need, each after what it needs."""
    order: dict[str, Stage] = {}

    def add(name: str) -> None:
        for before in stages[name].needs:
            add(before)
        order.setdefault(name, stages[name])

    for name in stages:
        if name in wanted:
            add(name)
    return list(order.values())
