"""Reads recipe files strictly: a key that stands there twice is an error, in YAML as in JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from halftone.errors import HalftoneError, RecipeError

__all__ = ["read_recipe_file"]


def read_recipe_file(path: Path, what: str = "recipe file", kind: type[HalftoneError] = RecipeError) -> Any:
    """Plain data of a YAML or JSON file; the suffix says which.

    Args:
        what: such a file is called in messages.
        kind: of the error.

    Raises:
        RecipeError, or `kind`: it cannot be read, is malformed or nested too deeply, or has a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise kind(f"{what} {str(path)!r} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise kind(f"{what} {str(path)!r} cannot be read: {error.strerror}") from error
    try:
        if path.suffix == ".json":
            return json.loads(text, object_pairs_hook=_without_repeats)
        return yaml.load(text, _StrictLoader)
    except RecursionError:
        raise kind(f"{what} {str(path)!r} is nested too deeply") from None
    except (ValueError, yaml.YAMLError) as error:
        first = " ".join(str(error).split())
        raise kind(f"{what} {str(path)!r} is not valid {path.suffix[1:]}: {first}") from error


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe loader would take the last of several values without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key {key.value!r} stands there twice"
                raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return node


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return data
