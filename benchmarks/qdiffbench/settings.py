"""What the study is asked for, and how its parts are told to `halftone bench`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from halftone.errors import InputError
from halftone.files import write_atomically

ITSELF = "itself"
SETTINGS = "study.json"
_CONTENTS = "contents"


@dataclass(frozen=True)
class StudySettings:
    """Everything that determines the study's numbers.

    Attributes:
        source: the full-precision model; a candidate of another name is itself once more, or itself with weight noise.
        clip: CLIPModel of features and scores.
        prompts: set name -> prompts; the first set is the one that coverage is counted on.
        num_images: prompts of each set that the model is compared with itself on, and of the first set for coverage.
        rank_images: prompts of each set that the noisy models are ranked on.
        sigmas: relative noise on the weights, growing.
        coverage_sigma: the noisy model whose intervals are counted; one of `sigmas`.
        sample: prompts of one drawn sample.
        trials: how many samples are drawn.
        kills: how often the first comparison is killed.
        processes: that paint; each with one thread.
    """

    source: str
    clip: str
    prompts: dict[str, str]
    num_images: int
    rank_images: int
    steps: int
    guidance: float
    sigmas: tuple[float, ...]
    coverage_sigma: float
    sample: int
    trials: int
    kills: int
    processes: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.coverage_sigma not in self.sigmas:
            raise InputError(f"--coverage-sigma {self.coverage_sigma:g} must be one of --sigmas.")
        if sorted(self.sigmas) != list(self.sigmas) or self.sigmas[0] <= 0 or len(set(self.sigmas)) < len(self.sigmas):
            raise InputError("--sigmas must be positive and grow.")
        if self.rank_images > self.num_images:
            raise InputError("--rank-images cannot be more than --num-images: samples are nested.")

    @property
    def coverage_set(self) -> str:
        """The prompt set that coverage is counted on."""
        return next(iter(self.prompts))

    @property
    def images_to_paint(self) -> int:
        """Of the whole study: both sets twice at full precision, and what the noisy models need."""
        sets, noisy = len(self.prompts), len(self.sigmas)
        more = self.num_images - self.rank_images  # of the noisy model that coverage is counted on
        return 2 * sets * self.num_images + sets * noisy * self.rank_images + more


@dataclass(frozen=True)
class Study:
    """The settings and the folder that all parts work in."""

    settings: StudySettings
    work: Path

    def claim(self, contents: Mapping[str, str]) -> None:
        """Begins the folder, or goes on in it.

        Args:
            contents: hashes of the models, which may lie under the same name and be others tomorrow.

        Raises:
            InputError: another study was begun there, or something else is in it.
        """
        wanted = json.loads(json.dumps({**asdict(self.settings), _CONTENTS: dict(contents)}))
        path = self.work / SETTINGS
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            different = sorted(key for key in {*stored, *wanted} if stored.get(key) != wanted.get(key))
            if different:
                raise InputError(f"{self.work} holds another study (it differs in: {', '.join(different)}).")
            return
        if self.work.is_dir() and any(self.work.iterdir()):
            raise InputError(f"{self.work} is not empty and holds no study; choose another --work.")
        for folder in ("models", "parts"):
            (self.work / folder).mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(wanted, indent=2) + "\n")

    @classmethod
    def reopened(cls, work: Path) -> Study:
        """The study that `claim` began."""
        stored: dict[str, Any] = json.loads((work / SETTINGS).read_text(encoding="utf-8"))
        del stored[_CONTENTS]
        return cls(StudySettings(**{**stored, "sigmas": tuple(stored["sigmas"])}), work)

    @property
    def out(self) -> Path:
        """Of all comparisons, so that they share their images."""
        return self.work / "bench"

    @property
    def cache(self) -> Path:
        """Of the reference's images."""
        return self.work / "cache"

    def model(self, sigma: float) -> Path:
        """Folder of a noisy model."""
        return self.work / "models" / noisy_name(sigma)

    def candidate(self, sigma: float) -> str:
        """A noisy model as CANDIDATE."""
        return f"{noisy_name(sigma)}={self.model(sigma)}"

    def bench(self, candidates: Sequence[str], sets: Sequence[str], num_images: int) -> list[str]:
        """The command line of a comparison."""
        settings = self.settings
        named = [word for name in sets for word in ("--prompts", f"{name}={settings.prompts[name]}")]
        return [
            *(sys.executable, "-m", "halftone", "bench", settings.source, *candidates, *named),
            *("--num-images", str(num_images), "--steps", str(settings.steps), "--guidance", str(settings.guidance)),
            *("--seed", str(settings.seed), "--clip", settings.clip, "--noise-floor", "none"),
            *("--out", str(self.out), "--cache", str(self.cache)),
        ]


def noisy_name(sigma: float) -> str:
    """What the model with this noise is called."""
    return f"noise-{sigma:g}"
