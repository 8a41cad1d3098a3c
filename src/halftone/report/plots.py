"""Plots of one quantized model: input ranges over the steps, bits of every slot; and the histogram of all pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from halftone.errors import InputError
from halftone.report.page_input import ActivationRange
from halftone.report.ranges import shared_range
from halftone.report.standing import Standing
from halftone.report.svg import ACCENT, DASHES, INK, RELAXED, SERIES, plot

SlotBits = Sequence[tuple[float, float]]
"""(timestep, bits) of every slot, in sampling order."""


def activation_range_svg(ranges: Sequence[ActivationRange], name: str) -> Markup:
    """One layer's input range over the timesteps (noise left, picture right), its one shared range dashed.

    Args:
        ranges: at least one, in any order; values in the layer's own unit.
        name: the layer's name.

    Raises:
        InputError: no ranges.
    """
    ordered = sorted(ranges, key=lambda r: -r.timestep)
    timesteps = [r.timestep for r in ordered]
    low, high = [r.low for r in ordered], [r.high for r in ordered]
    with plot(f"range-{name}", f"Input range of {name} over the timesteps", 3.7, 2.15) as p:
        p.axes.fill_between(timesteps, low, high, color=ACCENT, alpha=0.28, lw=0)
        for edge in (low, high):
            p.axes.plot(timesteps, edge, color=ACCENT, lw=1.6)
        for level in shared_range(ordered):
            p.axes.axhline(level, color=RELAXED, lw=1.2, ls=(0, (4, 3)))
        if timesteps[0] > timesteps[-1]:
            p.axes.set_xlim(timesteps[0], timesteps[-1])
        p.axes.yaxis.set_major_locator(MaxNLocator(4))
        p.axes.set_xlabel("timestep (noise → picture)")
    return p.markup


def slot_bits_svg(slots: Mapping[str, SlotBits], ranked: Sequence[Standing]) -> Markup:
    """Activation bits of every slot: bars with relaxed slots in their own colour, or one line a candidate."""
    if not slots:
        raise InputError("no slots to draw")
    widest = max(bits for series in slots.values() for _, bits in series)
    with plot("bits", "Activation bits of every timestep slot: " + "; ".join(map(_bits_in_words, slots.items()))) as p:
        if len(slots) == 1:
            _bits_bars(p.axes, [bits for _, bits in next(iter(slots.values()))])
        else:
            _bits_lines(p.axes, slots, ranked)
        longest = max(len(series) for series in slots.values())
        p.axes.set_xlim(0.5, longest + 0.5 if longest > 4 else longest + 1.5)
        p.axes.set_ylim(0, widest * 1.18)
        p.axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        p.axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        p.axes.set(xlabel="timestep slot (noise → picture)", ylabel="activation bits")
    return p.markup


def _bits_bars(axes: Any, bits: Sequence[float]) -> None:
    colors = [RELAXED if b > min(bits) else ACCENT for b in bits]
    axes.bar(range(1, len(bits) + 1), bits, width=0.82, color=colors)
    for i, b in enumerate(bits):
        if i == 0 or bits[i - 1] != b:
            axes.annotate(f"{b:.3g} bits", (i + 0.6, b), (0, 3), textcoords="offset points", color=INK)


def _bits_lines(axes: Any, slots: Mapping[str, SlotBits], ranked: Sequence[Standing]) -> None:
    for standing in ranked:
        if standing.name in slots:
            bits = [b for _, b in slots[standing.name]]
            shift = 0.06 * (standing.place - len(slots) / 2)
            axes.step(
                range(1, len(bits) + 1),
                [b + shift for b in bits],
                where="mid",
                color=SERIES[standing.place % 8],
                ls=DASHES[standing.place % 8],
                lw=2,
            )


def _bits_in_words(item: tuple[str, SlotBits]) -> str:
    name, series = item
    bits = [b for _, b in series]
    return f"{name} from {min(bits):.3g} to {max(bits):.3g}"


def psnr_histogram_svg(values: Mapping[str, Sequence[float]], ranked: Sequence[Standing], set_name: str) -> Markup:
    """How many pairs of a set have which PSNR (dB), an outline a candidate, its mean as a line.

    Args:
        values: candidate -> PSNR of every prompt.

    Raises:
        InputError: no values.
    """
    everything = [value for series in values.values() for value in series]
    if not everything:
        raise InputError("no PSNR values to draw")
    longest = max(len(series) for series in values.values())
    edges = np.histogram_bin_edges(everything, bins=max(5, min(36, round(2 * longest**0.5)))).tolist()
    with plot(f"histogram-{set_name}", f"Histogram of the PSNR of all pairs, {set_name}") as p:
        for standing in ranked:
            series = values.get(standing.name, ())
            if not len(series):
                continue
            color = SERIES[standing.place % 8]
            p.axes.hist(
                series,
                bins=edges,
                color=color,
                alpha=0.85 if len(values) == 1 else 0.22,
                rwidth=0.94 if len(values) == 1 else 1.0,
            )
            if len(values) > 1:
                p.axes.hist(series, bins=edges, color=color, histtype="step", lw=1.8)
            mean = RELAXED if len(values) == 1 else color
            p.axes.axvline(float(np.mean(series)), color=mean, lw=2, ls=DASHES[standing.place % 8])
        p.axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        p.axes.set(xlabel="PSNR of a pair, dB (right is nearer)", ylabel="pairs")
    return p.markup
