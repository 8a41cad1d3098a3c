"""Drawing surface of the plots: SVG fragments for inlining whose colours are the page's CSS variables.

Drawn with matplotlib's object interface: no pyplot, no display, no figure kept alive. A fragment carries no
address, no fixed colour and no id that another plot uses, so one drawing serves light and dark.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Stand-ins that matplotlib draws with; each becomes the CSS variable named beside it.
INK, MUTED, GRID, ACCENT, RELAXED, PAPER = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
SERIES = tuple(f"#0103{i:02x}" for i in range(8))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[object, ...] = (
    "-",
    (0, (6, 2)),
    (0, (2, 1.5)),
    (0, (7, 2, 1.5, 2)),
    "-",
    (0, (6, 2)),
    (0, (2, 1.5)),
    "-",
)
_CSS = {
    **{INK: "--ink", MUTED: "--muted", GRID: "--grid", ACCENT: "--accent", RELAXED: "--relaxed", PAPER: "--card"},
    **{color: f"--c{i}" for i, color in enumerate(SERIES)},
}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "halftone",  # the same report gives the same page
    "font.size": 10.0,
    "text.color": MUTED,
    "text.parse_math": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
}


class Plot:
    """One pair of axes and, when its ``with`` block ends, ``markup``: the drawing as trusted SVG."""

    def __init__(self, figure: Figure, axes: Axes) -> None:
        self.figure, self.axes = figure, axes
        self.markup = Markup()


@contextmanager
def plot(key: str, description: str, width: float = 3.9, height: float = 2.5, grid: str = "y") -> Iterator[Plot]:
    """A transparent figure of so many inches to draw on.

    Args:
        key: makes the fragment's ids its own.
        description: what a screen reader says in place of the drawing.
        grid: the axis whose grid lines are drawn.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0.0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0.0)
        axes.grid(visible=False, axis="x" if grid == "y" else "y")
        canvas = Plot(figure, axes)
        yield canvas
        canvas.markup = _svg(figure, key, description)


def _svg(figure: Figure, key: str, description: str) -> Markup:
    """The figure as an SVG element: the page's colours and fonts, ids from ``key``, no prolog or address."""
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    prefix = f"p{zlib.crc32(key.encode()):08x}"
    text = re.sub(r'(\bid="|href="#|url\(#)', lambda m: f"{m.group(1)}{prefix}-", text)
    for color, variable in _CSS.items():
        text = text.replace(color, f"var({variable})")
    opening = f'role="img" aria-label="{escape(description)}">'
    return Markup(
        re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', lambda m: f"<svg {m.group(1)} {opening}", text, count=1)
    )
