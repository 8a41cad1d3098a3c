"""Height and width of the images, as a pipeline's call wants them: both or neither."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from halftone.denoiser import find_denoiser
from halftone.errors import InputError

_SIDES = ("height", "width")


def with_both_sides(pipeline: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a pipeline's call with the missing one of height and width filled in from the pipeline's default.

    Some pipelines take their default for both where one of them is missing, and say nothing.

    Raises:
        InputError: one is missing, and the pipeline does not tell its default.
    """
    completed = dict(arguments)
    given = [name for name in _SIDES if completed.get(name) is not None]
    if len(given) != 1:
        return completed
    missing = next(name for name in _SIDES if name not in given)
    default = _default_side(pipeline, missing)
    if default is None:
        raise InputError(
            f"Only {given[0]} is given, and {type(pipeline).__name__} tells no default size; give {missing} too."
        )
    completed[missing] = default
    return completed


def _default_side(pipeline: Any, name: str) -> int | None:
    """What the pipeline takes where none is given: in its signature, or its denoiser's sample size in pixels."""
    parameter = inspect.signature(type(pipeline).__call__).parameters.get(name)
    if parameter is not None and isinstance(parameter.default, int):
        return parameter.default
    config: Mapping[str, Any] = getattr(find_denoiser(pipeline).module, "config", {})
    size = getattr(pipeline, "default_sample_size", None) or config.get("sample_size")
    if isinstance(size, list | tuple) and len(size) == len(_SIDES):
        size = size[_SIDES.index(name)]
    factor = getattr(pipeline, "vae_scale_factor", None)
    return size * factor if isinstance(size, int) and isinstance(factor, int) else None
