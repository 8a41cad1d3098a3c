"""The benchmark: paint what is missing, measure, compare, write ``results.json``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from halftone.errors import InputError
from halftone.files import output_errors, write_atomically
from halftone.generation import GenerationSettings
from halftone.qdiffbench.clip_model import ClipExtractor, ClipModel
from halftone.qdiffbench.contestants import Contestant, unique_names
from halftone.qdiffbench.differences import Difference, paired_difference
from halftone.qdiffbench.directions import higher_is_better
from halftone.qdiffbench.distribution_intervals import frechet_difference, kid_difference
from halftone.qdiffbench.environment import describe_environment, library_versions
from halftone.qdiffbench.features import build_extractor
from halftone.qdiffbench.foreign_images import foreign_image_set
from halftone.qdiffbench.gallery import Gallery, read_image
from halftone.qdiffbench.measure import ImageSet, Judges, Measured, ReferenceViews, measure
from halftone.qdiffbench.model_facts import cost, describe
from halftone.qdiffbench.perceptual import Lpips
from halftone.qdiffbench.prompt_sets import PromptSet, load_prompt_set
from halftone.qdiffbench.ranks import Ranks
from halftone.qdiffbench.results import Candidate, Comparison, Gap, Model, NoiseFloor, PromptSetFacts, Results, Settings
from halftone.schedulers import use_scheduler

RESULTS = "results.json"
COMPARED = ("psnr", "ssim", "ms_ssim", "lpips", "latent_error", "clip_score", "attribute_accuracy")
GAPS = ("psnr", "ssim", "clip_score", "attribute_accuracy", "latent_error")

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
        num_images: of each set; None for all prompts.
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
    """

    reference: str
    candidates: tuple[str, ...]
    prompt_sets: Mapping[str, str]
    out: Path
    settings: GenerationSettings
    cache: Path
    num_images: int | None = None
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


@dataclass(frozen=True)
class BenchOutcome:
    """The results, and what a page of pictures needs besides.

    Attributes:
        results: what results.json holds.
        measured: (candidate, set) -> values by prompt.
        pairs: (candidate, set) -> (reference image, candidate image) of each prompt.
        prompts: set -> the sample.
    """

    results: Results
    measured: Mapping[tuple[str, str], Measured]
    pairs: Mapping[tuple[str, str], Sequence[tuple[Path, Path]]]
    prompts: Mapping[str, PromptSet]


def bench(request: BenchRequest, progress: ProgressBar, ranks: Ranks | None = None) -> BenchOutcome | None:
    """Runs the benchmark, resuming what an earlier run of the same request left.

    Returns:
        The outcome on the first rank, None on the others.

    Raises:
        InputError, ArtifactError, OutputError: in one sentence.
    """
    ranks = ranks or Ranks.from_environment()
    sets = _sampled(request)
    prompts = {name: one.sample for name, one in sets.items()}
    reference = Contestant.parse(request.reference)
    candidates = unique_names([Contestant.parse(text) for text in request.candidates])
    _check_request(request, candidates)
    studio = _Studio(request, ranks, progress, sets)
    shown = studio.paint(reference, request.cache, None, keep_latents=True)
    floors = {name: studio.paint_floor(reference, name, shown) for name in request.noise_floor}
    painted = {one.name: studio.paint(one, request.out / "images", shown) for one in candidates}
    ranks.wait()
    if not ranks.is_first:
        return None
    return _Measuring(request, ranks, progress, prompts).outcome(reference, shown, candidates, painted, floors)


@dataclass(frozen=True)
class _Prompts:
    """A whole prompt set and the part of it that is painted."""

    whole: PromptSet
    sample: PromptSet

    def first(self, count: int) -> PromptSet:
        """The first prompts of the sample: samples are nested."""
        return self.whole.sample(min(count, len(self.sample.entries)))


def _sampled(request: BenchRequest) -> dict[str, _Prompts]:
    if not request.prompt_sets:
        raise InputError("A benchmark needs at least one prompt set.")
    whole = {name: load_prompt_set(source, name) for name, source in request.prompt_sets.items()}
    return {name: _Prompts(one, one.sample(request.num_images)) for name, one in whole.items()}


def _check_request(request: BenchRequest, candidates: Sequence[Contestant]) -> None:
    if not candidates:
        raise InputError("A benchmark needs at least one candidate.")
    for kind in request.noise_floor:
        if kind not in ("dtype", "seed"):
            raise InputError(f"The noise floor has no kind {kind!r}; known: dtype, seed.")
    for one in candidates:
        if not one.is_images:
            one.folder()  # a misspelt folder is told before hours of painting


@dataclass(frozen=True)
class _Painted:
    """What one model painted, by prompt set, and what it is."""

    sets: Mapping[str, ImageSet]
    facts: Mapping[str, Any]
    galleries: Mapping[str, Gallery]


class _Studio:
    """Paints the images of all models."""

    def __init__(
        self, request: BenchRequest, ranks: Ranks, progress: ProgressBar, sets: Mapping[str, _Prompts]
    ) -> None:
        self.request, self.ranks, self.progress, self.sets = request, ranks, progress, sets

    def paint(
        self,
        one: Contestant,
        root: Path,
        reference: _Painted | None,
        keep_latents: bool = False,
        dtype: torch.dtype | None = None,
        settings: GenerationSettings | None = None,
        limit: int | None = None,
        label: str = "",
    ) -> _Painted:
        """The images of one contestant for all sets, painted as far as they are missing."""
        if one.is_images:
            folder = Path(one.model_source)
            return _Painted({name: foreign_image_set(folder, part.sample) for name, part in self.sets.items()}, {}, {})
        dtype, settings = dtype or self.request.dtype, settings or self.request.settings
        base = self._identity(one, dtype, settings)
        folder = root / f"{_slug(one.name)}-{_hash(base)[:12]}"
        opener = _Opener(one, self.request, dtype, folder, self.ranks)
        galleries = {}
        for name, part in self.sets.items():
            sample = part.sample if limit is None else part.first(limit)
            # One folder for any number of prompts: a longer benchmark goes on where a shorter one ended.
            identity = {**base, "prompts_sha256": part.whole.sha256}
            place = folder / f"{_slug(name)}-{part.whole.sha256[:12]}"
            gallery = Gallery(place, identity, sample, settings, keep_latents)
            with self.progress(f"painting {label or one.name}, {name}") as advance:
                followed = reference.galleries.get(name) if reference is not None else None
                gallery.paint(opener.open, self.ranks, advance, followed)
            galleries[name] = gallery
        self.ranks.wait()
        sets = {name: _image_set(gallery) for name, gallery in galleries.items()}
        return _Painted(sets, opener.facts(), galleries)

    def paint_floor(self, reference: Contestant, kind: str, shown: _Painted) -> _Painted:
        """The reference once more, in another dtype or from other noise."""
        settings, dtype = self.request.settings, self.request.dtype
        if kind == "dtype":
            dtype = torch.bfloat16 if dtype != torch.bfloat16 else torch.float32
        else:
            settings = dataclasses.replace(settings, seed=settings.seed + OTHER_SEED)
        return self.paint(
            reference,
            self.request.cache,
            shown,
            dtype=dtype,
            settings=settings,
            limit=self.request.noise_images,
            label=f"noise floor ({kind})",
        )

    def _identity(self, one: Contestant, dtype: torch.dtype, settings: GenerationSettings) -> dict[str, Any]:
        return {
            "model_sha256": one.sha256(),
            "scheduler": self.request.scheduler,
            "dtype": str(dtype),
            "device": torch.device(self.request.device).type,
            **dataclasses.asdict(settings),
            "versions": library_versions(),
        }


OTHER_SEED = 1_000_003  # far from any index, so that no two images of a set share their noise


class _Opener:
    """Opens a contestant's pipeline once, when the first image is missing, and keeps its facts beside the images."""

    def __init__(self, one: Contestant, request: BenchRequest, dtype: torch.dtype, folder: Path, ranks: Ranks) -> None:
        self.one, self.request, self.dtype, self.folder, self.ranks = one, request, dtype, folder, ranks
        self._pipeline: Any = None

    def open(self) -> Any:
        if self._pipeline is None:
            self._pipeline = self.one.open(self.dtype, self.request.device)
            if self.request.scheduler is not None:
                use_scheduler(self._pipeline, self.request.scheduler)
            if self.ranks.is_first:
                self._keep(self._pipeline)
        return self._pipeline

    def facts(self) -> Mapping[str, Any]:
        path = self.folder / "facts.json"
        if not path.is_file() and self.ranks.is_first:
            self._keep(self.one.open(self.dtype, self.request.device))
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    def _keep(self, pipeline: Any) -> None:
        folder = None if self.one.library else self.one.folder()
        facts = {
            **describe(pipeline, folder, self.one.library),
            "scheduler": type(pipeline.scheduler).__name__,
            "sha256": self.one.sha256(),
        }
        with output_errors(f"The folder {self.folder}"):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / "facts.json", json.dumps(facts, indent=2) + "\n")


class _Measuring:
    """Turns painted images into results; runs on one rank."""

    def __init__(
        self, request: BenchRequest, ranks: Ranks, progress: ProgressBar, prompts: Mapping[str, PromptSet]
    ) -> None:
        self.request, self.ranks, self.progress, self.prompts = request, ranks, progress, prompts
        self.judges = load_judges(request)

    def outcome(
        self,
        reference: Contestant,
        shown: _Painted,
        candidates: Sequence[Contestant],
        painted: Mapping[str, _Painted],
        floors: Mapping[str, _Painted],
    ) -> BenchOutcome:
        views = {name: ReferenceViews(self.judges, shown.sets[name], prompts) for name, prompts in self.prompts.items()}
        measured = {
            (one.name, name): self._measure(view, painted[one.name].sets[name], f"measuring {one.name}, {name}")
            for one in candidates
            for name, view in views.items()
        }
        results = Results(
            environment=describe_environment(self.request.device),
            settings=self._settings(shown),
            reference=_model(Model, reference, shown),
            candidates=tuple(self._candidate(one, painted[one.name], measured) for one in candidates),
            noise_floor=tuple(self._floor(kind, one, shown) for kind, one in floors.items()),
            comparisons=tuple(self._comparisons([one.name for one in candidates], measured)),
            warnings=tuple(dict.fromkeys(text for one in measured.values() for text in one.warnings)),
        )
        pairs = {
            (one.name, name): list(zip(shown.sets[name].paths, painted[one.name].sets[name].paths, strict=True))
            for one in candidates
            for name in self.prompts
        }
        with output_errors(f"The results in {self.request.out}"):
            self.request.out.mkdir(parents=True, exist_ok=True)
            write_atomically(self.request.out / RESULTS, results.to_json())
        return BenchOutcome(results, measured, pairs, self.prompts)

    def _measure(self, view: ReferenceViews, images: ImageSet, label: str) -> Measured:
        with self.progress(label) as advance:
            return measure(view, images, self.request.settings.seed, self.request.bootstrap_seed, advance)

    def _candidate(self, one: Contestant, painted: _Painted, measured: Mapping[tuple[str, str], Measured]) -> Candidate:
        sets = {name: measured[one.name, name].result for name in self.prompts}
        means = {name: _means(measured[one.name, name]) for name in self.prompts}
        gaps = [
            Gap(metric=metric, from_set=a, to_set=b, difference=means[b][metric] - means[a][metric])
            for a, b in combinations(sets, 2)
            for metric in GAPS
            if metric in means[a] and metric in means[b]
        ]
        return _model(Candidate, one, painted, sets=sets, gaps=tuple(gaps))

    def _floor(self, kind: str, painted: _Painted, shown: _Painted) -> NoiseFloor:
        sets = {}
        for name, images in painted.sets.items():
            prompts = painted.galleries[name].prompts
            count = len(images.paths)
            part = ImageSet(shown.sets[name].paths[:count], shown.sets[name].drift[:count])
            view = ReferenceViews(self.judges, part, prompts)
            sets[name] = self._measure(view, images, f"measuring noise floor ({kind}), {name}").result
        what = painted.facts.get("dtype", "") if kind == "dtype" else "another initial noise"
        return NoiseFloor(name=f"the reference in {what}" if kind == "dtype" else f"the reference from {what}",
                          kind="dtype" if kind == "dtype" else "seed", sets=sets)  # fmt: skip

    def _comparisons(self, names: Sequence[str], measured: Mapping[tuple[str, str], Measured]) -> Iterator[Comparison]:
        seed = self.request.bootstrap_seed
        for set_name in self.prompts:
            for a, b in combinations(names, 2):
                first, second = measured[a, set_name], measured[b, set_name]
                for metric in COMPARED:
                    if metric in first.values and metric in second.values:
                        difference = paired_difference(first.values[metric], second.values[metric], seed=seed)
                        yield _comparison(set_name, metric, a, b, difference)
                main = next(iter(self.judges.extractors))
                trio = first.features[main], second.features[main], first.reference_features[main]
                yield _comparison(set_name, "fid_to_fp", a, b, frechet_difference(*trio, seed=seed))
                yield _comparison(set_name, "kid_to_fp", a, b, kid_difference(*trio, seed=seed))

    def _settings(self, shown: _Painted) -> Settings:
        first = read_image(next(iter(shown.sets.values())).paths[0])
        settings, judges = self.request.settings, self.judges
        main, *others = judges.extractors
        return Settings(
            scheduler=shown.facts.get("scheduler"),
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            seed=settings.seed,
            width=first.shape[1],
            height=first.shape[0],
            prompt_sets={
                name: PromptSetFacts(source=one.source, sha256=one.sha256, n=len(one.entries))
                for name, one in self.prompts.items()
            },
            features=judges.extractors[main].identity,
            other_features={name: judges.extractors[name].identity for name in others},
            clip=judges.clip.identity if judges.clip is not None else None,
            lpips=judges.lpips.identity if judges.lpips is not None else None,
            bootstrap_seed=self.request.bootstrap_seed,
            processes=self.ranks.world,
            commands=self.request.commands,
        )


def load_judges(request: BenchRequest) -> Judges:
    """The models that look at images; one CLIP serves features and scores where both name it.

    Raises:
        InputError: one is not there.
    """
    clip = ClipModel.load(request.clip, request.device) if request.clip is not None else None
    clip_extractor = ClipExtractor(clip) if clip is not None else None
    extractors = {}
    for spec in request.features:
        shared = clip_extractor is not None and spec in ("clip", f"clip:{request.clip}")
        extractors[spec.partition(":")[0] if shared else spec] = (
            clip_extractor if shared and clip_extractor is not None else build_extractor(spec, request.device)
        )
    if not extractors:
        raise InputError("A benchmark needs at least one feature extractor.")
    lpips = Lpips(request.lpips or None, request.device) if request.lpips is not None else None
    return Judges(extractors, clip, clip_extractor, lpips)


def _means(measured: Measured) -> dict[str, float]:
    return {name: float(column.mean()) for name, column in measured.values.items()}


def _comparison(set_name: str, metric: str, a: str, b: str, difference: Difference) -> Comparison:
    return Comparison(
        set=set_name,
        metric=metric,
        a=a,
        b=b,
        difference=difference.difference,
        ci95=(difference.low, difference.high),
        p_value=difference.p_value,
        n=difference.n,
        verdict=difference.verdict(a, b, higher_is_better=higher_is_better(metric)),
    )


def _model(kind: type[Any], one: Contestant, painted: _Painted, **more: Any) -> Any:
    records = [record for gallery in painted.galleries.values() for record in gallery.records().values()]
    facts = {name: value for name, value in painted.facts.items() if name != "scheduler"}
    facts["kernels"] = tuple(facts.get("kernels", ()))
    return kind(name=one.name, source=one.source, **facts, **(cost(records) if records else {}), **more)


def _image_set(gallery: Gallery) -> ImageSet:
    records = gallery.records()
    indices = range(len(gallery.prompts.entries))
    paths = [gallery.folder / f"{index:05d}.png" for index in indices]
    return ImageSet(paths, [records[index].drift for index in indices])


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "model"


def _hash(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
