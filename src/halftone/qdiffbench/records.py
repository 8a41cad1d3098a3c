"""What is noted of every painted image, one JSON line each, appended as it happens and read after any kill."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from halftone.errors import InputError

SETTINGS = "painted.json"


@dataclass(frozen=True)
class ImageRecord:
    """One painted image.

    Attributes:
        index: position in the sample of the prompt set; its file is ``{index:05d}.png``.
        seconds: wall time of the pipeline's call, s.
        step_seconds: median wall time of a sampler step, s.
        memory_bytes: most memory in use while it was painted; None if that is unknown.
        drift: relative latent error to the reference after each step; empty if it was not followed.
        first: whether it was the first one of its process, which warms up and is left out of the timing.
    """

    index: int
    seconds: float
    step_seconds: float
    memory_bytes: int | None
    drift: tuple[float, ...] = ()
    first: bool = False


def file_name(index: int) -> str:
    """Of an image in its folder."""
    return f"{index:05d}.png"


def records_name(rank: int) -> str:
    """Of the file that this process alone writes: benchmarks may share a folder at the same time."""
    return f"records-{rank:03d}-{os.getpid()}.jsonl"


def append(path: Path, record: ImageRecord) -> None:
    """Adds a line; a line that a kill cut short is skipped by `read_all`."""
    with open(path, "a", encoding="utf-8") as file:
        if file.tell() > 0 and not _ends_line(path):
            file.write("\n")
        file.write(json.dumps(asdict(record)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_all(folder: Path) -> dict[int, ImageRecord]:
    """The records of all ranks whose image is there, by index; the first one of an index counts."""
    found: dict[int, ImageRecord] = {}
    for path in sorted(folder.glob("records-*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            record = _parsed(line)
            if record is not None and (folder / file_name(record.index)).is_file():
                found.setdefault(record.index, record)
    return found


def check_settings(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Refuses a folder that was begun with other settings.

    Raises:
        InputError: says in what it differs.
    """
    path = folder / SETTINGS
    if not path.exists():
        return
    try:
        stored = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged; delete the folder {folder} and run again.") from error
    same = json.loads(json.dumps(wanted))
    different = sorted(key for key in {*stored, *same} if stored.get(key) != same.get(key))
    if different:
        raise InputError(
            f"{folder} holds images of another run (it differs in: {', '.join(different)}); choose another --out,"
            " or delete that folder."
        )


def _parsed(line: str) -> ImageRecord | None:
    try:
        data = json.loads(line)
        return ImageRecord(**{**data, "drift": tuple(data["drift"])})
    except (ValueError, TypeError, KeyError):
        return None


def _ends_line(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
