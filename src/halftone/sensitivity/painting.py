"""Paints the images of all variants, as far as they are missing, each resumable to the image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from halftone.denoiser import find_denoiser
from halftone.errors import InputError
from halftone.microbatch import Forward, replaced_forward
from halftone.qdiffbench.contestants import Contestant
from halftone.qdiffbench.gallery import Gallery, Progress
from halftone.qdiffbench.measure import ImageSet
from halftone.qdiffbench.ranks import Ranks
from halftone.qdiffbench.request import Prompts
from halftone.qdiffbench.studio import TIMESTEPS, Painted
from halftone.schedulers import use_scheduler
from halftone.sensitivity.forwards import mixed_forward, perturbed_forward
from halftone.sensitivity.request import SensitivityRequest
from halftone.sensitivity.steps import step_finder
from halftone.sensitivity.variants import PERTURB, Variant

__all__ = ["Painter"]


class Painter:
    """One full-precision pipeline for all variants, opened when the first image is missing; with it, the quantized
    denoiser. Text encoder and VAE are full precision's in every variant.

    Args:
        reference: full precision's images, with the latents that the variants' are compared with.
        prompts: the set that is painted.
        artifact: folder of the quantized model; None if no variant needs it.
    """

    def __init__(
        self,
        request: SensitivityRequest,
        source: Contestant,
        reference: Painted,
        prompts: Prompts,
        artifact: Path | None,
    ) -> None:
        self.request, self.source, self.reference, self.prompts = request, source, reference, prompts
        self._artifact = artifact
        self._image_seed = 0

    @property
    def timesteps(self) -> tuple[float, ...]:
        """Of the steps, in order.

        Raises:
            InputError: the denoiser is called without timesteps.
        """
        found = tuple(dict.fromkeys(float(value) for value in self.reference.facts.get(TIMESTEPS, ())))
        if not found:
            raise InputError(f"{self.source.name} calls its denoiser without timesteps, so its steps have no names.")
        return found

    def paint(self, variant: Variant, progress: Progress) -> ImageSet:
        """A variant's images.

        Raises:
            InputError, NonFiniteError, OutputError: in one sentence; images that are finished stay.
        """
        gallery, shown = self._gallery(variant), self.reference.galleries[self.request.set_name]
        with ExitStack() as stack:
            gallery.paint(
                lambda: stack.enter_context(self._prepared(variant)), Ranks(), progress, shown, self._begin_image
            )
        return gallery.image_set()

    def _gallery(self, variant: Variant) -> Gallery:
        identity = self._identity(variant)
        name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        folder = self.request.out / "images" / variant.folder_name / name
        return Gallery(folder, identity, self.prompts.sample, self.request.settings)

    def _identity(self, variant: Variant) -> dict[str, Any]:
        """Everything that determines a variant's images, JSON-ready; most of it is in the reference's own."""
        identity: dict[str, Any] = {
            "full_precision": self.reference.identity,
            "prompts_sha256": self.prompts.whole.sha256,
            "experiment": variant.experiment,
            "steps": [variant.steps.start, variant.steps.stop],
        }
        if variant.experiment == PERTURB:
            return {**identity, "noise": float(self.request.noise)}
        return {**identity, "quantized_sha256": self._quantized.sha256()}

    @contextmanager
    def _prepared(self, variant: Variant) -> Iterator[Any]:
        """The pipeline, its denoiser doing what the variant says."""
        with replaced_forward(self._denoiser, self._forward(variant)):
            yield self._pipeline

    def _forward(self, variant: Variant) -> Forward:
        step_of = step_finder(self._denoiser, self.timesteps)
        plain = self._denoiser.forward
        if variant.experiment == PERTURB:
            return perturbed_forward(plain, step_of, variant.steps, self.request.noise, lambda: self._image_seed)
        return mixed_forward(plain, self._quantized_denoiser, step_of, variant.steps)

    def _begin_image(self, seed: int) -> None:
        self._image_seed = seed

    @cached_property
    def _quantized(self) -> Contestant:
        assert self._artifact is not None  # a variant needs it
        return Contestant("quantized", str(self._artifact), str(self._artifact))

    @cached_property
    def _pipeline(self) -> Any:
        pipeline = self.source.open(self.request.dtype, self.request.device)
        if self.request.scheduler is not None:
            use_scheduler(pipeline, self.request.scheduler)
        return pipeline

    @cached_property
    def _denoiser(self) -> nn.Module:
        return find_denoiser(self._pipeline).module

    @cached_property
    def _quantized_denoiser(self) -> nn.Module:
        """Alone: what else the artifact holds is full precision's."""
        return find_denoiser(self._quantized.open(self.request.dtype, self.request.device)).module
