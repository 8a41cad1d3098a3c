"""``report.html``: one file, no network, made for looking."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from halftone.files import write_atomically
from halftone.report import words
from halftone.report.gallery import BUDGET_BYTES, build_gallery
from halftone.report.page_input import PageInput
from halftone.report.sections import page_context
from halftone.report.standing import standings

PAGE = "report.html"


def write_page(page: PageInput, out: Path | str) -> Path:
    """Writes ``report.html`` into a folder: whole, or as it was before.

    Args:
        page: what to show; its pictures are read from their files and laid into the page.
        out: the folder, made when absent.

    Returns:
        The path of ``report.html``.

    Raises:
        InputError: a picture cannot be read, or the two of a pair differ in size.
        OSError: the folder cannot be written; wrap the call in ``files.output_errors`` for a sentence.
    """
    return write_html(render_page(page), out)


def write_html(text: str, out: Path | str) -> Path:
    """Writes a rendered page into a folder as ``report.html``; returns its path."""
    target = Path(out) / PAGE
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, text)
    return target


def render_page(page: PageInput, *, budget: int = BUDGET_BYTES) -> str:
    """The page as text; nothing is written.

    Args:
        budget: bytes of inlined pictures from which further ones are left out, and said to be.
    """
    gallery = build_gallery(page.pictures, page.results, standings(page.results), budget)
    return render("report.html.j2", page_context(page, gallery))


def render(template: str, context: Mapping[str, Any]) -> str:
    """One of the package's templates, filled in."""
    return _environment().get_template(template).render(context)


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
    environment.filters["number"] = words.number
    return environment
