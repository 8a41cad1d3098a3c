"""Two folders of images alone: nothing is painted, and nothing is known of how they were made."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from halftone.errors import InputError
from halftone.files import output_errors, write_atomically
from halftone.qdiffbench.bench import RESULTS, BenchOutcome, BenchRequest, load_judges
from halftone.qdiffbench.comparisons import comparisons
from halftone.qdiffbench.environment import describe_environment
from halftone.qdiffbench.foreign_images import MANIFEST, all_images, partners, read_manifest
from halftone.qdiffbench.image_files import read_image
from halftone.qdiffbench.measure import ImageSet, ReferenceViews, measure
from halftone.qdiffbench.prompt_sets import PromptSet, prompt_set_of
from halftone.qdiffbench.ranks import Ranks
from halftone.qdiffbench.request import ProgressBar, claim
from halftone.qdiffbench.results import Candidate, Model, PromptSetFacts, Results, Settings

SET = "images"


def compare_folders(request: BenchRequest, progress: ProgressBar, ranks: Ranks | None = None) -> BenchOutcome | None:
    """Compares each candidate folder with the reference folder, image by image (see `partners`).

    With a ``manifest.jsonl`` in the reference folder its prompts are known, and text matching is measured too.

    Returns:
        The outcome on the first rank, None on the others, which have nothing to do.

    Raises:
        InputError: a folder or image that cannot be used; says which.
    """
    if not (ranks or Ranks.from_environment()).is_first:
        return None
    claim(request.out)
    reference = all_images(Path(request.reference))
    prompts = _prompts(Path(request.reference), reference)
    judges = load_judges(request if prompts is not None else _without_scores(request))
    view = ReferenceViews(judges, reference, prompts)
    named = [_named(text) for text in request.candidates]
    names = [name for name, _ in named]
    if len(set(names)) != len(names):
        names = list(request.candidates)
    sets = [partners(reference, folder) for _, folder in named]
    measured = {}
    for name, images in zip(names, sets, strict=True):
        with progress(f"measuring {name}") as advance:
            measured[name, SET] = measure(view, images, request.bootstrap_seed, advance)
    shape = read_image(reference.paths[0]).shape
    known = prompts if prompts is not None else prompt_set_of(SET, [path.name for path in reference.paths])
    facts = PromptSetFacts(source=request.reference, sha256=known.sha256, n=len(reference.paths))
    results = Results(
        environment=describe_environment(request.device),
        settings=Settings(
            width=shape[1],
            height=shape[0],
            prompt_sets={SET: facts},
            features=next(iter(judges.extractors.values())).identity,
            other_features={name: one.identity for name, one in list(judges.extractors.items())[1:]},
            clip=judges.clip.identity if judges.clip is not None else None,
            lpips=judges.lpips.identity if judges.lpips is not None else None,
            bootstrap_seed=request.bootstrap_seed,
            commands=request.commands,
        ),
        reference=Model(name=Path(request.reference).name or request.reference, source=request.reference),
        candidates=tuple(
            Candidate(name=name, source=text, sets={SET: measured[name, SET].result})
            for name, text in zip(names, (str(folder) for _, folder in named), strict=True)
        ),
        comparisons=comparisons(names, [SET], measured, request.bootstrap_seed),
        warnings=tuple(dict.fromkeys(text for one in measured.values() for text in one.warnings)),
    )
    with output_errors(f"The results in {request.out}"):
        request.out.mkdir(parents=True, exist_ok=True)
        write_atomically(request.out / RESULTS, results.to_json())
    pairs = {
        (name, SET): list(zip(reference.paths, images.paths, strict=True))
        for name, images in zip(names, sets, strict=True)
    }
    return BenchOutcome(results, measured, pairs, {SET: known})


def _named(text: str) -> tuple[str, Path]:
    """Name and folder of a candidate, which may be given as NAME=FOLDER."""
    name, equals, rest = text.partition("=")
    if equals and name and "/" not in name and not Path(text).exists():
        return name, Path(rest)
    return Path(text).name or text, Path(text)


def _without_scores(request: BenchRequest) -> BenchRequest:
    return replace(request, clip=None)


def _prompts(folder: Path, images: ImageSet) -> PromptSet | None:
    """The prompts of the images in their order; None without a manifest."""
    if not (folder / MANIFEST).is_file():
        return None
    by_file = {os.path.normpath(entry["file"]): entry["prompt"] for entry in read_manifest(folder)}
    missing = [path.name for path in images.paths if path.name not in by_file]
    if missing:
        raise InputError(f"{folder / MANIFEST} says nothing of {missing[0]}; remove the image or add its line.")
    return prompt_set_of(SET, [by_file[path.name] for path in images.paths])
