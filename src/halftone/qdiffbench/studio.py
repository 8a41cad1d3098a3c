"""Paints the images of all models of a benchmark, as far as they are missing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from halftone.attention import attention_words
from halftone.denoiser import find_denoiser, timestep_of
from halftone.errors import InputError
from halftone.files import output_errors, remove_stale_parts, write_atomically
from halftone.generation import GenerationSettings, default_guidance, paint
from halftone.kernels import select
from halftone.numerics import MAX_NUM_BITS, PLANE_BITS
from halftone.qdiffbench.contestants import Contestant
from halftone.qdiffbench.environment import library_versions, processor_name
from halftone.qdiffbench.foreign_images import foreign_image_set
from halftone.qdiffbench.gallery import Gallery, Progress
from halftone.qdiffbench.measure import ImageSet
from halftone.qdiffbench.memory import forget_peak
from halftone.qdiffbench.model_facts import describe
from halftone.qdiffbench.ranks import Ranks
from halftone.qdiffbench.request import BenchRequest, ProgressBar, Prompts
from halftone.schedulers import scheduler_config, scheduler_key, use_scheduler


@dataclass(frozen=True)
class Painted:
    """What one model painted, by prompt set, and what it is.

    Attributes:
        sets: the images.
        facts: fields of its `Model` record; empty for a folder of images.
        galleries: where the images lie; empty for a folder of images.
        identity: hash of all that determines the images; empty for a folder of images.
        is_older: whether an earlier run painted some of them, and took its times.
    """

    sets: Mapping[str, ImageSet]
    facts: Mapping[str, Any]
    galleries: Mapping[str, Gallery]
    identity: str = ""
    is_older: bool = False


class Studio:
    """Paints the images of all models."""

    def __init__(self, request: BenchRequest, ranks: Ranks, progress: ProgressBar, sets: Mapping[str, Prompts]) -> None:
        self.request, self.ranks, self.progress, self.sets = request, ranks, progress, sets

    def paint_reference(self, one: Contestant) -> Painted:
        """The reference's images, in the cache, with latents that others are compared with."""
        return self._paint(one, self.request.cache, None, self.request.dtype, self.request.settings, one.name)

    def paint_candidate(self, one: Contestant, reference: Painted) -> Painted:
        """A candidate's images, in the output folder or where the request wants them."""
        request = self.request
        root = request.images or request.out / "images" / _slug(one.name)
        return self._paint(one, root, reference, request.dtype, request.settings, one.name)

    def _paint(
        self,
        one: Contestant,
        root: Path,
        reference: Painted | None,
        dtype: torch.dtype,
        settings: GenerationSettings,
        label: str,
        limit: int | None = None,
    ) -> Painted:
        """The images of one contestant for all sets, painted as far as they are missing.

        Args:
            root: the folder is below it, and called by the hash of what determines the images.
            reference: whose latents they are compared with step by step; None for the reference itself.
            limit: of images in each set.
        """
        if one.is_images:
            folder = Path(one.model_source)
            seed = self.request.settings.seed
            sets = {name: foreign_image_set(folder, part.sample, seed) for name, part in self.sets.items()}
            return Painted(sets, {}, {})
        base = self._identity(one, dtype, settings)
        if reference is not None:
            base["compared_with"] = reference.identity
        self.ranks.agree(base, "what determines the images")
        folder = root / _hash(base)[:16]
        if self.ranks.is_first:
            remove_stale_parts(folder)
        expected = reference.facts.get("scheduler") if reference is not None else None
        opener = _Opener(one, self.request, dtype, folder, self.ranks, expected)
        galleries, is_older = {}, False
        for name, part in self.sets.items():
            sample = part.sample if limit is None else part.first(limit)
            # One folder for any number of prompts: a longer benchmark goes on where a shorter one ended.
            identity = {**base, "prompts_sha256": part.whole.sha256}
            place = folder / part.whole.sha256[:16]
            gallery = Gallery(place, identity, sample, settings, keep_latents=reference is None)
            with self.progress(f"painting {label}, {name}") as advance:
                followed = reference.galleries.get(name) if reference is not None else None
                is_older |= gallery.paint(opener.open, self.ranks, opener.listening(advance), followed)
            galleries[name] = gallery
        self.ranks.wait()
        sets = {name: gallery.image_set() for name, gallery in galleries.items()}
        if self.ranks.is_first:
            opener.write_facts(next(iter(galleries.values())))
        self.ranks.wait()
        return Painted(sets, opener.facts(), galleries, _hash(base), is_older)

    def paint_floor(self, reference: Contestant, kind: str, shown: Painted) -> Painted:
        """The reference once more, in another dtype or from other noise."""
        settings, dtype = self.request.settings, self.request.dtype
        if kind == "dtype":
            dtype = torch.bfloat16 if dtype != torch.bfloat16 else torch.float32
        else:
            settings = dataclasses.replace(settings, seed=settings.seed + OTHER_SEED)
        label, limit = f"noise floor ({kind})", self.request.noise_images
        return self._paint(reference, self.request.cache, shown, dtype, settings, label, limit)

    def _identity(self, one: Contestant, dtype: torch.dtype, settings: GenerationSettings) -> dict[str, Any]:
        """Everything that determines a model's images, JSON-ready."""
        device = torch.device(self.request.device)
        return {
            "model_sha256": one.sha256(),
            "scheduler": scheduler_key(self.request.scheduler) if self.request.scheduler is not None else None,
            "dtype": str(dtype),
            "device": device.type,
            # products are summed in another order by another machine or number of threads
            "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
            "threads": torch.get_num_threads() if device.type == "cpu" else None,
            "kernels": _kernels(device.type),
            "attention": attention_words() if device.type == "cpu" else None,
            **dataclasses.asdict(settings),
            "versions": library_versions(),
        }


FACTS = "facts.json"
TIMESTEPS = "denoiser_timesteps"
OTHER_SEED = 1_000_003  # far from any index, so that no two images of a set share their noise


class _Opener:
    """Opens a contestant's pipeline once, when the first image is missing, and keeps its facts beside the images."""

    def __init__(
        self,
        one: Contestant,
        request: BenchRequest,
        dtype: torch.dtype,
        folder: Path,
        ranks: Ranks,
        scheduler: str | None,
    ) -> None:
        self.one, self.request, self.dtype, self.folder, self.ranks = one, request, dtype, folder, ranks
        self.scheduler = scheduler
        self._pipeline: Any = None
        self._timesteps: list[float] = []
        self._ear: RemovableHandle | None = None

    def open(self) -> Any:
        """The pipeline.

        Raises:
            InputError: it samples in another way than the reference.
        """
        if self._pipeline is None:
            self._pipeline = self.one.open(self.dtype, self.request.device)
            if self.request.scheduler is not None:
                use_scheduler(self._pipeline, self.request.scheduler)
            sampler = type(self._pipeline.scheduler).__name__
            if self.scheduler not in (None, sampler):
                raise InputError(
                    f"{self.one.source} samples with {sampler} and the reference with {self.scheduler};"
                    " give --scheduler to use one for all."
                )
            forget_peak(self.request.device)
            denoiser = find_denoiser(self._pipeline).module
            self._ear = denoiser.register_forward_pre_hook(self._listen, with_kwargs=True)
        return self._pipeline

    def listening(self, progress: Progress) -> Progress:
        """The same progress; after the first image the denoiser's timesteps are known and not looked at any more, and
        the first rank writes the facts down."""

        def advance(done: int, total: int) -> None:
            if self._ear is not None:
                self._stop_listening()
                if self.ranks.is_first:
                    self._keep(self._pipeline)
            progress(done, total)

        return advance

    def write_facts(self, example: Gallery) -> None:
        """Makes sure that the facts are written, of this run or an earlier one.

        Args:
            example: whose first image is painted once more, and not kept, where no run came to write the facts down.
        """
        if not self.facts():
            pipeline = self.open()
            paint(pipeline, example.prompts.prompts[0], example.seed_of(0), example.settings)
            self._stop_listening()
            self._keep(pipeline)

    def facts(self) -> dict[str, Any]:
        """What is written of the model; empty if nothing is yet."""
        path = self.folder / FACTS
        found = dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
        return found if TIMESTEPS in found else {}

    def _listen(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            values = torch.as_tensor(timestep_of(module, args, kwargs)).flatten()
        except InputError:
            return  # a denoiser without timesteps is no artifact, and can be measured all the same
        self._timesteps += [float(value) for value in dict.fromkeys(values.tolist())]

    def _stop_listening(self) -> None:
        if self._ear is not None:
            self._ear.remove()
            self._ear = None

    def _keep(self, pipeline: Any) -> None:
        folder = None if self.one.library else self.one.folder()
        facts = {
            **describe(pipeline, folder, self.one.library, self.one.scheme, self._timesteps),
            TIMESTEPS: self._timesteps,
            "scheduler": type(pipeline.scheduler).__name__,
            "scheduler_config": scheduler_config(pipeline),
            "default_guidance": default_guidance(pipeline),
            "sha256": self.one.sha256(),
        }
        with output_errors(f"The folder {self.folder}"):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / FACTS, json.dumps(facts, indent=2) + "\n", shared=True)


def _kernels(device_type: str) -> dict[str, list[str]]:
    """What runs an artifact's layers here, narrow and relaxed ones: two kernels differ in last bits."""
    found = {}
    for operation in ("linear", "conv2d"):
        for bits in (PLANE_BITS, MAX_NUM_BITS):
            kernel = select(operation, device_type, bits)
            present = [name for name, why_not in kernel.accelerators.items() if why_not() is None]
            found[f"{operation}, {bits} bits"] = [kernel.name, *present]
    return found


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "model"


def _hash(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
