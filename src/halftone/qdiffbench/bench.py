"""The benchmark: paint what is missing, measure, compare, write ``results.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from halftone.errors import InputError
from halftone.files import output_errors, write_atomically
from halftone.qdiffbench.clip_model import ClipExtractor, ClipModel
from halftone.qdiffbench.comparisons import COMPARED, DISTANCES, comparisons
from halftone.qdiffbench.contestants import Contestant, unique_names
from halftone.qdiffbench.environment import describe_environment
from halftone.qdiffbench.features import build_extractor
from halftone.qdiffbench.image_files import read_image
from halftone.qdiffbench.measure import ImageSet, Judges, Measured, ReferenceViews, measure
from halftone.qdiffbench.model_facts import cost
from halftone.qdiffbench.perceptual import Lpips
from halftone.qdiffbench.prompt_sets import PromptSet
from halftone.qdiffbench.ranks import Ranks
from halftone.qdiffbench.request import BenchRequest, ProgressBar, check_request, claim, sampled_prompts
from halftone.qdiffbench.results import Candidate, Gap, Model, NoiseFloor, PromptSetFacts, Results, Settings
from halftone.qdiffbench.set_results import SetResult
from halftone.qdiffbench.studio import Painted, Studio

__all__ = ["RESULTS", "BenchOutcome", "BenchRequest", "bench", "load_judges", "model_record", "settings_record"]

RESULTS = "results.json"
GAPS = (*COMPARED, *DISTANCES)


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
    sets = sampled_prompts(request)
    prompts = {name: one.sample for name, one in sets.items()}
    reference = Contestant.parse(request.reference)
    candidates = unique_names([Contestant.parse(text) for text in request.candidates])
    check_request(request, reference, candidates, sets)
    if ranks.is_first:
        claim(request.out)
        load_judges(request)  # a misspelt one is told before hours of painting; loaded again when it is needed
    ranks.wait()
    studio = Studio(request, ranks, progress, sets)
    shown = studio.paint_reference(reference)
    floors = {name: studio.paint_floor(reference, name, shown) for name in request.noise_floor if shown.galleries}
    painted = {one.name: studio.paint_candidate(one, shown) for one in candidates}
    ranks.wait()
    if not ranks.is_first:
        return None
    return _Measuring(request, ranks, progress, prompts).outcome(reference, shown, candidates, painted, floors)


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
        shown: Painted,
        candidates: Sequence[Contestant],
        painted: Mapping[str, Painted],
        floors: Mapping[str, Painted],
    ) -> BenchOutcome:
        views = {name: ReferenceViews(self.judges, shown.sets[name], prompts) for name, prompts in self.prompts.items()}
        measured = {
            (one.name, name): self._measure(view, painted[one.name].sets[name], f"measuring {one.name}, {name}")
            for one in candidates
            for name, view in views.items()
        }
        kept = [self._floor(kind, one, shown) for kind, one in floors.items()]
        results = Results(
            environment=describe_environment(self.request.device),
            settings=settings_record(self.request, self.judges, shown, self.prompts, self.ranks.world),
            reference=model_record(Model, reference, shown),
            candidates=tuple(self._candidate(one, painted[one.name], measured) for one in candidates),
            noise_floor=tuple(floor for floor, _ in kept),
            comparisons=comparisons(
                [one.name for one in candidates],
                [*self.prompts],
                measured,
                self.request.bootstrap_seed,
                self.request.pairs,
            ),
            warnings=self._warnings(shown, painted, measured, [text for _, told in kept for text in told]),
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

    def _warnings(
        self,
        shown: Painted,
        painted: Mapping[str, Painted],
        measured: Mapping[tuple[str, str], Measured],
        of_floors: Sequence[str],
    ) -> tuple[str, ...]:
        found = [*(text for one in measured.values() for text in one.warnings), *of_floors]
        for name, one in painted.items():
            ours, theirs = one.facts.get("scheduler_config"), shown.facts.get("scheduler_config")
            if ours and theirs and ours != theirs:
                different = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
                found.append(
                    f"The sampler of {name} is configured otherwise than the reference's: {', '.join(different)}."
                )
        again = [name for name, one in painted.items() if one.is_older]
        if again:
            found.append(
                f"Images of {', '.join(again)} were painted in an earlier run, and so was some of their cost measured;"
                " compare it with care."
            )
        if len(painted) > 1 and torch.device(self.request.device).type == "cpu":
            found.append(
                "Peak memory on a CPU is that of the process: of several candidates the later ones inherit what earlier"
                " ones left behind; measure memory with one candidate a run."
            )
        if shown.is_older:
            found.append(
                "Images of the reference come from the cache: its times and memory were measured in an earlier run, so"
                " compare them with care."
            )
        if self.request.noise_floor and not shown.galleries:
            found.append("The reference is a folder of images, so it cannot be painted anew: there is no noise floor.")
        return tuple(dict.fromkeys(found))

    def _measure(self, view: ReferenceViews, images: ImageSet, label: str) -> Measured:
        with self.progress(label) as advance:
            return measure(view, images, self.request.bootstrap_seed, advance)

    def _candidate(self, one: Contestant, painted: Painted, measured: Mapping[tuple[str, str], Measured]) -> Candidate:
        sets = {name: measured[one.name, name].result for name in self.prompts}
        means = {name: _gap_values(measured[one.name, name]) for name in self.prompts}
        gaps = [
            Gap(metric=metric, from_set=a, to_set=b, difference=means[b][metric] - means[a][metric])
            for a, b in combinations(sets, 2)
            for metric in GAPS
            if metric in means[a] and metric in means[b]
        ]
        return model_record(Candidate, one, painted, sets=sets, gaps=tuple(gaps))

    def _floor(self, kind: str, painted: Painted, shown: Painted) -> tuple[NoiseFloor, list[str]]:
        """The floor, and what a reader must know of it."""
        sets: dict[str, SetResult] = {}
        told: list[str] = []
        for name, images in painted.sets.items():
            prompts = painted.galleries[name].prompts
            count = len(images.paths)
            part = ImageSet(shown.sets[name].paths[:count], keeps_features=bool(shown.galleries))
            view = ReferenceViews(self.judges, part, prompts)
            measured = self._measure(view, images, f"measuring noise floor ({kind}), {name}")
            sets[name] = measured.result
            told += measured.warnings
        if kind == "dtype":
            title = f"the reference in {painted.facts.get('dtype', 'another dtype')}"
            floor = NoiseFloor(name=title, kind="dtype", sets=sets)
        else:
            floor = NoiseFloor(name="the reference from another initial noise", kind="seed", sets=sets)
        return floor, [f"Noise floor, {floor.name}: {text}" for text in told]


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


def _gap_values(measured: Measured) -> dict[str, float]:
    """Each metric of a set; of the Fréchet distance the value without the bias, which sets of other sizes share not."""
    means = {name: float(column.mean()) for name, column in measured.values.items()}
    plain, unbiased = measured.result.fid_to_fp, measured.result.fid_to_fp_unbiased
    return {**means, "fid_to_fp": plain if unbiased is None else unbiased, "kid_to_fp": measured.result.kid_to_fp}


def settings_record(
    request: BenchRequest, judges: Judges, shown: Painted, prompts: Mapping[str, PromptSet], processes: int = 1
) -> Settings:
    """What was asked for, as results tell it.

    Args:
        shown: the reference's images.
        prompts: the sample of each set.
    """
    first = read_image(next(iter(shown.sets.values())).paths[0])
    settings = request.settings
    main, *others = judges.extractors
    return Settings(
        scheduler=shown.facts.get("scheduler"),
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale
        if settings.guidance_scale is not None
        else shown.facts.get("default_guidance"),
        seed=settings.seed,
        width=first.shape[1],
        height=first.shape[0],
        prompt_sets={
            name: PromptSetFacts(source=one.source, sha256=one.sha256, n=len(one.entries))
            for name, one in prompts.items()
        },
        features=judges.extractors[main].identity,
        other_features={name: judges.extractors[name].identity for name in others},
        clip=judges.clip.identity if judges.clip is not None else None,
        lpips=judges.lpips.identity if judges.lpips is not None else None,
        bootstrap_seed=request.bootstrap_seed,
        processes=processes,
        commands=request.commands,
    )


def model_record(kind: type[Any], one: Contestant, painted: Painted, **more: Any) -> Any:
    """The record of a model, of the kind `Model` or `Candidate`."""
    records = [record for gallery in painted.galleries.values() for record in gallery.records().values()]
    facts = {name: value for name, value in painted.facts.items() if name in kind.model_fields}
    facts["kernels"] = tuple(facts.get("kernels", ()))
    return kind(name=one.name, source=one.source, **facts, **(cost(records) if records else {}), **more)
