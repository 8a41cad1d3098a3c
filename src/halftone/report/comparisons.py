"""Candidates against each other, as sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from halftone.qdiffbench.differences import SIGNIFICANT
from halftone.qdiffbench.directions import higher_is_better, metric_names
from halftone.qdiffbench.results import Comparison, Results
from halftone.report import words
from halftone.report.metrics import METRICS

LABELS = {metric.name: metric.label for metric in METRICS} | {"clip_score": "CLIP score"}


@dataclass(frozen=True)
class Duel:
    """Two candidates on one prompt set: the sentence, and the comparisons it sums up."""

    a: str
    b: str
    set_name: str
    sentences: tuple[str, ...]
    comparisons: tuple[Comparison, ...]


def duels(results: Results) -> list[Duel]:
    """Every pair of candidates on every set, as the results have them."""
    groups: dict[tuple[str, str, str], list[Comparison]] = {}
    for comparison in results.comparisons:
        groups.setdefault((comparison.a, comparison.b, comparison.set), []).append(comparison)
    return [Duel(a, b, name, tuple(_sentences(a, b, group)), tuple(group)) for (a, b, name), group in groups.items()]


def tied(results: Results, set_name: str, metric: str, a: str, b: str) -> bool:
    """Whether A and B were compared and could not be told apart."""
    return any(
        c.set == set_name and c.metric == metric and {c.a, c.b} == {a, b} and _level(c) is None
        for c in results.comparisons
    )


def label(metric: str) -> str:
    """A metric's name for readers; "fid_to_fp:dinov2" names the extractor."""
    base, _, extractor = metric.partition(":")
    return LABELS.get(base, base) + (f" ({extractor})" if extractor else "")


def _sentences(a: str, b: str, comparisons: Sequence[Comparison]) -> list[str]:
    """ "A better than B in PSNR and SSIM, p < 0.001", the strictest level first, what is undecided last."""
    decided: dict[tuple[float, str, str], list[str]] = {}
    undecided, verbatim = [], []
    for comparison in comparisons:
        level, name = _level(comparison), label(comparison.metric)
        if level is None:
            undecided.append(name)
        elif (winner := _winner(comparison)) is None:
            verbatim.append(f"{name}: {comparison.verdict}")
        else:
            loser = b if winner == a else a
            decided.setdefault((level, winner, loser), []).append(name)
    sentences = [
        f"{winner} better than {loser} in {words.enumerated(names)}, p < {level:g}"
        for (level, winner, loser), names in sorted(decided.items(), key=lambda item: item[0][0])
    ]
    if undecided:
        sentences.append(f"{a} and {b} not distinguishable in {words.enumerated(undecided)}")
    return sentences + verbatim


def _level(comparison: Comparison) -> float | None:
    """The strictest level that the difference passes; None: not distinguishable."""
    if comparison.difference == 0.0:
        return None
    return next((level for level in SIGNIFICANT if comparison.p_value < level), None)


def _winner(comparison: Comparison) -> str | None:
    """Who is better; None for a metric without a known direction."""
    metric = comparison.metric.partition(":")[0]
    if metric not in metric_names():
        return None
    return comparison.a if (comparison.difference > 0.0) == higher_is_better(metric) else comparison.b
