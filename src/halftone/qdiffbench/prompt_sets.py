"""Prompt sets to evaluate on: where they come from, what exactly is in them, and which part of them is used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from halftone.errors import InputError
from halftone.prompt_files import PromptEntry
from halftone.prompts import prompt_entries

__all__ = ["PromptEntry", "PromptSet", "load_prompt_set", "prompt_set_of"]


@dataclass(frozen=True)
class PromptSet:
    """Prompts under a name.

    Attributes:
        name: what the set is called in results, such as "in-domain".
        source: FILE, FILE:COLUMN or bundled:NAME, as given.
        entries: in the file's order, or in the sample's.
        sha256: of prompts and alternatives in their order, whatever kind of file they came from.
    """

    name: str
    source: str
    entries: tuple[PromptEntry, ...]
    sha256: str

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts alone."""
        return tuple(entry.prompt for entry in self.entries)

    @property
    def has_alternatives(self) -> bool:
        """Whether every prompt has alternatives, so that attribute accuracy can be measured."""
        return all(entry.alternatives for entry in self.entries)

    def sample(self, num_images: int | None = None, seed: int = 0) -> PromptSet:
        """The prompts to paint, in the order to paint them; None takes all.

        Samples are nested: the first k of a larger one are the sample of k, so that a longer run goes on where a
        shorter one ended, also with the seeds that follow from the position. The order depends on seed,
        position in the file and text alone, not on a library's random numbers.

        Raises:
            InputError: ``num_images`` is below 1 or above the number of prompts.
        """
        wanted = len(self.entries) if num_images is None else num_images
        if wanted < 1:
            raise InputError(f"The number of images must be at least 1, got {wanted}.")
        if wanted > len(self.entries):
            raise InputError(f"{self.source} has {len(self.entries)} prompts, and {wanted} images are asked for.")
        keys = [_lot(seed, index, entry.prompt) for index, entry in enumerate(self.entries)]
        order = sorted(range(len(keys)), key=lambda index: keys[index])[:wanted]
        chosen = tuple(self.entries[index] for index in order)
        return PromptSet(self.name, self.source, chosen, _content_sha256(chosen))


def load_prompt_set(source: str | Path, name: str | None = None, column: str | None = None) -> PromptSet:
    """Reads a prompt set.

    Args:
        source: a text file (one prompt a line), a JSONL or CSV file, FILE:COLUMN, or ``bundled:NAME``.
        name: in results; by default the file's stem or the bundled set's name.
        column: which key or column holds the prompt; "prompt" if none is named.

    Raises:
        InputError: it cannot be read; says what is wrong and where.
    """
    entries = prompt_entries(source, column)
    text = str(source)
    default = text.removeprefix("bundled:") if text.startswith("bundled:") else Path(text).stem
    return PromptSet(name or default, text, entries, _content_sha256(entries))


def prompt_set_of(name: str, prompts: Sequence[str]) -> PromptSet:
    """A set of texts that come from no prompt file."""
    entries = tuple(PromptEntry(text) for text in prompts)
    return PromptSet(name, name, entries, _content_sha256(entries))


def _lot(seed: int, index: int, prompt: str) -> bytes:
    """What the prompt draws: the sample takes the smallest lots."""
    return hashlib.sha256(f"{seed}\0{index}\0{prompt}".encode()).digest()


def _content_sha256(entries: tuple[PromptEntry, ...]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        line = json.dumps([entry.prompt, list(entry.alternatives)], ensure_ascii=False, separators=(",", ":"))
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()
