"""How often the 95 % intervals hold the large-sample value.

The prompts that were painted are made the whole world: a sample draws from them *with* replacement, so that its draws
are independent and the world's own value is the large-sample value, known exactly. (Drawn without replacement, a
sample would know part of the answer; and the plain Fréchet distance of all prompts would be a truth with a bias.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from halftone.qdiffbench.columns import (
    MATCHED,
    SUMMARIZED,
    Columns,
    Features,
    distances,
    sample_distances,
    value_fields,
)
from halftone.qdiffbench.kernel_distance import kernel, kid
from halftone.qdiffbench.moments import gaussian_distance
from halftone.report.metrics import wilson

MAIN = "main"  # the one extractor
Number = TypeVar("Number", np.float64, np.float32)
Interval = tuple[float, float]
FloatArray = npt.NDArray[np.float64]


def write_columns(columns: Columns, path: Path) -> None:
    """As one .npz file."""
    parts = {"values": columns.values, "reference_values": columns.reference_values}
    named = {f"{part}.{name}": values for part, found in parts.items() for name, values in found.items()}
    (ours,), (theirs,) = columns.features.values(), columns.reference_features.values()
    with open(path, "wb") as file:
        np.savez(file, features=ours, reference_features=theirs, **named)  # type: ignore[arg-type]


def read_columns(path: Path) -> Columns:
    """What `write_columns` wrote."""
    with np.load(path, allow_pickle=False) as found:
        values, references = (
            {key.removeprefix(part): found[key] for key in found if key.startswith(part)}
            for part in ("values.", "reference_values.")
        )
        return Columns(values, references, {MAIN: found["features"]}, {MAIN: found["reference_features"]})


def drawn(columns: Columns, rows: npt.NDArray[np.int64]) -> Columns:
    """The columns of a sample; a column of the first prompts only takes the draws that fell on those."""

    def taken(values: Mapping[str, npt.NDArray[Number]]) -> dict[str, npt.NDArray[Number]]:
        return {name: one[rows[rows < len(one)]] for name, one in values.items() if (rows < len(one)).any()}

    return Columns(
        taken(columns.values),
        taken(columns.reference_values),
        taken(columns.features),
        taken(columns.reference_features),
    )


def intervals(columns: Columns, seed: int) -> dict[str, Interval]:
    """The 95 % intervals that the benchmark gives these columns, by metric."""
    fields = value_fields(columns, seed)
    found = {name: fields[name].ci95 for name in SUMMARIZED if name in fields}
    found |= {name: fields[name].ci95 for name in (f"{one}_difference" for one in MATCHED) if name in fields}
    if "attribute_accuracy" in fields:
        found["attribute_accuracy"] = wilson(fields["attribute_accuracy"], len(columns.values["attribute_accuracy"]))
    features = columns.features[MAIN], columns.reference_features[MAIN]
    distance = distances(*features, sample_distances(*features, seed), seed, kid_subsets=False)
    for name, interval in (("fid_to_fp", distance.fid_to_fp_ci95), ("kid_to_fp", distance.kid_to_fp_ci95)):
        assert interval is not None
        found[name] = interval
    return found


def large_sample_values(columns: Columns) -> dict[str, float]:
    """What the metrics come to with ever more draws from these columns."""
    values, references = columns.values, columns.reference_values
    truth = {name: float(values[name].mean()) for name in SUMMARIZED if name in values}
    for name in MATCHED:
        if name in references:
            truth[f"{name}_difference"] = float(values[name].mean() - references[name].mean())
    if "attribute_accuracy" in values:
        truth["attribute_accuracy"] = float(values["attribute_accuracy"].mean())
    ours, theirs = columns.features[MAIN], columns.reference_features[MAIN]
    truth["fid_to_fp"] = gaussian_distance(*_population_moments(ours), *_population_moments(theirs))
    truth["kid_to_fp"] = _population_kid(ours, theirs)
    return truth


def one_trial(columns: Columns, sample: int, trial: int) -> dict[str, Interval]:
    """Intervals of the sample of that number."""
    rows = np.random.default_rng([trial, sample]).integers(0, len(columns.features[MAIN]), sample)
    return intervals(drawn(columns, rows), seed=trial)


def counted(truth: Mapping[str, float], trials: Sequence[Mapping[str, Interval]]) -> dict[str, dict[str, object]]:
    """By metric: how many intervals held the truth, a 95 % interval of that share, and on which side others lay."""
    found = {}
    for name, value in truth.items():
        ends = [one[name] for one in trials if name in one]
        if ends:
            below, above = sum(high < value for _, high in ends), sum(low > value for low, _ in ends)
            held = len(ends) - below - above
            found[name] = {
                "large_sample_value": value,
                "trials": len(ends),
                "held": held,
                "share": held / len(ends),
                "share_ci95": wilson(held / len(ends), len(ends)),
                "below": below,
                "above": above,
                "mean_width": float(np.mean([high - low for low, high in ends])),
            }
    return found


def _population_moments(features: Features) -> tuple[FloatArray, FloatArray]:
    """Mean (d,) and covariance (d, d) of the world itself, which are no estimates: divided by n."""
    rows = np.asarray(features, dtype=np.float64)
    mean = rows.mean(axis=0)
    return mean, (rows - mean).T @ (rows - mean) / len(rows)


def _population_kid(ours: Features, theirs: Features) -> float:
    """The mean over all pairs of draws, two of which may be the same prompt."""
    n = len(ours)
    x, y = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    same = sum(float(kernel(a, a)[0, 0] + kernel(b, b)[0, 0] - 2.0 * kernel(a, b)[0, 0]) for a, b in _rows(x, y))
    return ((n - 1) * kid(x, y, paired=True) + same / n) / n


def _rows(x: FloatArray, y: FloatArray) -> list[tuple[FloatArray, FloatArray]]:
    return [(x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
