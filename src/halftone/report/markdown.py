"""The leaderboard as text."""

from __future__ import annotations

from halftone.qdiffbench.results import Results


def markdown_table(results: Results) -> str:
    """A leaderboard for a README or a model card."""
    return "| candidate |\n|---|\n" + "".join(f"| {c.name} |\n" for c in results.candidates)
