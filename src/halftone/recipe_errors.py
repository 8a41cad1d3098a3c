"""Turns pydantic's validation errors into one sentence: key path, value, what is allowed."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from halftone.errors import suggest

__all__ = ["explain"]

_UNKNOWN_KEY = ("extra_forbidden", "invalid_key")  # the latter is one that is no text, such as 1


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One sentence about the first thing wrong with data for ``model``.

    The ``description`` of a field states what is allowed there ("an integer from 2 to 16").
    """
    details = error.errors()
    first = next((item for item in details if item["type"] in _UNKNOWN_KEY), details[0])
    loc = first["loc"]
    path = ".".join(str(part) for part in loc)
    if first["type"] in _UNKNOWN_KEY:
        known = _model_at(model, loc[:-1]).model_fields
        return f"unknown key {path!r}; {suggest(str(loc[-1]), known)}"
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        return f"{path}: {message}" if path else message
    allowed = _allowed_at(model, loc)
    if first["type"] == "missing":
        return f"key {path!r} is missing; it must be {allowed}"
    return f"{path} is {first['input']!r}; it must be {allowed}"


def _nested(annotation: Any) -> type[BaseModel] | None:
    """The model class that an annotation holds, looking into unions."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _model_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel]:
    """The model class reached from ``model`` along the keys ``loc``."""
    for part in loc:
        if isinstance(part, int):  # a place in a list, whose elements are of the field's own model
            continue
        nested = _nested(model.model_fields[str(part)].annotation)
        if nested is None:
            break
        model = nested
    return model


def _allowed_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """What is allowed at ``loc``: the description of the deepest field on that path."""
    allowed = "a mapping"
    for part in loc:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(str(part))
        if field is None:
            break
        allowed = field.description or allowed
        model = _nested(field.annotation) or model
    return allowed
