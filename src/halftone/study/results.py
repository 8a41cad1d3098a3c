"""The records of ``study.json``: strict, frozen, documented field by field, with a JSON schema in the package.

After a change of a record, ``python -m halftone.study.results`` writes ``results.schema.json`` anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from halftone.files import write_atomically
from halftone.qdiffbench.result_file import ResultFile
from halftone.qdiffbench.results import Comparison, Environment, Model, NoiseFloor, Settings
from halftone.qdiffbench.set_results import Record, SetResult
from halftone.study.kinds import TableKind

SCHEMA: Literal["halftone.study/1"] = "halftone.study/1"
TABLE_SCHEMA: Literal["halftone.study-table/1"] = "halftone.study-table/1"
SCHEMA_FILE = Path(__file__).with_name("results.schema.json")
RESULTS = "study.json"
TABLE_RESULTS = "table.json"


class CalibrationCost(Record):
    """What it took to make a quantized model."""

    prompts: int = Field(ge=1, description="Number of calibration prompts.")
    denoiser_passes_per_prompt: float = Field(
        ge=0, description="How often each calibration prompt went through the denoiser, rounding and scans included."
    )
    seconds: float | None = Field(
        default=None, ge=0, description="Wall time of all runs that worked on it, s; absent if no note of it is left."
    )


class StudyRow(Record):
    """One way to quantize the model, and what came of it."""

    name: str = Field(description="What the row is called.")
    group: str = Field(description="Rows of one group are compared with each other.")
    recipe: str = Field(description="Name of the recipe: a preset's, or one that follows from its contents.")
    artifact: str = Field(description="Name of the model's folder; rows with the same name are the same model.")
    layers: int = Field(ge=1, description="Number of quantized layers.")
    weight_bits: int = Field(ge=2, le=8, description="Bits of a quantized layer's weight.")
    average_activation_bits: float = Field(gt=0, description="Mean bits of a quantized layer's input over the steps.")
    relaxed_share: float = Field(ge=0, le=1, description="Share of the steps whose activations have more bits.")
    products: float = Field(
        ge=1,
        description="8-bit products that a quantized layer executes, averaged over the steps, relative to W8A8: up to 8"
        " bits take one, 9 to 16 bits two.",
    )
    artifact_bytes: int = Field(ge=0, description="Size of the whole folder, bytes.")
    denoiser_bytes: int = Field(ge=0, description="Size of the denoiser's weights, bytes.")
    calibration: CalibrationCost = Field(description="What it took to make.")
    sets: dict[str, SetResult] = Field(
        description="Results by the name of the prompt set; drift and worst pairs are in the table's own results.json."
    )


class StudyTable(Record):
    """Rows that were painted from the same prompts and initial noise."""

    name: str = Field(description="Name of the table, and of its folder.")
    title: str = Field(description="Its heading.")
    sentence: str = Field(description="What it asks.")
    kind: TableKind = Field(description="What is drawn of it.")
    settings: Settings = Field(description="What was asked for, as in the results of a benchmark.")
    rows: tuple[StudyRow, ...] = Field(min_length=1, description="In the plan's order.")
    noise_floor: tuple[NoiseFloor, ...] = Field(default=(), description="Full precision against itself.")
    comparisons: tuple[Comparison, ...] = Field(default=(), description="Rows of one group against each other.")
    warnings: tuple[str, ...] = Field(default=(), description="What a reader must know, one sentence each.")


class KeptTable(ResultFile):
    """``table.json``: a measured table, and what it was measured from."""

    schema_: Literal["halftone.study-table/1"] = Field(
        default=TABLE_SCHEMA, alias="schema", description="Format and version."
    )
    made_from: str = Field(pattern="^[0-9a-f]{64}$", description="Hash of everything that determines the table.")
    reference: Model = Field(description="The full-precision model.")
    table: StudyTable = Field(description="The table.")


class StudyResults(ResultFile):
    """All of ``study.json``."""

    schema_: Literal["halftone.study/1"] = Field(default=SCHEMA, alias="schema", description="Format and version.")
    environment: Environment = Field(description="Where it ran.")
    plan: str = Field(description="Name of the plan.")
    plan_sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Hash of the plan's contents.")
    reference: Model = Field(description="The full-precision model.")
    tables: tuple[StudyTable, ...] = Field(min_length=1, description="Tables that are measured, in the plan's order.")
    missing: tuple[str, ...] = Field(default=(), description="Names of the plan's tables that are not measured yet.")
    commands: tuple[str, ...] = Field(default=(), description="Command lines that reproduce this, in order.")


if __name__ == "__main__":
    write_atomically(SCHEMA_FILE, StudyResults.schema_text())
