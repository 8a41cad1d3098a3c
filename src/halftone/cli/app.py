"""The commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from halftone.cli.bench import bench
from halftone.cli.card import card
from halftone.cli.demo import demo
from halftone.cli.generate import generate
from halftone.cli.inspect import inspect
from halftone.cli.quantize import quantize
from halftone.cli.recipes import recipes
from halftone.cli.sensitivity import sensitivity
from halftone.cli.study import study

app = typer.Typer(
    name="halftone",
    help="Quantizes text-to-image diffusion models step by step, runs them in integers, and measures what was kept.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(quantize)
app.command()(generate)
app.command()(inspect)
app.command()(bench)
app.command()(sensitivity)
app.command()(study)
app.command()(demo)
app.command()(card)
app.command()(recipes)


def _version(asked: bool) -> None:
    if asked:
        from halftone import __version__

        print(f"halftone {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which one.")
    ] = False,
) -> None:
    pass
