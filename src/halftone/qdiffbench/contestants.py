"""What can be compared: an artifact, a diffusers folder or hub id, another library's quantization, a folder of images.

``SOURCE``, ``torchao:SCHEME@SOURCE``, ``quanto:SCHEME@SOURCE``, or a folder with ``manifest.jsonl``; a name for the
tables may stand before it, as in ``ours=./my-sd-w8a8``.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from halftone.artifact.manifest import MANIFEST, check_files
from halftone.errors import InputError
from halftone.qdiffbench.libraries import LIBRARIES, check_scheme, library_version, quantize_on_the_fly
from halftone.sources import file_digests, open_pipeline, resolve_folder

IMAGES_MANIFEST = "manifest.jsonl"
_SPEC = re.compile(r"^(?P<library>[a-z]+):(?P<scheme>[^@:]+)@(?P<source>.+)$")
_NAME = re.compile(r"^(?P<name>[^=/\\]+)=(?P<rest>.+)$")


@dataclass(frozen=True)
class Contestant:
    """One thing to compare.

    Attributes:
        name: in tables; unique within a benchmark.
        source: as given, without the name.
        library, scheme: of a quantization applied on the fly, else empty.
        model_source: what is opened.
    """

    name: str
    source: str
    model_source: str
    library: str = ""
    scheme: str = ""

    @classmethod
    def parse(cls, text: str) -> Contestant:
        """Reads a specification.

        Raises:
            InputError: an unknown library or scheme.
        """
        named = _NAME.match(text) if not Path(text).exists() else None
        source = named["rest"] if named else text
        name = named["name"] if named else _short(source)
        match = _SPEC.match(source)
        if match is None or match["library"] == "bundled":
            return cls(name, source, source)
        if match["library"] not in LIBRARIES:
            raise InputError(
                f"{source}: {match['library']!r} is no library that Halftone can apply; known: {', '.join(LIBRARIES)}."
            )
        return cls(name, source, match["source"], match["library"], match["scheme"])

    @property
    def is_images(self) -> bool:
        """Whether it is a folder of images made elsewhere."""
        folder = Path(self.model_source)
        return not self.library and (folder / IMAGES_MANIFEST).is_file() and not (folder / "model_index.json").exists()

    def folder(self) -> Path:
        """Of the model, downloaded if it is on the hub."""
        return resolve_folder(self.model_source)

    def check(self) -> None:
        """Tells what is wrong with it, without opening the model.

        Raises:
            InputError: there is no such model, or the library or its scheme is not to be had.
            ArtifactError: it is a damaged artifact.
        """
        if self.library:
            check_scheme(self.library, self.scheme)
        if self.is_images:
            return
        given = Path(self.model_source)
        if given.is_dir() and not (given / "model_index.json").exists():
            raise InputError(
                f"{given} is neither a diffusers pipeline, which has a model_index.json, nor a folder of images, which"
                f" needs a {IMAGES_MANIFEST} with prompt and file of each."
            )
        folder = self.folder()
        if (folder / MANIFEST).is_file():
            check_files(folder)

    def open(self, dtype: Any, device: Any) -> Any:
        """The pipeline, quantized on the fly if a library is named; without a safety checker, whose black images would
        be measured as if the model had painted them.

        Raises:
            InputError: it cannot be opened.
            ArtifactError: it is a damaged artifact.
        """
        folder = self.folder()
        if (folder / MANIFEST).is_file():
            check_files(folder)
        pipeline = open_pipeline(folder, dtype=dtype, device=device, progress_bar=False)
        if getattr(pipeline, "safety_checker", None) is not None:
            pipeline.safety_checker = None
        if self.library:
            quantize_on_the_fly(pipeline, self.library, self.scheme)
        return pipeline

    def sha256(self) -> str:
        """Of the model's files and of what is done to them: what makes the images these and no others."""
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        digests = file_digests(self.folder())
        applied = [self.library, self.scheme, library_version(self.library) if self.library else ""]
        return hashlib.sha256(json.dumps([digests, *applied], sort_keys=True).encode()).hexdigest()


def unique_names(contestants: list[Contestant]) -> list[Contestant]:
    """The same, equal names told apart by a number."""
    seen: dict[str, int] = {}
    result = []
    for one in contestants:
        seen[one.name] = seen.get(one.name, 0) + 1
        name = one.name if seen[one.name] == 1 else f"{one.name} ({seen[one.name]})"
        result.append(Contestant(name, one.source, one.model_source, one.library, one.scheme))
    return result


def _short(source: str) -> str:
    match = _SPEC.match(source)
    if match and match["library"] != "bundled":
        return f"{match['library']} {match['scheme']}"
    text = source.rstrip("/\\")
    return text if text.startswith("bundled:") else Path(text).name or text
