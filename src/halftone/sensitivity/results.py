"""The records of ``sensitivity.json``: strict, frozen, documented field by field, with a JSON schema in the package.

After a change of a record, ``python -m halftone.sensitivity.results`` writes ``results.schema.json`` anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from halftone.files import write_atomically
from halftone.qdiffbench.result_file import ResultFile
from halftone.qdiffbench.results import Environment, Model, Settings
from halftone.qdiffbench.set_results import Record, SetResult
from halftone.sensitivity.variants import ExperimentName

SCHEMA: Literal["halftone.sensitivity/1"] = "halftone.sensitivity/1"
SCHEMA_FILE = Path(__file__).with_name("results.schema.json")
RESULTS = "sensitivity.json"


class StepInterval(Record):
    """Consecutive steps of the trajectory, one of the parts that it is divided into."""

    first: int = Field(ge=1, description="First step, counted from 1 (noise) to the last (picture).")
    last: int = Field(ge=1, description="Last step, itself included.")
    first_timestep: float = Field(description="Timestep with which the denoiser is called in the first step.")
    last_timestep: float = Field(description="The same of the last step.")

    @property
    def words(self) -> str:
        """ "steps 5 to 8", or "step 3" of an only one."""
        return f"steps {self.first} to {self.last}" if self.first < self.last else f"step {self.last}"


class IntervalResult(Record):
    """What was measured where one interval was treated unlike the others."""

    interval: StepInterval = Field(description="The interval.")
    result: SetResult = Field(description="Its images compared with full precision's.")


class QuantizedModel(Record):
    """The quantized model of the experiment `float`."""

    recipe: str = Field(description="Name of the recipe.")
    weight_bits: int = Field(ge=2, le=8, description="Bits of a quantized layer's weight.")
    average_activation_bits: float = Field(gt=0, description="Mean bits of a quantized layer's input over the steps.")
    layers: int = Field(ge=1, description="Number of quantized layers.")
    calibration_prompts: int = Field(ge=1, description="Number of prompts that it was calibrated on.")


class SensitiveSide(Record):
    """Which side of the trajectory is the sensitive one: the first interval compared with the last one."""

    measure: Literal["fidelity", "matching"] = Field(description="Nearness to full precision, or fit to the prompt.")
    metric: Literal["psnr", "clip_score_difference"] = Field(description="Field of the results that is compared.")
    side: Literal["start", "end"] | None = Field(
        default=None, description="start: near noise; end: near the picture; absent if their intervals overlap."
    )
    sentence: str = Field(description="The same in words, with the numbers.")


class Experiment(Record):
    """One of the two experiments."""

    name: ExperimentName = Field(
        description="perturb: noise on the prediction in one interval; float: all quantized but one interval."
    )
    noise: float | None = Field(
        default=None, gt=0, description="perturb: standard deviation of the noise, in that of the prediction."
    )
    quantized_model: QuantizedModel | None = Field(default=None, description="float: what runs the other steps.")
    intervals: tuple[IntervalResult, ...] = Field(min_length=1, description="Results by interval, in step order.")
    all_quantized: SetResult | None = Field(default=None, description="float: with no step in floating point.")
    none_quantized: SetResult | None = Field(
        default=None, description="float: with all steps in floating point, which is full precision itself."
    )
    sides: tuple[SensitiveSide, ...] = Field(default=(), description="The sensitive side, for each measure.")


class SensitivityResults(ResultFile):
    """All of ``sensitivity.json``."""

    schema_: Literal["halftone.sensitivity/1"] = Field(
        default=SCHEMA, alias="schema", description="Format and version."
    )
    environment: Environment = Field(description="Where it ran.")
    settings: Settings = Field(description="What was asked for, as in the results of a benchmark.")
    reference: Model = Field(description="The full-precision model.")
    experiments: tuple[Experiment, ...] = Field(min_length=1, description="The experiments that were made.")
    warnings: tuple[str, ...] = Field(default=(), description="What a reader must know, one sentence each.")


if __name__ == "__main__":
    write_atomically(SCHEMA_FILE, SensitivityResults.schema_text())
