"""One candidate's images against the reference's, of one prompt set: every metric, image by image, memory flat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from halftone.errors import InputError
from halftone.qdiffbench.clip_model import ClipModel
from halftone.qdiffbench.columns import (
    Columns,
    Features,
    Progress,
    SampledDistances,
    Values,
    distances,
    sample_distances,
    value_fields,
)
from halftone.qdiffbench.feature_files import keep_features, kept_features
from halftone.qdiffbench.features import Extractor
from halftone.qdiffbench.fidelity import ms_ssim, ms_ssim_fits, psnr, ssim
from halftone.qdiffbench.image_files import read_image
from halftone.qdiffbench.intervals import summarize
from halftone.qdiffbench.matching import attribute_hits, clip_scores
from halftone.qdiffbench.moments import too_few_images
from halftone.qdiffbench.perceptual import Lpips
from halftone.qdiffbench.prompt_sets import PromptSet
from halftone.qdiffbench.set_results import SetResult, StepDrift, Summary, WorstPair
from halftone.qdiffbench.steps import Steps

IMAGES_AT_ONCE = 64
WORST_PAIRS = 10
FEWEST_IMAGES = 4  # a half-sample needs two images


def _silent(done: int, total: int) -> None:
    """No progress is shown."""


@dataclass(frozen=True)
class Judges:
    """The models that look at images; loaded once for all candidates and sets.

    Attributes:
        extractors: by name; the first one gives fid_to_fp and kid_to_fp.
        clip: of the scores, or None.
        lpips: or None.
    """

    extractors: Mapping[str, Extractor]
    clip: ClipModel | None
    clip_extractor: Extractor | None
    lpips: Lpips | None


@dataclass(frozen=True)
class ImageSet:
    """Images of one model for one prompt set, in the sample's order.

    Attributes:
        paths: of the image files.
        drift: of each image the latent error after each step; empty where it was not followed.
        seeds: of each image's initial noise, None where it is unknown; empty where none is known.
        keeps_features: whether features may be kept beside them: not in a folder that somebody else made.
    """

    paths: Sequence[Path]
    drift: Sequence[tuple[float, ...]] = ()
    seeds: Sequence[int | None] = ()
    keeps_features: bool = False


@dataclass(frozen=True)
class Measured(Columns):
    """What the records of results.json are made from, kept for comparisons between candidates.

    Attributes:
        result: the record.
        sampled: distances by extractor, with their samples.
        warnings: sentences for the reader.
        seeds: of the candidate's images, as in its `ImageSet`.
    """

    result: SetResult
    sampled: Mapping[str, SampledDistances] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    seeds: Sequence[int | None] = ()


@dataclass
class ReferenceViews:
    """Features and scores of the reference's images, computed once however many candidates there are."""

    judges: Judges
    images: ImageSet
    prompts: PromptSet | None
    _features: dict[str, Features] = field(default_factory=dict)
    _texts: Features | None = None

    def features(self, name: str, progress: Progress = _silent) -> Features:
        """(n, d) of the extractor of that name, or of the score's CLIP under ``""``."""
        if name not in self._features:
            self._features[name] = extract(_extractor(self.judges, name), self.images, progress)
        return self._features[name]

    def texts(self) -> Features:
        """(n, d) text features of the prompts."""
        if self._texts is None:
            assert self.judges.clip is not None and self.prompts is not None
            self._texts = self.judges.clip.text_features(self.prompts.prompts)
        return self._texts


def measure(reference: ReferenceViews, candidate: ImageSet, bootstrap_seed: int, progress: Progress) -> Measured:
    """All metrics of a candidate on one prompt set.

    Raises:
        InputError: other numbers or sizes of images, a single one, or one that cannot be read; says which.
    """
    pairs = _checked_pairs(reference.images, candidate)
    judges = reference.judges
    count = len(pairs)
    # images, and as much for a distance's bootstrap, which takes about as long as features of as many images
    steps = Steps(progress, count * (1 + 3 * len(judges.extractors) + 2 * _scores_alone(reference)))
    with steps.part(count) as one:
        values: dict[str, Values] = dict(_paired_values(pairs, judges.lpips, one))
    drift = [steps for steps in candidate.drift if steps]
    if drift:
        values["latent_error"] = np.asarray([steps[-1] for steps in drift])
    features, references = {}, {}
    for name, extractor in judges.extractors.items():
        with steps.part(count) as one:
            features[name] = extract(extractor, candidate, one)
        with steps.part(count) as one:
            references[name] = reference.features(name, one)
    matched, references_matched = _matching(reference, candidate, features, steps)
    columns = Columns(values | matched, references_matched, features, references)
    sampled = {}
    for name in features:
        with steps.part(count) as one:
            sampled[name] = sample_distances(features[name], references[name], bootstrap_seed, one)
    found = {name: distances(features[name], references[name], sampled[name], bootstrap_seed) for name in features}
    main, *others = found
    result = SetResult(
        n=count,
        **dict(found[main]),
        **value_fields(columns, bootstrap_seed),
        drift=_drift(drift, bootstrap_seed),
        other_features={name: found[name] for name in others},
        worst_pairs=_worst(values["psnr"], reference.prompts, candidate.seeds),
    )
    few = [too_few_images(count, judges.extractors[name].dimension) for name in found]
    warnings = [*few, _other_noise(reference.images, candidate), _truncated(reference)]
    return Measured(
        columns.values,
        columns.reference_values,
        features,
        references,
        result,
        sampled,
        tuple(filter(None, warnings)),
        candidate.seeds,
    )


def extract(extractor: Extractor, images: ImageSet, progress: Progress = _silent) -> Features:
    """(n, d) float32 of image files, of which only IMAGES_AT_ONCE are in memory; kept ones are read instead."""
    paths = images.paths
    features = np.empty((len(paths), extractor.dimension), np.float32)
    for start in range(0, len(paths), IMAGES_AT_ONCE):
        part = paths[start : start + IMAGES_AT_ONCE]
        kept = kept_features(extractor, part) if images.keeps_features else None
        if kept is None:
            kept = extractor.extract([read_image(path) for path in part], [str(path) for path in part])
            if images.keeps_features:
                keep_features(extractor, part, kept)
        features[start : start + len(part)] = kept
        progress(start + len(part), len(paths))
    return features


def _other_noise(reference: ImageSet, candidate: ImageSet) -> str | None:
    """A sentence if images are known to have been painted from other noise than those they are paired with."""
    pairs = zip(reference.seeds, candidate.seeds, strict=False)
    others = sum(a is not None and b is not None and a != b for a, b in pairs)
    if not others:
        return None
    return (
        f"{others} of {len(candidate.paths)} images in {candidate.paths[0].parent} were painted from another seed than"
        " the reference's: PSNR, SSIM and the other paired metrics tell nothing of them."
    )


def _truncated(reference: ReferenceViews) -> str | None:
    """A sentence if the CLIP of the scores does not see all of the prompts."""
    clip, prompts = reference.judges.clip, reference.prompts
    if clip is None or prompts is None:
        return None
    count = sum(clip.is_truncated(text) for text in prompts.prompts)
    if not count:
        return None
    return (
        f"{count} of {len(prompts.prompts)} prompts have more than the {clip.context} tokens that the CLIP of the"
        " scores sees: what lies beyond is not matched."
    )


def _extractor(judges: Judges, name: str) -> Extractor:
    if name:
        return judges.extractors[name]
    assert judges.clip_extractor is not None
    return judges.clip_extractor


def _checked_pairs(reference: ImageSet, candidate: ImageSet) -> list[tuple[Path, Path]]:
    if len(reference.paths) != len(candidate.paths):
        raise InputError(
            f"The reference has {len(reference.paths)} images and the candidate {len(candidate.paths)};"
            " both need one for each prompt."
        )
    if len(reference.paths) < FEWEST_IMAGES:
        raise InputError(
            f"There are {len(reference.paths)} images; a comparison needs at least {FEWEST_IMAGES}, better hundreds."
        )
    return list(zip(reference.paths, candidate.paths, strict=True))


def _paired_values(
    pairs: Sequence[tuple[Path, Path]], lpips: Lpips | None, progress: Progress
) -> Iterator[tuple[str, Values]]:
    columns: dict[str, list[float]] = {}
    first: tuple[Path, tuple[int, ...]] | None = None
    for done, (left, right) in enumerate(pairs, start=1):
        a, b = read_image(left), read_image(right)
        first = first or (left, a.shape)
        for path, image in ((left, a), (right, b)):
            if image.shape != first[1]:
                raise InputError(
                    f"{first[0]} is {_pixels(first[1])} pixels and {path} {_pixels(image.shape)}; compare images of one"
                    " size."
                )
        row = {"psnr": psnr(a, b), "ssim": ssim(a, b)}
        if ms_ssim_fits(a.shape):
            row["ms_ssim"] = ms_ssim(a, b)
        if lpips is not None:
            row["lpips"] = lpips(a, b)
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
        progress(done, len(pairs))
    for name, column in columns.items():
        if len(column) == len(pairs):
            yield name, np.asarray(column)


def _pixels(shape: Sequence[int]) -> str:
    return f"{shape[1]}×{shape[0]}"


def _shared(judges: Judges) -> str | None:
    """The extractor that is the score's CLIP too."""
    return next((name for name, one in judges.extractors.items() if one is judges.clip_extractor), None)


def _scores_alone(reference: ReferenceViews) -> bool:
    """Whether the scores need features of their own."""
    return reference.judges.clip is not None and reference.prompts is not None and _shared(reference.judges) is None


def _matching(
    reference: ReferenceViews, candidate: ImageSet, features: Mapping[str, Features], steps: Steps
) -> tuple[dict[str, Values], dict[str, Values]]:
    """CLIP scores and attribute hits by prompt, of the candidate and of the reference."""
    judges, prompts = reference.judges, reference.prompts
    if judges.clip is None or prompts is None:
        return {}, {}
    shared = _shared(judges)
    if shared is not None:
        ours, theirs = features[shared], reference.features(shared)
    else:
        with steps.part(len(candidate.paths)) as one:
            ours = extract(_extractor(judges, ""), candidate, one)
        with steps.part(len(candidate.paths)) as one:
            theirs = reference.features("", one)
    found: tuple[dict[str, Values], dict[str, Values]] = {}, {}
    for columns, images in zip(found, (ours, theirs), strict=True):
        columns["clip_score"] = clip_scores(images, reference.texts())
        if prompts.has_alternatives:
            alternatives = [entry.alternatives for entry in prompts.entries]
            hits = attribute_hits(images, prompts.prompts, alternatives, judges.clip)
            columns["attribute_accuracy"] = hits.astype(np.float64)
    return found


def _drift(followed: Sequence[tuple[float, ...]], seed: int) -> tuple[StepDrift, ...]:
    steps = min((len(steps) for steps in followed), default=0)
    return tuple(
        StepDrift(
            step=step,
            latent_error=Summary.of(
                summarize([one[step] for one in followed], higher_is_better=False, resamples=500, seed=seed)
            ),
        )
        for step in range(steps)
    )


def _worst(values: Values, prompts: PromptSet | None, seeds: Sequence[int | None]) -> tuple[WorstPair, ...]:
    order = sorted(range(len(values)), key=lambda index: (values[index], index))[:WORST_PAIRS]
    texts = prompts.prompts if prompts is not None else [""] * len(values)
    known = seeds or [None] * len(values)
    return tuple(WorstPair(index=i, prompt=texts[i], seed=known[i], psnr=float(values[i])) for i in order)
