"""The study's result as a table and a drawing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_COLUMNS = 3
_COLOURS = ("#2a6f97", "#c8553d", "#588157")


def markdown(study: Mapping[str, Any], command: str) -> str:
    """The whole result for a reader."""
    settings = study["settings"]
    lines = [
        "# Does QDiffBench tell the truth?",
        "",
        f"`{settings['source']}`, {settings['steps']} steps, guidance {settings['guidance']:g}; made by",
        "",
        f"```\n{command}\n```",
        "",
        "| | wanted | found | holds |",
        "|---|---|---|---|",
        *(_criterion_line(one) for one in study["criteria"]),
        "",
        *_comparison_lines(study["parts"]),
        "",
        "## Growing noise on the weights",
        "",
        *_ranking_lines(study["parts"]["ranking"]),
        "",
        "## Do the intervals hold?",
        "",
        *_coverage_lines(study["parts"]["coverage"]),
        "",
        "![the noisy models in every metric, and how often the intervals hold](study.png)",
        "",
    ]
    return "\n".join(lines)


def _criterion_line(one: Mapping[str, Any]) -> str:
    return f"| {one['criterion']} | {one['wanted']} | {one['found']} | {'yes' if one['holds'] else '**no**'} |"


def _comparison_lines(parts: Mapping[str, Any]) -> list[str]:
    first, one = parts["itself"], parts["undisturbed"]
    gib = 2**30
    return [
        f"Full precision against itself on {' and '.join(str(n) for n in first['n'].values())} prompts, killed"
        f" {first['kills']} times on its way: {first['seconds'] / 60:.0f} min,"
        f" {first['peak_memory_bytes'] / gib:.2f} GiB at most. {one['candidate']} on {one['n']} prompts, undisturbed:"
        f" {one['seconds'] / 60:.0f} min, {one['peak_memory_bytes'] / gib:.2f} GiB.",
    ]


def _ranking_lines(part: Mapping[str, Any]) -> list[str]:
    sigmas = [f"{sigma:g}" for sigma in part["sigmas"]]
    lines = [
        f"Gaussian noise on the denoiser's weights, relative to each weight's root mean square; {part['n']} prompts a"
        " set. *not distinguished*: neighbours in the wrong order differ by no more than chance.",
        "",
        f"| set | metric | {' | '.join(sigmas)} | order |",
        f"|---|---|{'---|' * len(sigmas)}---|",
    ]
    for name, metrics in part["sets"].items():
        for one in metrics.values():
            values = " | ".join(f"{value:.4g}" for value in one["values"])
            lines.append(f"| {name} | {one['heading']} | {values} | {one['order']} |")
    return lines


def _coverage_lines(part: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{part['candidate']}, {part['set']}: samples of {part['sample']} drawn with replacement from"
        f" {part['prompts']} prompts, whose own value is the large-sample value.",
        "",
        "| metric | large-sample value | held | of | share | its 95 % interval | below | above |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, one in part["metrics"].items():
        low, high = one["share_ci95"]
        lines.append(
            f"| {name} | {one['large_sample_value']:.4g} | {one['held']} | {one['trials']} | {100 * one['share']:.1f} %"
            f" | {100 * low:.1f} to {100 * high:.1f} % | {one['below']} | {one['above']} |"
        )
    return lines


def draw(study: Mapping[str, Any], path: Path) -> None:
    """Every metric against the noise, and the shares of intervals that held, as a PNG."""
    ranking, coverage = study["parts"]["ranking"], study["parts"]["coverage"]
    metrics = list(next(iter(ranking["sets"].values())))
    rows = -(-(len(metrics) + 1) // _COLUMNS)
    with matplotlib.rc_context({"font.size": 9.0, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(3.6 * _COLUMNS, 2.6 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
        for one, metric in zip(axes, metrics, strict=False):
            _draw_ranking(one, ranking, metric)
        axes[0].legend(fontsize=8)
        _draw_coverage(axes[len(metrics)], coverage["metrics"])
        for empty in axes[len(metrics) + 1 :]:
            empty.set_visible(False)
        figure.savefig(path, dpi=130)


def _draw_ranking(axes: Any, ranking: Mapping[str, Any], metric: str) -> None:
    for colour, (name, metrics) in zip(_COLOURS, ranking["sets"].items(), strict=False):
        if metric in metrics:
            one = metrics[metric]
            axes.plot(ranking["sigmas"], one["values"], "o-", ms=3, lw=1.2, color=colour, label=name)
            for sigma, (low, high) in zip(ranking["sigmas"], one["intervals"], strict=True):
                if low is not None:
                    axes.plot([sigma, sigma], [low, high], color=colour, lw=2, alpha=0.5)
            axes.set_title(one["heading"], fontsize=9)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranking["sigmas"], [f"{sigma:g}" for sigma in ranking["sigmas"]])


def _draw_coverage(axes: Any, metrics: Mapping[str, Any]) -> None:
    for row, one in enumerate(metrics.values()):
        axes.plot([100 * end for end in one["share_ci95"]], [row, row], color=_COLOURS[0], lw=2)
        axes.plot(100 * one["share"], row, "o", ms=4, color=_COLOURS[0])
    axes.axvline(95, color="#888888", lw=1, ls="--")
    axes.set_yticks(range(len(metrics)), list(metrics), fontsize=7)
    axes.invert_yaxis()
    axes.set_title("intervals that hold, %", fontsize=9)
