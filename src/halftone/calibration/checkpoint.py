"""Finished denoiser calls of a calibration on disk, so that a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from halftone.errors import CalibrationError, InputError
from halftone.files import write_atomically

_SETTINGS = "calibration.json"


class Checkpoint:
    """A folder with one safetensors file for each finished denoiser call.

    Args:
        folder: where; made if missing. None keeps nothing (calibration from Python without resume).
        fingerprint: JSON-ready description of everything that determines the calibration.

    Raises:
        InputError: the folder holds the unfinished calibration of another command.
    """

    def __init__(self, folder: Path | None, fingerprint: Mapping[str, Any]):
        self.folder = folder
        if folder is None:
            return
        path = folder / _SETTINGS
        text = json.dumps(fingerprint, indent=2, sort_keys=True)
        if path.exists():
            _check_same(path, fingerprint)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text)

    def load(self, call: int, key: str) -> dict[str, Tensor] | None:
        """What `save` stored for this call, or None.

        Raises:
            CalibrationError: the file is damaged, or the call's input is not the one it was made from.
        """
        if self.folder is None or not self._path(call).exists():
            return None
        path = self._path(call)
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise CalibrationError(
                f"The finished step {path} is damaged ({error}); delete that file and run again."
            ) from error
        if bytes(tensors.pop("key").tolist()).decode() != key:
            raise CalibrationError(
                f"The finished steps in {self.folder} were made from other inputs than this run computes"
                " (another machine, thread count or library version?); delete that folder and run again."
            )
        return tensors

    def save(self, call: int, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Stores a finished call atomically."""
        if self.folder is None:
            return
        stamped = {**tensors, "key": torch.tensor(list(key.encode()), dtype=torch.uint8)}
        write_atomically(self._path(call), save({k: v.contiguous().cpu() for k, v in stamped.items()}))

    def discard(self) -> None:
        """Removes the folder; called when the artifact is written."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, call: int) -> Path:
        assert self.folder is not None
        return self.folder / f"call-{call:05d}.safetensors"


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    data = tensor.detach().cpu().contiguous().view(torch.uint8) if tensor.ndim else tensor.detach().cpu()
    return hashlib.sha256(data.numpy().tobytes()).hexdigest()


def _check_same(path: Path, fingerprint: Mapping[str, Any]) -> None:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged; delete the folder {path.parent} and run again.") from error
    wanted = json.loads(json.dumps(fingerprint))
    different = sorted(key for key in {*stored, *wanted} if stored.get(key) != wanted.get(key))
    if different:
        raise InputError(
            f"{path.parent} holds the unfinished work of another command (it differs in: {', '.join(different)});"
            " run that command again to finish it, delete the folder, or choose another --out."
        )
