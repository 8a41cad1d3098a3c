"""What a benchmark is asked for, and what can be found wrong with it before anything is painted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from halftone.errors import InputError
from halftone.files import output_errors, write_atomically
from halftone.generation import GenerationSettings
from halftone.qdiffbench.contestants import Contestant
from halftone.qdiffbench.foreign_images import foreign_image_set
from halftone.qdiffbench.measure import FEWEST_IMAGES
from halftone.qdiffbench.prompt_sets import PromptSet, load_prompt_set
from halftone.qdiffbench.results import SCHEMA

MARKER = "bench.json"
NOISE_FLOORS = ("dtype", "seed")

Progress = Callable[[int, int], None]
ProgressBar = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class BenchRequest:
    """What is to be compared and how.

    Attributes:
        reference: SOURCE of the full-precision model.
        candidates: see `halftone.qdiffbench.contestants`.
        prompt_sets: name -> FILE, FILE:COLUMN or bundled:NAME.
        out: folder of the results; the images of candidates lie in it.
        settings: of the pipeline's call.
        num_images: of each set, one number for all or one by name; None for all prompts.
        scheduler: another sampler for all, by name.
        dtype: of everything that is not quantized.
        device: torch device.
        features: extractors NAME or NAME:SOURCE, the first one gives the main distances.
        clip: CLIPModel of the scores; None measures none.
        lpips: None for none; "" for LPIPS with its usual weights, else a file with the trunk's weights.
        noise_floor: of "dtype" and "seed", what the reference is compared with itself under.
        noise_images: how many images of each set that takes at most.
        cache: where the reference's images are kept between benchmarks.
        bootstrap_seed: of the resampling.
        commands: command lines that reproduce this.
        images: where the images of candidates lie, each model's in a folder called by the hash of what determines them,
            so that benchmarks can share them; None for folders in `out` by the candidates' names.
        pairs: names of the candidates that are compared with each other; None for all pairs.
    """

    reference: str
    candidates: tuple[str, ...]
    prompt_sets: Mapping[str, str]
    out: Path
    settings: GenerationSettings
    cache: Path
    num_images: int | Mapping[str, int] | None = None
    scheduler: str | None = None
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    features: tuple[str, ...] = ("clip",)
    clip: str | None = None
    lpips: str | None = None
    noise_floor: tuple[str, ...] = ("dtype", "seed")
    noise_images: int = 256
    bootstrap_seed: int = 0
    commands: tuple[str, ...] = ()
    images: Path | None = None
    pairs: Sequence[tuple[str, str]] | None = None

    def images_of(self, set_name: str) -> int | None:
        """How many images of a set are asked for; None for all of its prompts."""
        return self.num_images.get(set_name) if isinstance(self.num_images, Mapping) else self.num_images


@dataclass(frozen=True)
class Prompts:
    """A whole prompt set and the part of it that is painted."""

    whole: PromptSet
    sample: PromptSet

    def first(self, count: int) -> PromptSet:
        """The first prompts of the sample: samples are nested."""
        return self.whole.sample(min(count, len(self.sample.entries)))


def sampled_prompts(request: BenchRequest) -> dict[str, Prompts]:
    """The prompt sets by name.

    Raises:
        InputError: there is none, or one cannot be read or is too small.
    """
    if not request.prompt_sets:
        raise InputError("A benchmark needs at least one prompt set.")
    found = {}
    for name, source in request.prompt_sets.items():
        whole = load_prompt_set(source, name)
        found[name] = Prompts(whole, whole.sample(request.images_of(name)))
        count = len(found[name].sample.entries)
        if count < FEWEST_IMAGES:
            raise InputError(
                f"The prompt set {name!r} gives {count} images; a comparison needs at least {FEWEST_IMAGES}, better"
                " hundreds."
            )
    return found


def check_request(
    request: BenchRequest, reference: Contestant, candidates: Sequence[Contestant], sets: Mapping[str, Prompts]
) -> None:
    """Tells what is wrong before hours of painting.

    Raises:
        InputError: nothing to compare, an unknown noise floor, or a model or folder that cannot be used.
        ArtifactError: a candidate is a damaged artifact.
    """
    if not candidates:
        raise InputError("A benchmark needs at least one candidate.")
    for kind in request.noise_floor:
        if kind not in NOISE_FLOORS:
            raise InputError(f"The noise floor has no kind {kind!r}; known: {', '.join(NOISE_FLOORS)}.")
    for one in (reference, *candidates):
        one.check()
        if one.is_images:
            for part in sets.values():
                foreign_image_set(Path(one.model_source), part.sample, request.settings.seed)


def claim(out: Path, marker: str = MARKER, schema: str = SCHEMA, what: str = "benchmark") -> None:
    """Makes the output folder, or finds that an earlier run made it.

    Args:
        marker: the file that tells.
        schema: of the results that will be in the folder.
        what: that kind of run, for the message.

    Raises:
        InputError: it is a file, or holds something else.
        OutputError: it cannot be written.
    """
    if out.is_file():
        raise InputError(f"{out} is a file; choose another folder for the output.")
    if (out / marker).is_file():
        return
    if out.is_dir() and any(entry.name != f"{marker}.part" for entry in out.iterdir()):
        raise InputError(f"{out} is not empty and holds no {what}; choose another folder for the output.")
    with output_errors(f"The folder {out}"):
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / marker, json.dumps({"schema": schema}) + "\n")
