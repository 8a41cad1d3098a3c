"""Who is nearest, and what that means in a sentence: ranking, verdicts and the headline."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from halftone.qdiffbench.results import Candidate, Results
from halftone.qdiffbench.set_results import SetResult
from halftone.report import words

GLYPHS = "●■▲◆▼✚✖★"
"""Marks of the candidates in rank order; the plots draw the same shapes."""

SAME, CLOSE, SIMILAR = 0.95, 0.85, 0.60
"""Mean SSIM from which pictures are called the same, the same with small differences, similar."""

_PHRASES = {
    "identical": "identical pictures",
    "same": "the same pictures",
    "close": "the same pictures with small differences",
    "similar": "similar pictures with other details",
    "other": "different pictures",
}
_RANKS = tuple(_PHRASES)


@dataclass(frozen=True)
class Standing:
    """A candidate at its place. ``kinds`` are set name -> one of identical, same, close, similar, other."""

    candidate: Candidate
    place: int
    kinds: dict[str, str]

    @property
    def name(self) -> str:
        return self.candidate.name

    @property
    def glyph(self) -> str:
        return GLYPHS[self.place % len(GLYPHS)]

    @property
    def color(self) -> str:
        """Name of its CSS variable."""
        return f"--c{self.place % len(GLYPHS)}"

    @property
    def worst_kind(self) -> str:
        return max(self.kinds.values(), key=_RANKS.index, default="other")

    @property
    def verdict(self) -> str:
        """ "the same pictures", or a phrase for each kind and on which sets, where the sets differ."""
        sets_of = {kind: [name for name, other in self.kinds.items() if other == kind] for kind in self.kinds.values()}
        if len(sets_of) <= 1:
            return _PHRASES[self.worst_kind]
        nearest_first = sorted(sets_of, key=_RANKS.index)
        return words.enumerated([f"{_PHRASES[k]} on {words.enumerated(sets_of[k])}" for k in nearest_first], last="but")


def standings(results: Results) -> list[Standing]:
    """Candidates from the nearest (highest mean PSNR over its sets) to the farthest."""
    ranked = sorted(results.candidates, key=lambda c: -_mean(s.psnr.mean for s in c.sets.values()))
    return [Standing(c, place, _kinds(c, results)) for place, c in enumerate(ranked)]


def set_names(results: Results) -> list[str]:
    """Prompt sets that were measured, in the settings' order, then as the candidates have them."""
    measured = [name for candidate in results.candidates for name in candidate.sets]
    return [*dict.fromkeys([name for name in results.settings.prompt_sets if name in measured] + measured)]


def headline(ranked: list[Standing]) -> str:
    """The one sentence to take away."""
    if not ranked:
        return "Nothing was compared."
    first = ranked[0]
    if len(ranked) == 1:
        still = "still " if first.worst_kind == "same" else ""
        return f"{first.name} {still}paints {first.verdict}."
    kept = [s for s in ranked if s.worst_kind in ("identical", "same")]
    if len(kept) == len(ranked):
        return f"All {len(ranked)} candidates still paint the same pictures; {first.name} is nearest."
    if len(kept) == 1:
        return f"Of {len(ranked)} candidates, only {kept[0].name} still paints the same pictures."
    if kept:
        return f"{len(kept)} of {len(ranked)} candidates still paint the same pictures; {first.name} is nearest."
    return f"None of {len(ranked)} candidates paints quite the same pictures; {first.name} is nearest."


def _kinds(candidate: Candidate, results: Results) -> dict[str, str]:
    order = [name for name in set_names(results) if name in candidate.sets]
    return {name: _kind(candidate.sets[name], another_seed(results, name)) for name in order}


def _kind(result: SetResult, another_seed: SetResult | None) -> str:
    ssim = result.ssim.mean
    if result.psnr.mean >= words.CAP_DB:
        return "identical"
    if another_seed is not None and ssim <= another_seed.ssim.ci95[1]:
        return "other"
    return "same" if ssim >= SAME else "close" if ssim >= CLOSE else "similar" if ssim >= SIMILAR else "other"


def another_seed(results: Results, set_name: str) -> SetResult | None:
    """The reference against itself from other noise: as different as pictures of one prompt can be."""
    floors = (f.sets[set_name] for f in results.noise_floor if f.kind == "seed" and set_name in f.sets)
    return next(floors, None)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else float("-inf")
