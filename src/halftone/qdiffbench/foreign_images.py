"""Folders of images that were made elsewhere, with a manifest that says which prompt each is of."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from halftone.errors import InputError
from halftone.qdiffbench.measure import ImageSet
from halftone.qdiffbench.prompt_sets import PromptSet

MANIFEST = "manifest.jsonl"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def foreign_image_set(folder: Path, prompts: PromptSet) -> ImageSet:
    """The images of a folder for the prompts of a sample, in its order.

    ``manifest.jsonl`` has an object a line with ``prompt``, ``file`` and perhaps ``seed``, as `halftone generate`
    writes it.

    Raises:
        InputError: the manifest is missing or damaged, or has no image of a prompt, or one that is not there.
    """
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for entry in read_manifest(folder):
        by_prompt.setdefault(entry["prompt"], []).append(entry)
    chosen = []
    for prompt in prompts.prompts:
        rest = by_prompt.get(prompt, [])
        if not rest:
            raise InputError(f"{folder} has no image of the prompt {prompt[:80]!r}; it needs one for each prompt.")
        chosen.append(rest.pop(0))
        if not (folder / chosen[-1]["file"]).is_file():
            raise InputError(f"{folder / MANIFEST} names {chosen[-1]['file']}, which is not there.")
    seeds = [entry.get("seed") for entry in chosen]
    return ImageSet([folder / entry["file"] for entry in chosen], seeds=seeds)


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
    """All images of a folder, by name.

    Raises:
        InputError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of images.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise InputError(f"{folder} has no images ({', '.join(IMAGE_SUFFIXES)}).")
    return ImageSet(paths)


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
