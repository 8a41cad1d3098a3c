"""``report.html``: one file, no network, made for looking; and ``results.json`` beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from halftone.errors import InputError
from halftone.report import images, plots, words
from halftone.report.data import ComparisonReport, LeftOutLayer, Pair
from halftone.report.files import write_atomically
from halftone.report.ranges import most_moving_layers, wasted_bits

WORST_PAIRS = 6
SHEET_PAIRS = 12
SHEET_COLUMNS = 4
SMALL_SIDE = 192  # pixels; larger pictures: the top of the page shows one pair, not twelve, and fewer pairs in all
MAX_SMALL_PAIRS, MAX_LARGE_PAIRS = 96, 24


@dataclass(frozen=True)
class PairView:
    """A pair as the page shows it: its record and three images as data URIs; ``width`` in pixels."""

    pair: Pair
    reference: str
    candidate: str
    difference: str
    width: int


def write_report(
    report: ComparisonReport, out_dir: Path | str, *, difference_gain: int = 8, max_pairs: int | None = None
) -> Path:
    """Write ``results.json`` and ``report.html`` into a folder, each replaced whole or left alone.

    Args:
        report: what to write; its pairs' relative PNG paths are taken from ``out_dir``.
        out_dir: the folder, made when absent.
        difference_gain: by how much the difference pictures are amplified; the page states it.
        max_pairs: at most so many pairs are shown, the worst ones first among them; the JSON keeps all.
            None: 96 pairs of pictures up to 192 pixels, 24 of larger ones, since all of them lie in the page.

    Returns:
        The path of ``report.html``.

    Raises:
        InputError: the report has no pairs, or the two images of a pair differ in size.
        OSError: an image cannot be read, or the folder cannot be written.
    """
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    page = render_html(report, folder, difference_gain=difference_gain, max_pairs=max_pairs)
    write_atomically(folder / "results.json", report.to_json())
    target = folder / "report.html"
    write_atomically(target, page)
    return target


def render_html(
    report: ComparisonReport, folder: Path, *, difference_gain: int = 8, max_pairs: int | None = None
) -> str:
    """The page as text; arguments and errors as for :func:`write_report`, nothing is written."""
    if not report.pairs:
        raise InputError("a report needs at least one pair of images")
    if max_pairs is None:
        max_pairs = MAX_SMALL_PAIRS if _largest_side(report, folder) <= SMALL_SIDE else MAX_LARGE_PAIRS
    worst = sorted(report.pairs, key=lambda p: (p.psnr, p.index))[: max(1, min(WORST_PAIRS, max_pairs))]
    worst_indices = {id(p) for p in worst}
    others = [p for p in report.pairs if id(p) not in worst_indices][: max(0, max_pairs - len(worst))]
    context = {
        "r": report,
        "facts": words.headline_facts(report),
        "gain": difference_gain,
        "worst": [_pair_view(p, folder, difference_gain) for p in worst],
        "others": [_pair_view(p, folder, difference_gain) for p in others],
        "sheet": _hero_sheet(report, folder),
        "left_out": _grouped_by_reason(report.quantization.layers_left_out),
        "reference_timing": words.timing_of(report, "reference"),
        **_plot_context(report),
    }
    return _environment().get_template("report.html.j2").render(context)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("halftone.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["in_bytes"] = words.in_bytes
    environment.filters["in_seconds"] = words.in_seconds
    environment.filters["interval"] = words.interval
    environment.filters["compared"] = words.compared
    return environment


def _plot_context(report: ComparisonReport) -> dict[str, Any]:
    """The plots as trusted markup; no text from outside is drawn in them."""
    quantization, fidelity = report.quantization, report.fidelity
    moving = most_moving_layers(report.activation_ranges)
    return {
        "ranges": [(n, wasted_bits(s), Markup(plots.activation_range_svg(s, n))) for n, s in moving],
        "bits_svg": Markup(plots.slot_bits_svg(quantization)),
        "histogram_svg": Markup(plots.psnr_histogram_svg([p.psnr for p in report.pairs], fidelity.psnr)),
        "trajectory_svg": Markup(plots.trajectory_error_svg(fidelity.latent_error, quantization))
        if fidelity.latent_error
        else None,
    }


def _pair_view(pair: Pair, folder: Path, gain: int) -> PairView:
    reference = images.read_image(folder / pair.reference)
    candidate = images.read_image(folder / pair.candidate)
    if reference.shape != candidate.shape:
        raise InputError(f"pair {pair.index} has images of {reference.shape} and {candidate.shape}; render it again")
    return PairView(
        pair=pair,
        reference=images.data_uri(images.encode_png(reference)),
        candidate=images.data_uri(images.encode_png(candidate)),
        difference=images.data_uri(images.encode_png(images.difference(reference, candidate, gain))),
        width=reference.shape[1],
    )


def _hero_sheet(report: ComparisonReport, folder: Path) -> dict[str, Any]:
    """The first pairs (never chosen by quality) as two sheets to wipe between; one if they are large."""
    shown = report.pairs[: SHEET_PAIRS if _largest_side(report, folder) <= SMALL_SIDE else 1]
    columns = min(SHEET_COLUMNS, len(shown))
    sheets = []
    for paths in ([p.reference for p in shown], [p.candidate for p in shown]):
        sheet = images.contact_sheet([images.read_image(folder / path) for path in paths], columns)
        sheets.append(images.data_uri(images.encode_png(sheet)))
    height, width = sheet.shape[:2]
    size = {"count": len(shown), "width": width, "height": height}
    return {"reference": sheets[0], "candidate": sheets[1], **size}


def _largest_side(report: ComparisonReport, folder: Path) -> int:
    """Longer side, in pixels, of the first picture; those of one run are of one size."""
    return max(images.read_image(folder / report.pairs[0].reference).shape[:2])


def _grouped_by_reason(layers: tuple[LeftOutLayer, ...]) -> list[tuple[str, list[str]]]:
    """Reasons in order of first appearance, each with the names of its layers."""
    groups: dict[str, list[str]] = {}
    for layer in layers:
        groups.setdefault(layer.reason, []).append(layer.name)
    return list(groups.items())
