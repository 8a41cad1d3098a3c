"""The images of one model for one prompt set: painted once, resumable to the image, shared by ranks."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save

from halftone.errors import InputError
from halftone.files import output_errors, write_atomically
from halftone.generation import GenerationSettings, paint
from halftone.qdiffbench.fidelity import latent_error
from halftone.qdiffbench.image_files import read_image
from halftone.qdiffbench.measure import ImageSet
from halftone.qdiffbench.memory import MemoryWatch
from halftone.qdiffbench.prompt_sets import PromptSet
from halftone.qdiffbench.ranks import Ranks
from halftone.qdiffbench.records import SETTINGS, ImageRecord, append, check_settings, file_name, read_all, records_name

#: So many images of a set are followed step by step: their latents are what takes room on the disk.
FOLLOWED = 256
IMAGES_MANIFEST = "manifest.jsonl"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Gallery:
    """A folder with ``00000.png`` …, records of each image, and latents of the followed ones if `keep_latents`.

    Attributes:
        folder: where; made when painting starts.
        identity: everything that determines the images, JSON-ready.
        prompts: the sample.
        settings: of the pipeline's call; image i is seeded with ``settings.seed + i``.
    """

    folder: Path
    identity: Mapping[str, Any]
    prompts: PromptSet
    settings: GenerationSettings
    keep_latents: bool = False

    def missing(self, ranks: Ranks) -> list[int]:
        """Indices that this rank still has to paint."""
        done = read_all(self.folder)
        return [index for index in ranks.mine(len(self.prompts.entries)) if index not in done]

    def paint(
        self,
        open_pipeline: Callable[[], Any],
        ranks: Ranks,
        progress: Progress,
        reference: Gallery | None = None,
        on_image: Callable[[int], object] = lambda seed: None,
    ) -> bool:
        """Paints what is missing of this rank's share; opens the pipeline only if something is.

        Args:
            reference: whose kept latents the followed images are compared with, step by step.
            on_image: called with the seed of each image before it is painted.

        Returns:
            Whether an earlier run had painted some of the share.

        Raises:
            InputError: the folder was begun with other settings.
            OutputError: an image could not be written; those before it stay.
        """
        check_settings(self.folder, self.identity)
        with output_errors(f"The folder {self.folder}"):
            self.folder.mkdir(parents=True, exist_ok=True)
            if ranks.is_first:
                write_atomically(self.folder / SETTINGS, json.dumps(self.identity, indent=2) + "\n", shared=True)
                write_atomically(self.folder / IMAGES_MANIFEST, self._manifest(), shared=True)
        wanted, share = self.missing(ranks), len(ranks.mine(len(self.prompts.entries)))
        if not wanted:
            progress(share, share)
            return share > 0
        pipeline = open_pipeline()
        for done, index in enumerate(wanted, start=1):
            on_image(self.seed_of(index))
            record = self._paint_one(pipeline, index, reference, first=done == 1)
            with output_errors(f"The record of the image {self.folder / file_name(index)}"):
                append(self.folder / records_name(ranks.rank), record)
            progress(share - len(wanted) + done, share)
        return len(wanted) < share

    def records(self) -> dict[int, ImageRecord]:
        """Of all images, by index.

        Raises:
            InputError: some are not painted yet.
        """
        found = read_all(self.folder)
        missing = [index for index in range(len(self.prompts.entries)) if index not in found]
        if missing:
            raise InputError(f"{self.folder} lacks the image {file_name(missing[0])}; run the same command again.")
        return found

    def image_set(self) -> ImageSet:
        """All images, as they are measured.

        Raises:
            InputError: some are not painted yet.
        """
        records, indices = self.records(), range(len(self.prompts.entries))
        return ImageSet(
            [self.folder / file_name(index) for index in indices],
            [records[index].drift for index in indices],
            [self.seed_of(index) for index in indices],
            keeps_features=True,
        )

    def image(self, index: int) -> npt.NDArray[np.uint8]:
        """uint8 (height, width, 3)."""
        return read_image(self.folder / file_name(index))

    def seed_of(self, index: int) -> int:
        """Of the initial noise of an image."""
        return self.settings.seed + index

    def latents(self, index: int) -> torch.Tensor | None:
        """Kept latents (steps, …) of an image, float16; None if it was not followed."""
        path = self._latents_path(index)
        return load_file(path)["latents"] if path.is_file() else None

    def _manifest(self) -> str:
        """What to paint elsewhere to take part, and what makes this folder a contestant of its own."""
        rows = [
            {"index": index, "prompt": entry.prompt, "seed": self.seed_of(index), "file": file_name(index)}
            for index, entry in enumerate(self.prompts.entries)
        ]
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def _paint_one(self, pipeline: Any, index: int, reference: Gallery | None, first: bool) -> ImageRecord:
        memory = MemoryWatch(torch.device(getattr(pipeline, "device", "cpu")))
        watch = _StepWatch(index < FOLLOWED, memory)
        prompt, seed = self.prompts.entries[index].prompt, self.seed_of(index)
        with memory:
            start = time.perf_counter()
            image = paint(pipeline, prompt, seed, self.settings, watch.on_step)
            seconds = time.perf_counter() - start
        drift: tuple[float, ...] = ()
        expected = reference.latents(index) if reference is not None and watch.latents else None
        if expected is not None:
            drift = _drift(torch.stack(watch.latents), expected)
        with output_errors(f"The image {self.folder / file_name(index)}"):
            if self.keep_latents and watch.latents:
                write_atomically(self._latents_path(index), save({"latents": torch.stack(watch.latents)}), shared=True)
            data = io.BytesIO()
            image.save(data, format="PNG")
            write_atomically(self.folder / file_name(index), data.getvalue(), shared=True)
        return ImageRecord(index, seconds, watch.median_seconds(seconds), memory.peak, drift, first)

    def _latents_path(self, index: int) -> Path:
        return self.folder / f"{index:05d}.safetensors"


class _StepWatch:
    """Looks at every sampler step of one image."""

    def __init__(self, followed: bool, memory: MemoryWatch) -> None:
        self.followed, self.memory = followed, memory
        self.latents: list[torch.Tensor] = []
        self._times = [time.perf_counter()]

    def on_step(self, step: int, latents: torch.Tensor) -> None:
        if self.followed:
            # float16 halves the room; its rounding (5e-4) is the same for equal latents
            self.latents.append(latents.detach().to("cpu", torch.float16)[0])
        self.memory.look()
        self._times.append(time.perf_counter())

    def median_seconds(self, whole: float) -> float:
        """Of a step; of the first one only the later ones tell, since it includes encoding the text."""
        spans = np.diff(self._times)[1:]
        return float(np.median(spans)) if len(spans) else whole


def _drift(latents: torch.Tensor, expected: torch.Tensor) -> tuple[float, ...]:
    if latents.shape != expected.shape:
        raise InputError(
            f"The candidate's latents have the shape {tuple(latents.shape)} and the reference's"
            f" {tuple(expected.shape)}; compare models of one resolution and number of steps."
        )
    return tuple(latent_error(a, b) for a, b in zip(latents, expected, strict=True))
