"""Every pair of candidates on every prompt set: which is better, and how surely."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from halftone.qdiffbench.differences import Difference, paired_difference
from halftone.qdiffbench.directions import higher_is_better
from halftone.qdiffbench.distribution_intervals import distance_difference
from halftone.qdiffbench.measure import Measured
from halftone.qdiffbench.results import Comparison

COMPARED = ("psnr", "ssim", "ms_ssim", "lpips", "latent_error", "clip_score", "attribute_accuracy")
DISTANCES = ("fid_to_fp", "kid_to_fp")


def comparisons(
    names: Sequence[str],
    sets: Sequence[str],
    measured: Mapping[tuple[str, str], Measured],
    seed: int,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> tuple[Comparison, ...]:
    """Of all pairs, or of some; distances under extractors after the first are called as in "fid_to_fp:dinov2".

    Args:
        names: of the candidates.
        measured: (candidate, set) -> what was measured, all with one seed.
        seed: of the resampling.
        pairs: of names; None for all.
    """
    return tuple(
        Comparison(
            set=set_name,
            metric=metric,
            a=a,
            b=b,
            difference=difference.difference,
            ci95=(difference.low, difference.high),
            p_value=difference.p_value,
            n=difference.n,
            verdict=difference.verdict(a, b, higher_is_better=higher_is_better(metric.partition(":")[0])),
        )
        for set_name in sets
        for a, b in (combinations(names, 2) if pairs is None else pairs)
        for metric, difference in _differences(measured[a, set_name], measured[b, set_name], seed)
    )


def _differences(first: Measured, second: Measured, seed: int) -> Iterator[tuple[str, Difference]]:
    for metric in COMPARED:
        # where one was followed on fewer prompts than the other, their latents cannot be paired
        if len(first.values.get(metric, ())) == len(second.values.get(metric, ())) > 0:
            yield metric, paired_difference(first.values[metric], second.values[metric], seed=seed)
    for number, (extractor, ours) in enumerate(first.sampled.items()):
        theirs, suffix = second.sampled[extractor], f":{extractor}" if number else ""
        yield f"fid_to_fp{suffix}", distance_difference(ours.frechet, theirs.frechet)
        yield f"kid_to_fp{suffix}", distance_difference(ours.kernel, theirs.kernel)
