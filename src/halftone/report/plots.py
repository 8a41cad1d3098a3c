"""The report's plots, as SVG fragments for inlining whose colours are the page's CSS variables.

Drawn with matplotlib's object interface: no pyplot, no display, no figure kept alive. A fragment carries no
address, no fixed colour and no id that another plot uses, so one drawing serves light and dark.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from halftone.errors import InputError
from halftone.qdiffbench.intervals import Estimate
from halftone.report.data import ActivationRange, Quantization, StepError
from halftone.report.ranges import shared_range

# Stand-ins that matplotlib draws with; each becomes the CSS variable named beside it.
INK, MUTED, GRID, ACCENT, RELAXED = "#010203", "#010204", "#010205", "#010206", "#010207"
_CSS = {INK: "--ink", MUTED: "--muted", GRID: "--grid", ACCENT: "--accent", RELAXED: "--relaxed"}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "halftone",  # the same report gives the same page
    "font.size": 10.0,
    "text.color": MUTED,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
}


def activation_range_svg(ranges: Sequence[ActivationRange], name: str) -> str:
    """One layer's input range over the timesteps (noise left, picture right), its one shared range dashed.

    Args:
        ranges: at least one, in any order; values in the layer's own unit.
        name: the layer's name, which makes the fragment's ids its own and its description.

    Raises:
        InputError: no ranges.
    """
    ordered = sorted(ranges, key=lambda r: -r.timestep)
    timesteps = [r.timestep for r in ordered]
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(3.7, 2.15)
        low, high = [r.low for r in ordered], [r.high for r in ordered]
        axes.fill_between(timesteps, low, high, color=ACCENT, alpha=0.28, lw=0)
        for edge in (low, high):
            axes.plot(timesteps, edge, color=ACCENT, lw=1.6)
        for level in shared_range(ordered):
            axes.axhline(level, color=RELAXED, lw=1.2, ls=(0, (4, 3)))
        if timesteps[0] > timesteps[-1]:
            axes.set_xlim(timesteps[0], timesteps[-1])
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel("timestep (noise → picture)")
        return _svg(figure, f"range-{name}", f"Input range of {name} over the timesteps")


def trajectory_error_svg(errors: Sequence[StepError], quantization: Quantization) -> str:
    """Relative latent error along the sampling steps with its interval; relaxed steps shaded.

    Args:
        errors: in sampling order, at least one.
        quantization: tells which steps are relaxed.

    Raises:
        InputError: no errors.
    """
    if not errors:
        raise InputError("no step errors to draw")
    steps = range(1, len(errors) + 1)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(3.9, 2.5)
        for step, item in zip(steps, errors, strict=True):
            if quantization.bits_at(item.timestep) > quantization.base_bits:
                axes.axvspan(step - 0.5, step + 0.5, color=RELAXED, alpha=0.16, lw=0)
        low, high = [100 * e.error.low for e in errors], [100 * e.error.high for e in errors]
        axes.fill_between(steps, low, high, color=ACCENT, alpha=0.28, lw=0)
        axes.plot(steps, [100 * e.error.mean for e in errors], color=ACCENT, lw=2)
        axes.set_xlim(0.5, len(errors) + 0.5)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set(xlabel="sampling step (noise → picture)", ylabel="latent error, %")
        return _svg(figure, "trajectory", "Relative latent error after every sampling step")


def slot_bits_svg(quantization: Quantization) -> str:
    """Activation bits of every slot in sampling order, relaxed slots in their own colour."""
    bits = quantization.slot_bits
    colors = [RELAXED if b > quantization.base_bits else ACCENT for b in bits]
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(3.9, 2.5)
        axes.bar(range(1, len(bits) + 1), bits, width=0.82, color=colors)
        for i, b in enumerate(bits):
            if i == 0 or bits[i - 1] != b:
                axes.annotate(f"{b} bits", (i + 0.6, b), (0, 3), textcoords="offset points", color=INK)
        axes.set_xlim(0.5, len(bits) + 0.5 if len(bits) > 4 else len(bits) + 1.5)
        axes.set_ylim(0, max(bits) * 1.18)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set(xlabel="timestep slot (noise → picture)", ylabel="activation bits")
        return _svg(figure, "bits", "Activation bits of every timestep slot")


def psnr_histogram_svg(values: Sequence[float], estimate: Estimate) -> str:
    """How many pairs have which PSNR (dB), the mean as a line and its interval as a band.

    Raises:
        InputError: no values.
    """
    if not values:
        raise InputError("no PSNR values to draw")
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(3.9, 2.5)
        bins = max(5, min(30, round(2 * len(values) ** 0.5)))
        axes.hist(values, bins=bins, color=ACCENT, rwidth=0.92)
        axes.axvspan(estimate.low, estimate.high, color=RELAXED, alpha=0.22, lw=0)
        axes.axvline(estimate.mean, color=RELAXED, lw=2)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set(xlabel="PSNR of a pair, dB (right is nearer)", ylabel="pairs")
        return _svg(figure, "histogram", "Histogram of the PSNR of all pairs")


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A transparent figure, inches wide and high, with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    axes.grid(visible=False, axis="x")
    return figure, axes


def _svg(figure: Figure, key: str, description: str) -> str:
    """The figure as an SVG element: the page's colours and fonts, ids from ``key``, no prolog or address."""
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    prefix = f"p{zlib.crc32(key.encode()):08x}"
    text = re.sub(r'(\bid="|href="#|url\(#)', lambda m: f"{m.group(1)}{prefix}-", text)
    for color, variable in _CSS.items():
        text = text.replace(color, f"var({variable})")
    label = re.sub(r"[^\w .,-]", " ", description)
    opening = rf'<svg \1 role="img" aria-label="{label}">'
    return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', opening, text, count=1)
