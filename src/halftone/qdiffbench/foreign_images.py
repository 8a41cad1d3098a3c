"""Folders of images that were made elsewhere, with a manifest that says which prompt each is of."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from halftone.errors import InputError
from halftone.qdiffbench.measure import ImageSet
from halftone.qdiffbench.prompt_sets import PromptSet

MANIFEST = "manifest.jsonl"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def foreign_image_set(folder: Path, prompts: PromptSet, first_seed: int) -> ImageSet:
    """The images of a folder for the prompts of a sample, in its order.

    ``manifest.jsonl`` has an object a line with ``prompt``, ``file`` and perhaps ``seed``, as `halftone generate`
    writes it. Of several images of a prompt the one whose seed is the reference's is taken, else the first.

    Args:
        first_seed: of the reference's first image; that of image i is ``first_seed + i``.

    Raises:
        InputError: the manifest is missing or damaged, or has no image of a prompt, or one that is not there, cannot be
            read or is of another size than the others; says which.
    """
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for entry in read_manifest(folder):
        by_prompt.setdefault(entry["prompt"], []).append(entry)
    wanted = list(enumerate(prompts.prompts, start=first_seed))
    chosen: dict[int, dict[str, Any]] = {}
    for is_exact in (True, False):  # so that no prompt that comes twice takes the other's own image
        for seed, prompt in wanted:
            rest = by_prompt.get(prompt, [])
            fitting = [entry for entry in rest if not is_exact or entry.get("seed") == seed]
            if seed not in chosen and fitting:
                chosen[seed] = fitting[0]
                rest.remove(fitting[0])
    lacking = next((prompt for seed, prompt in wanted if seed not in chosen), None)
    if lacking is not None:
        raise InputError(f"{folder} has no image of the prompt {lacking[:80]!r}; it needs one for each prompt.")
    entries = [chosen[seed] for seed, _ in wanted]
    _check_images(folder, [entry["file"] for entry in entries])
    seeds = [entry.get("seed") for entry in entries]
    return ImageSet([folder / entry["file"] for entry in entries], seeds=seeds)


def _check_images(folder: Path, names: Sequence[str]) -> None:
    """From their first bytes alone: what is wrong should be told before hours of painting."""
    first: tuple[str, tuple[int, int]] | None = None
    for name in names:
        if not (folder / name).is_file():
            raise InputError(f"{folder / MANIFEST} names {name}, which is not there.")
        try:
            with Image.open(folder / name) as image:
                size = image.size
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"{folder / name} is no image that can be read: {error}") from error
        first = first or (name, size)
        if size != first[1]:
            raise InputError(
                f"{folder / first[0]} is {first[1][0]}×{first[1][1]} pixels and {name} {size[0]}×{size[1]}; compare"
                " images of one size."
            )


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """Entries of a folder's manifest, each with ``prompt`` and ``file``.

    Raises:
        InputError: it is missing or damaged; says where.
    """
    path = folder / MANIFEST
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except FileNotFoundError as error:
        raise InputError(f"{folder} has no {MANIFEST}; it needs a line with prompt and file for each image.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return [_entry(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def all_images(folder: Path) -> ImageSet:
    """All images of a folder, by name; their seeds are those of its manifest, if it has one.

    Raises:
        InputError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of images.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise InputError(f"{folder} has no images ({', '.join(IMAGE_SUFFIXES)}).")
    return ImageSet(paths, seeds=[entry.get("seed") for entry in _entries_of(folder, paths)])


def partners(reference: ImageSet, folder: Path) -> ImageSet:
    """All images of a folder in the order of the reference's, each beside the one that it is compared with.

    They are paired by file name without its ending where the folders have the same ones and no prompts speak against
    it; else by prompt, and by seed where both give it, if both have manifests.

    Raises:
        InputError: an image has no partner; says which. Or a folder or manifest cannot be used.
    """
    images, home = all_images(folder), reference.paths[0].parent
    ours, theirs = _entries_of(home, reference.paths), _entries_of(folder, images.paths)
    by_stem = {path.stem: index for index, path in enumerate(images.paths)}
    stems = [path.stem for path in reference.paths]
    is_bijective = len(by_stem) == len(images.paths) == len(stems) and set(stems) == set(by_stem)
    known = all("prompt" in entry for entry in (*ours, *theirs))
    order: list[int | None]
    if is_bijective and not (
        known and any(a["prompt"] != theirs[by_stem[s]]["prompt"] for s, a in zip(stems, ours, strict=True))
    ):
        order, how = [by_stem[stem] for stem in stems], ""
    elif known:
        order, how = _by_prompt(ours, theirs), "of its prompt and seed"
    else:
        order, how = _by_name(stems, [path.stem for path in images.paths]), "of its name"
    lonely = [(path, folder) for path, index in zip(reference.paths, order, strict=True) if index is None]
    lonely += [(path, home) for index, path in enumerate(images.paths) if index not in order]
    if lonely:
        path, other = lonely[0]
        raise InputError(
            f"The image {path} has no partner {how} in {other}; give both folders the same file names, or a {MANIFEST}"
            " with prompt, file and seed of each image."
        )
    chosen = [index for index in order if index is not None]
    return ImageSet([images.paths[i] for i in chosen], seeds=[images.seeds[i] for i in chosen])


def _entries_of(folder: Path, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """What the folder's manifest says of each image; an empty entry where it says nothing."""
    if not (folder / MANIFEST).is_file():
        return [{} for _ in paths]
    by_file = {os.path.normpath(entry["file"]): entry for entry in read_manifest(folder)}
    return [by_file.get(path.name, {}) for path in paths]


def _by_prompt(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> list[int | None]:
    """Of each of our entries the index of their one of the same prompt; equal seeds first, never different ones."""
    free: dict[str, list[int]] = {}
    for index, entry in enumerate(theirs):
        free.setdefault(entry["prompt"], []).append(index)
    found: list[int | None] = [None] * len(ours)
    for is_exact in (True, False):
        for position, entry in enumerate(ours):
            if found[position] is not None:
                continue
            seed, rest = entry.get("seed"), free.get(entry["prompt"], [])
            seeds = {index: theirs[index].get("seed") for index in rest}
            fits = [i for i in rest if (seed == seeds[i] if is_exact else None in (seed, seeds[i]))]
            if fits:
                found[position] = fits[0]
                rest.remove(fits[0])
    return found


def _by_name(ours: Sequence[str], theirs: Sequence[str]) -> list[int | None]:
    """Of each of our names the index of the same one of theirs, each used once."""
    free = {name: index for index, name in reversed(list(enumerate(theirs)))}
    return [free.pop(name, None) for name in ours]


def _entry(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise InputError(f"{path}, line {number} is not JSON: {error}") from error
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("prompt", "file")):
        raise InputError(f"{path}, line {number} needs the texts prompt and file.")
    # by its name alone: a link inside the folder may lead elsewhere, since its owner made it
    if not Path(os.path.abspath(path.parent / entry["file"])).is_relative_to(os.path.abspath(path.parent)):
        raise InputError(f"{path}, line {number} names {entry['file']!r}, which lies outside the folder.")
    if not isinstance(entry.get("seed"), int | None):
        raise InputError(f"{path}, line {number}: the seed must be an integer, got {entry['seed']!r}.")
    return entry
