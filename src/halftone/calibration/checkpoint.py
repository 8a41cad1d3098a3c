"""Finished denoiser calls of a calibration on disk, so that a killed run goes on where it was."""

from __future__ import annotations

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
from halftone.files import output_errors, write_atomically

_SETTINGS = "calibration.json"
_CALLS = "call-*.safetensors"


class Checkpoint:
    """A folder with one safetensors file for each finished denoiser call.

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
        if folder is None:
            return
        if is_unfinished(folder):
            _check_same(folder, fingerprint)
            return
        with output_errors(f"The checkpoint folder {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            _check_empty(folder)
            write_atomically(folder / _SETTINGS, text)

    def load(self, call: int, key: str) -> dict[str, Tensor] | None:
        """What `save` stored for this call, or None.

        Raises:
            CalibrationError: the file is damaged, or was made by another command or from another input.
        """
        if self.folder is None or not self._path(call).exists():
            return None
        path = self._path(call)
        try:
            tensors = load_file(path)
            made_from = bytes(tensors.pop("key").tolist()).decode()
        except (SafetensorError, KeyError, ValueError) as error:
            raise CalibrationError(
                f"The finished step {path} is damaged ({error}); delete that file and run again."
            ) from error
        if made_from != self._stamp(key):
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
        stamped = {**tensors, "key": torch.tensor(list(self._stamp(key).encode()), dtype=torch.uint8)}
        with output_errors(f"The finished step {self._path(call)}"):
            write_atomically(self._path(call), save({k: v.contiguous().cpu() for k, v in stamped.items()}))

    def discard(self) -> None:
        """Removes what was stored, and the folder if nothing else is in it; called when the artifact is written.

        The settings go last: as long as a call's file is there, they say whose it is, also after a kill in between.
        """
        if self.folder is None:
            return
        for path in (*_own_parts(self.folder), *self.folder.glob(_CALLS), self.folder / _SETTINGS):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _stamp(self, key: str) -> str:
        """What a call's file was made from. The input alone does not tell: call 0 starts from the same noise whatever
        the recipe."""
        return f"{self._command}:{key}"

    def _path(self, call: int) -> Path:
        assert self.folder is not None
        return self.folder / f"call-{call:05d}.safetensors"


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
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged; delete the folder {path.parent} and run again.") from error


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(data.numpy().data).hexdigest()


def _own_parts(folder: Path) -> Iterator[Path]:
    """Half-written files that a kill left behind."""
    yield from folder.glob(f"{_CALLS}.part")
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
