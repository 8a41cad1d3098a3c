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


def decided(results: Results, set_name: str, metric: str) -> bool:
    """Whether candidates were compared in a metric at all."""
    return any(c.set == set_name and c.metric == metric for c in results.comparisons)


def tied(results: Results, set_name: str, metric: str, a: str, b: str) -> bool:
    """Whether A and B were compared and could not be told apart."""
    return any(
        c.set == set_name and c.metric == metric and {c.a, c.b} == {a, b} and _level(c) is None
        for c in results.comparisons
    )


def label(metric: str) -> str:
    """A metric's name within a sentence; "fid_to_fp:dinov2" names the extractor."""
    base, _, extractor = metric.partition(":")
    name = LABELS.get(base, base)
    name = name if name[:2].isupper() else name[:1].lower() + name[1:]
    return name + (f" ({extractor})" if extractor else "")


def _sentences(a: str, b: str, comparisons: Sequence[Comparison]) -> list[str]:
    """ "A better than B in PSNR and SSIM, p < 0.001, and in LPIPS, p < 0.01"; then what is not distinguishable."""
    decided: dict[str, dict[float, list[str]]] = {}
    undecided, verbatim = [], []
    for comparison in comparisons:
        level, name = _level(comparison), label(comparison.metric)
        if level is None:
            undecided.append(name)
        elif (winner := _winner(comparison)) is None:
            verbatim.append(f"{name}: {comparison.verdict}")
        else:
            decided.setdefault(winner, {}).setdefault(level, []).append(name)
    sentences = []
    for winner, levels in decided.items():
        parts = [f"in {words.enumerated(names)}, p < {level:g}" for level, names in sorted(levels.items())]
        joined = ", and ".join(["; ".join(parts[:-1]), parts[-1]] if parts[:-1] else parts)
        sentences.append(f"{winner} better than {b if winner == a else a} {joined}")
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
