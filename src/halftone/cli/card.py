"""``halftone card``: a Hugging Face model card for an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from halftone.cli import options


def card(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A folder that `halftone quantize` wrote.")],
    results: Annotated[
        Path | None,
        typer.Option("--results", help="results.json of `halftone bench`: what was measured."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A file; printed if not given.")] = None,
    debug: options.Debug = False,
) -> None:
    """Write a model card: what ARTIFACT is, how to load it, and what was measured."""
    from halftone.artifact.inspection import inspect_artifact
    from halftone.errors import InputError
    from halftone.files import output_errors, write_atomically
    from halftone.qdiffbench.contestants import Contestant
    from halftone.qdiffbench.results import Results
    from halftone.report import model_card

    facts = inspect_artifact(artifact)
    measured = None
    if results is not None:
        try:
            measured = Results.from_json(results.read_bytes())
        except OSError as error:
            raise InputError(f"{results} cannot be read: {error.strerror}.") from error
        sha256 = Contestant.parse(str(artifact)).sha256()
        if sha256 not in {one.sha256 for one in measured.candidates}:
            raise InputError(f"{results} measured no candidate that is {artifact}; run `halftone bench` with it.")
    text = model_card(facts, measured)
    if out is None:
        print(text)
        return
    if out.exists():
        raise InputError(f"{out} exists; choose another file.")
    with output_errors(f"The model card {out}"):
        write_atomically(out, text)
