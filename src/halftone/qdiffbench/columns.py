"""What was measured of one candidate's images, prompt by prompt, and the fields of the record that follow from it.

`benchmarks.qdiffbench` counts with these very functions how often the intervals hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from halftone.qdiffbench.differences import paired_difference
from halftone.qdiffbench.directions import higher_is_better
from halftone.qdiffbench.distribution_intervals import (
    SampledDistance,
    frechet_estimate,
    kid_estimate,
    sample_frechet,
    sample_kid,
)
from halftone.qdiffbench.intervals import summarize
from halftone.qdiffbench.kernel_distance import kid_over_subsets
from halftone.qdiffbench.set_results import Distances, KidSubsets, Mean, Summary

KID_SUBSET = 1000
SUMMARIZED = ("psnr", "ssim", "ms_ssim", "lpips", "latent_error")
MATCHED = ("clip_score", "attribute_accuracy")

Values = npt.NDArray[np.float64]
Features = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    """No progress is shown."""


@dataclass(frozen=True)
class Columns:
    """Measured values and features, row i of all of them being the same prompt and noise.

    Attributes:
        values: metric -> (n,) values of the candidate; ``latent_error`` has the followed prompts only, the first ones.
        reference_values: the same of the reference, for `MATCHED` metrics.
        features: extractor -> (n, d) of the candidate's images.
        reference_features: the same of the reference's images.
    """

    values: Mapping[str, Values]
    reference_values: Mapping[str, Values]
    features: Mapping[str, Features]
    reference_features: Mapping[str, Features]


def value_fields(columns: Columns, seed: int) -> dict[str, Any]:
    """Fields of a `SetResult` that are means over the prompts, with intervals.

    Args:
        seed: of the resampling.
    """
    values, references = columns.values, columns.reference_values
    fields: dict[str, Any] = {}
    for name in MATCHED:
        if name in values and name in references:
            fields[name], fields[f"{name}_reference"] = float(values[name].mean()), float(references[name].mean())
            fields[f"{name}_difference"] = Mean.of(paired_difference(values[name], references[name], seed=seed))
    for name in SUMMARIZED:
        if name in values:
            summary = summarize(values[name], higher_is_better=higher_is_better(name), seed=seed)
            fields[name] = Summary.of(summary)
    return fields


@dataclass(frozen=True)
class SampledDistances:
    """Both distances under one feature extractor, with their samples."""

    frechet: SampledDistance
    kernel: SampledDistance


def sample_distances(ours: Features, theirs: Features, seed: int, progress: Progress = _silent) -> SampledDistances:
    """Distances of (n, d) features.

    Args:
        seed: of the resampling.
    """
    frechet = sample_frechet(ours, theirs, seed=seed, progress=progress)
    return SampledDistances(frechet, sample_kid(ours, theirs, seed=seed))


def distances(
    ours: Features, theirs: Features, sampled: SampledDistances, seed: int, kid_subsets: bool = True
) -> Distances:
    """The record of `sample_distances` of the same features.

    Args:
        kid_subsets: whether a kernel distance over subsets is wanted too, for sets that are large enough.
    """
    fid, kid = frechet_estimate(sampled.frechet), kid_estimate(sampled.kernel)
    return Distances(
        fid_to_fp=fid.mean,
        fid_to_fp_unbiased=fid.unbiased,
        fid_to_fp_ci95=(fid.low, fid.high),
        kid_to_fp=kid.mean,
        kid_to_fp_ci95=(kid.low, kid.high),
        kid_subsets=_over_subsets(ours, theirs, seed) if kid_subsets and len(ours) > KID_SUBSET else None,
    )


def _over_subsets(ours: Features, theirs: Features, seed: int) -> KidSubsets:
    found = kid_over_subsets(ours, theirs, paired=True, size=KID_SUBSET, seed=seed)
    return KidSubsets(mean=found.mean, std=found.std, subsets=found.subsets, size=found.size)
