"""Finished denoiser calls and rounded layers on disk, so that a killed run goes on where it was."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from halftone.errors import CalibrationError, InputError
from halftone.files import output_errors, parse_json, write_atomically

_SETTINGS = "calibration.json"
_STAMP = "key"
_KINDS = ("call", "trajectory", "rounded", "relaxing", "protecting")


class Checkpoint:
    """A folder with one safetensors file for each finished piece of one kind; at first the denoiser calls.

    Args:
        folder: where; made if missing. None keeps nothing (calibration from Python without resume).
        fingerprint: JSON-ready description of everything that determines the calibration.

    Raises:
        InputError: the folder holds the unfinished calibration of another command, or something else.
        OutputError: it cannot be written to.
    """

    def __init__(self, folder: Path | None, fingerprint: Mapping[str, Any]):
        self.folder = folder
        text = json.dumps(fingerprint, indent=2, sort_keys=True)
        self._command = hashlib.sha256(text.encode()).hexdigest()
        self._kind = _KINDS[0]
        if folder is None:
            return
        if is_unfinished(folder):
            _check_same(folder, fingerprint)
            return
        with output_errors(f"The checkpoint folder {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            _check_empty(folder)
            write_atomically(folder / _SETTINGS, text)

    def part(self, kind: str) -> Checkpoint:
        """The same folder for pieces of another kind: "call", "trajectory", "rounded", "relaxing" or "protecting"."""
        assert kind in _KINDS
        other = copy.copy(self)
        other._kind = kind
        return other

    def load(self, call: int, key: str) -> dict[str, Tensor] | None:
        """What `save` stored for this call, or None; a damaged file is as good as none, and will be written anew.

        Raises:
            CalibrationError: the file was made by another command or from another input.
        """
        if self.folder is None or not self._path(call).exists():
            return None
        try:
            tensors = load_file(self._path(call))
            stamp, _, contents = bytes(tensors.pop(_STAMP).tolist()).decode().rpartition(":")
        except (SafetensorError, KeyError, ValueError):
            return None
        if contents != _contents(stamp, tensors):
            return None
        if stamp != self._stamp(key):
            raise CalibrationError(
                f"The finished steps in {self.folder} were made from other inputs than this run computes"
                " (another machine, thread count or library version?); delete that folder and run again."
            )
        return tensors

    def save(self, call: int, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Stores a finished call atomically.

        Raises:
            OutputError: it cannot be written; what was stored before stays.
        """
        if self.folder is None:
            return
        plain = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        stamp = f"{self._stamp(key)}:{_contents(self._stamp(key), plain)}"
        stamped = {**plain, _STAMP: torch.tensor(list(stamp.encode()), dtype=torch.uint8)}
        with output_errors(f"The finished step {self._path(call)}"):
            write_atomically(self._path(call), save(stamped))

    def count(self) -> int:
        """Finished pieces of this kind in the folder, taken by their names."""
        return 0 if self.folder is None else len([*self.folder.glob(f"{self._kind}-*.safetensors")])

    def discard(self) -> None:
        """Removes what was stored, and the folder if nothing else is in it; called when the artifact is written.

        The settings go last: as long as a call's file is there, they say whose it is, also after a kill in between.
        """
        if self.folder is None:
            return
        pieces = (path for kind in _KINDS for path in self.folder.glob(f"{kind}-*.safetensors"))
        for path in (*_own_parts(self.folder), *pieces, self.folder / _SETTINGS):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _stamp(self, key: str) -> str:
        """What a call's file was made from. The input alone does not tell: call 0 starts from the same noise whatever
        the recipe."""
        return f"{self._command}:{key}"

    def _path(self, call: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{self._kind}-{call:05d}.safetensors"


def is_unfinished(folder: Path) -> bool:
    """Whether a folder holds the unfinished work of a calibration."""
    return (folder / _SETTINGS).is_file()


def read_command(folder: Path) -> dict[str, Any]:
    """The fingerprint of the command whose unfinished work is in the folder.

    Raises:
        InputError: it cannot be read.
    """
    path = folder / _SETTINGS
    try:
        return dict(parse_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged; delete the folder {path.parent} and run again.") from error


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(data.numpy().data).hexdigest()


def _contents(stamp: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of what a finished step's file holds: a flipped bit in it would go on into the artifact unnoticed."""
    lines = [stamp]
    for name, tensor in sorted(tensors.items()):
        lines.append(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:{digest(tensor)}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _own_parts(folder: Path) -> Iterator[Path]:
    """Half-written files that a kill left behind."""
    for kind in _KINDS:
        yield from folder.glob(f"{kind}-*.safetensors.part")
    yield from folder.glob(f"{_SETTINGS}.part")


def _check_empty(folder: Path) -> None:
    if set(folder.iterdir()) - set(_own_parts(folder)):
        raise InputError(
            f"{folder} is not empty and holds no unfinished work of Halftone; choose another folder for finished steps."
        )


def _check_same(folder: Path, fingerprint: Mapping[str, Any]) -> None:
    stored = read_command(folder)
    wanted = json.loads(json.dumps(fingerprint))
    different = sorted(key for key in {*stored, *wanted} if stored.get(key) != wanted.get(key))
    if different:
        raise InputError(
            f"{folder} holds the unfinished work of another command (it differs in: {', '.join(different)});"
            " run that command again to finish it, delete the folder, or choose another --out."
        )
