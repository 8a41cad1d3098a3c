"""``halftone recipes``: the named presets, with a sentence each."""

from __future__ import annotations

from halftone.cli import options
from halftone.cli.console import emit


def recipes(as_json: options.AsJson = False, debug: options.Debug = False) -> None:
    """List the recipes that --recipe knows by name; a YAML or JSON file of your own works in their place."""
    from halftone.recipe import Recipe

    known = [Recipe.load(name) for name in Recipe.presets()]
    if as_json:
        emit({"recipes": [recipe.to_dict() for recipe in known]})
        return
    width = max(len(recipe.name) for recipe in known)
    for recipe in known:
        print(f"{recipe.name:{width}}  {recipe.description}")
