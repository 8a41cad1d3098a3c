"""A record that is a file of its own: written as JSON, read back strictly, described by a JSON schema."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError
from typing_extensions import Self

from halftone.errors import InputError
from halftone.qdiffbench.set_results import Record


class ResultFile(Record):
    """Base of such records; the default of their field ``schema_`` names format and version."""

    def to_json(self) -> str:
        """The results as JSON text; values that were not measured are left out."""
        return self.model_dump_json(indent=2, by_alias=True, exclude_none=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Reads what :meth:`to_json` wrote.

        Raises:
            InputError: it is not JSON, or a field is missing, unknown or out of range; says which is the first.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            name = cls.model_fields["schema_"].default
            raise InputError(f"These are no results of {name}: {where}: {first['msg']}.") from error

    @classmethod
    def schema_text(cls) -> str:
        """The JSON schema (draft 2020-12) of the file, generated from the records."""
        schema: dict[str, Any] = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            **cls.model_json_schema(by_alias=True),
        }
        return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
