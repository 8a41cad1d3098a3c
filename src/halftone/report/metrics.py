"""The measured metrics as columns: their names for readers, and how to read value and interval from a set's result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from halftone.qdiffbench.set_results import Distances, SetResult, Summary

_Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Reading:
    """One value in a column's unit.

    Attributes:
        low, high: ends of its 95 % interval; None where none was measured.
        note, note_value: a second number that belongs to it, such as the reference's.
    """

    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""
    note_value: float | None = None


@dataclass(frozen=True)
class Metric:
    """A column.

    Attributes:
        name: as in ``results.json``.
        label, unit: for readers; ``words`` explains it in a sentence.
        digits: at least so many decimals.
        higher: whether higher is better.
        read: the reading of a set's result; None if it was not measured.
    """

    name: str
    label: str
    unit: str
    digits: int
    higher: bool
    words: str
    read: Callable[[SetResult], Reading | None]

    @property
    def heading(self) -> str:
        """Label with unit: "PSNR, dB"."""
        return f"{self.label}, {self.unit}" if self.unit else self.label


def metrics_of(results: Iterable[SetResult]) -> list[Metric]:
    """The metrics that at least one of the results has, in reading order; further feature extractors come last."""
    sets = list(results)
    extractors = sorted({name for item in sets for name in item.other_features})
    metrics = [*METRICS, *(metric for name in extractors for metric in _other_metrics(name))]
    return [metric for metric in metrics if any(metric.read(item) is not None for item in sets)]


def decimals(metric: Metric, readings: Sequence[Reading | None]) -> int:
    """How many decimals a column needs so that its typical interval is visible (three figures without intervals)."""
    there = [reading for reading in readings if reading is not None]
    widths = [r.high - r.low for r in there if r.low is not None and r.high is not None and r.high > r.low]
    sizes = sorted(widths) or sorted(abs(r.value) / 100 for r in there if r.value)
    if not sizes:
        return metric.digits
    return min(6, max(metric.digits, -math.floor(math.log10(sizes[len(sizes) // 2] / 2) + 1e-9)))


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % score interval of a share of n prompts (Wilson, 1927)."""
    center = (share + _Z95**2 / (2 * n)) / (1 + _Z95**2 / n)
    half = _Z95 / (1 + _Z95**2 / n) * math.sqrt(share * (1 - share) / n + _Z95**2 / (4 * n * n))
    # exactly the ends where they are exact, which rounding would miss by 1e-17
    return 0.0 if share <= 0.0 else max(0.0, center - half), 1.0 if share >= 1.0 else min(1.0, center + half)


def gap_interval(first: Reading, second: Reading) -> tuple[float, float] | None:
    """95 % interval of second - first of two independent sets (Zou & Donner, 2008); None without intervals."""
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return None
    difference = second.value - first.value
    low = math.hypot(second.value - second.low, first.high - first.value)
    high = math.hypot(second.high - second.value, first.value - first.low)
    return difference - low, difference + high


def _summary(field: str, scale: float, result: SetResult) -> Reading | None:
    summary: Summary | None = getattr(result, field)
    if summary is None:
        return None
    worst = scale * summary.worst_decile
    return Reading(scale * summary.mean, scale * summary.ci95[0], scale * summary.ci95[1], "worst tenth", worst)


def _frechet(distances: Distances | None) -> Reading | None:
    if distances is None:
        return None
    if distances.fid_to_fp_unbiased is None:
        return Reading(distances.fid_to_fp, note="plain, not corrected")
    low, high = distances.fid_to_fp_ci95 or (None, None)
    return Reading(distances.fid_to_fp_unbiased, low, high, "plain", distances.fid_to_fp)


def _kernel(distances: Distances | None) -> Reading | None:
    if distances is None:
        return None
    if distances.kid_to_fp_ci95 is None:
        return Reading(1000 * distances.kid_to_fp)
    low, high = distances.kid_to_fp_ci95
    return Reading(1000 * distances.kid_to_fp, 1000 * low, 1000 * high)


def _clip(result: SetResult) -> Reading | None:
    score, reference, change = result.clip_score, result.clip_score_reference, result.clip_score_difference
    if change is not None:
        return Reading(change.mean, *change.ci95, "" if score is None else "score", score)
    if score is None or reference is None:
        return None
    return Reading(score - reference, note="score", note_value=score)


def _attributes(result: SetResult) -> Reading | None:
    share, reference = result.attribute_accuracy, result.attribute_accuracy_reference
    if share is None:
        return None
    low, high = wilson(share, result.n)
    note = "" if reference is None else "reference"
    return Reading(100 * share, 100 * low, 100 * high, note, None if reference is None else 100 * reference)


# Columns in reading order; every value is already in its column's unit.
METRICS: tuple[Metric, ...] = (
    Metric("psnr", "PSNR", "dB", 1, True, "Each 6 dB halve the colour difference.", partial(_summary, "psnr", 1)),
    Metric("ssim", "SSIM", "", 3, True, "1 is the same structure in every patch.", partial(_summary, "ssim", 1)),
    Metric(
        "ms_ssim", "MS-SSIM", "", 3, True, "SSIM over several scales; 1 is identical.", partial(_summary, "ms_ssim", 1)
    ),
    Metric(
        "lpips", "LPIPS", "", 3, False, "Distance as a network sees it; 0 is identical.", partial(_summary, "lpips", 1)
    ),
    Metric(
        "latent_error",
        "Latent error",
        "%",
        1,
        False,
        "Of the final latent; 0 is identical.",
        partial(_summary, "latent_error", 100),
    ),
    Metric(
        "fid_to_fp",
        "FID to full precision",
        "",
        2,
        False,
        "Distance of all pictures as a crowd; 0 is the same crowd.",
        _frechet,
    ),
    Metric(
        "kid_to_fp",
        "KID to full precision",
        "×1000",
        2,
        False,
        "As FID, without its bias; 0 is the same crowd.",
        _kernel,
    ),
    Metric(
        "clip_score",
        "CLIP score change",
        "",
        2,
        True,
        "Candidate minus full precision; 0 fits the prompts as well.",
        _clip,
    ),
    Metric(
        "attribute_accuracy",
        "Attributes right",
        "%",
        1,
        True,
        "How often the right caption wins over wrong ones.",
        _attributes,
    ),
)


def _other_metrics(name: str) -> list[Metric]:
    """FID and KID under a further extractor."""

    def distances(result: SetResult) -> Distances | None:
        return result.other_features.get(name)

    return [
        Metric(f"fid_to_fp:{name}", f"FID, {name}", "", 2, False, "", lambda result: _frechet(distances(result))),
        Metric(f"kid_to_fp:{name}", f"KID, {name}", "×1000", 2, False, "", lambda result: _kernel(distances(result))),
    ]
