"""The records of ``results.json``: strict, frozen, documented field by field, with a JSON schema in the package.

A record is checked when it is made: unknown fields, NaN and infinity are refused. After a change of a record,
``python -m halftone.qdiffbench.results`` writes ``results.schema.json`` anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from halftone.files import write_atomically
from halftone.qdiffbench.result_file import ResultFile
from halftone.qdiffbench.set_results import Interval, Record, SetResult

SCHEMA: Literal["halftone.qdiffbench/1"] = "halftone.qdiffbench/1"
SCHEMA_FILE = Path(__file__).with_name("results.schema.json")


class Seconds(Record):
    """Repeated timings after warming up, in seconds."""

    median: float = Field(gt=0, description="Median, s.")
    low: float = Field(gt=0, description="Tenth percentile, s.")
    high: float = Field(gt=0, description="Ninetieth percentile, s.")
    n: int = Field(ge=1, description="Number of timings.")


class KernelUse(Record):
    """Which kernels ran in one timestep slot."""

    timestep: float | None = Field(default=None, description="Timestep value of the slot; none for the whole run.")
    activation_bits: float | None = Field(default=None, gt=0, description="Bits of an activation in this slot.")
    kernel: str = Field(description="Name of the kernel.")
    execution: Literal["integer", "simulated", "float"] = Field(
        description="integer: integer products; simulated: rounded, then computed in floating point; float: neither."
    )
    layers: int = Field(ge=0, description="Number of layers that it executed.")


class Model(Record):
    """A model, or a folder of images, that was measured."""

    name: str = Field(description="What it is called in the report.")
    source: str = Field(description="Folder, hub id, bundled:NAME or LIBRARY:SCHEME@SOURCE, as given.")
    sha256: str | None = Field(default=None, description="Hash of what determines its images.")
    pipeline: str | None = Field(default=None, description="Pipeline class.")
    dtype: str | None = Field(default=None, description="Floating-point type it ran in.")
    size_bytes: int | None = Field(default=None, ge=0, description="Size of the denoiser's weights on disk, bytes.")
    avg_weight_bits: float | None = Field(default=None, gt=0, description="Mean bits of a weight of the denoiser.")
    avg_activation_bits: float | None = Field(
        default=None, gt=0, description="Mean bits of a quantized layer's input over the steps."
    )
    seconds_per_image: Seconds | None = Field(default=None, description="Wall-clock time of an image, s.")
    seconds_per_step: Seconds | None = Field(default=None, description="Wall-clock time of a sampler step, s.")
    peak_memory_bytes: int | None = Field(default=None, ge=0, description="Largest memory in use, bytes.")
    kernels: tuple[KernelUse, ...] = Field(default=(), description="Kernels of each slot, in sampling order.")


class Gap(Record):
    """How much a metric changes from one prompt set to another."""

    metric: str = Field(description="Name of the metric.")
    from_set: str = Field(description="Prompt set that is subtracted.")
    to_set: str = Field(description="Prompt set that it is subtracted from.")
    difference: float = Field(description="Metric on to_set minus on from_set, in the metric's unit.")


class Candidate(Model):
    """A model that is compared with the reference."""

    sets: dict[str, SetResult] = Field(description="Results by the name of the prompt set.")
    gaps: tuple[Gap, ...] = Field(default=(), description="Generalization from one prompt set to another.")


class NoiseFloor(Record):
    """The reference against itself under other circumstances: what a difference means at all."""

    name: str = Field(description="What was different.")
    kind: Literal["dtype", "seed", "threads", "repeat"] = Field(description="Kind of circumstance.")
    sets: dict[str, SetResult] = Field(description="Results by the name of the prompt set.")


class Comparison(Record):
    """Two candidates on the same prompts, in one metric."""

    set: str = Field(description="Name of the prompt set.")
    metric: str = Field(description="Name of the metric.")
    a: str = Field(description="Name of the first candidate.")
    b: str = Field(description="Name of the second candidate.")
    difference: float = Field(description="A minus B in the metric's unit.")
    ci95: Interval = Field(description="Ends [low, high] of the difference's 95 % interval.")
    p_value: float = Field(gt=0, le=1, description="Two-sided, of the hypothesis that there is no difference.")
    n: int = Field(ge=1, description="Number of prompts.")
    verdict: str = Field(description="The same in words.")


class PromptSetFacts(Record):
    """Which prompts were painted."""

    source: str = Field(description="FILE, FILE:COLUMN or bundled:NAME, as given.")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Hash of the sampled prompts and alternatives.")
    n: int = Field(ge=1, description="Number of prompts in the sample.")


class Settings(Record):
    """What was asked for."""

    scheduler: str | None = Field(default=None, description="Scheduler class; none for folders of images.")
    num_inference_steps: int | None = Field(default=None, ge=1, description="Sampler steps of an image.")
    guidance_scale: float | None = Field(default=None, description="Classifier-free guidance; none: the default.")
    seed: int | None = Field(default=None, description="Image i has the initial noise of seed + i.")
    width: int = Field(ge=1, description="Pixels.")
    height: int = Field(ge=1, description="Pixels.")
    prompt_sets: dict[str, PromptSetFacts] = Field(description="Prompt sets by name.")
    features: str = Field(description="Identity of the extractor of fid_to_fp and kid_to_fp.")
    other_features: dict[str, str] = Field(default_factory=dict, description="Identities of further ones, by name.")
    clip: str | None = Field(default=None, description="Identity of the CLIP model of the scores.")
    lpips: str | None = Field(default=None, description="Identity of the LPIPS weights.")
    bootstrap_seed: int = Field(default=0, description="Seed of the resampling.")
    processes: int = Field(default=1, ge=1, description="Number of processes that shared the prompts.")
    commands: tuple[str, ...] = Field(default=(), description="Command lines that reproduce this, in order.")


class Environment(Record):
    """Where it ran."""

    versions: dict[str, str] = Field(description="Versions of Python and libraries by name.")
    platform: str = Field(description="Operating system and architecture.")
    processor: str = Field(description="Processor's name.")
    accelerator: str | None = Field(default=None, description="GPU's name, if one was used.")
    threads: int = Field(ge=1, description="torch's threads.")
    git_hash: str | None = Field(default=None, description="Commit of Halftone, if it runs from a checkout.")
    created: str = Field(description="When, ISO 8601 with an offset.")


class Results(ResultFile):
    """All of ``results.json``."""

    schema_: Literal["halftone.qdiffbench/1"] = Field(default=SCHEMA, alias="schema", description="Format and version.")
    environment: Environment = Field(description="Where it ran.")
    settings: Settings = Field(description="What was asked for.")
    reference: Model = Field(description="The full-precision model.")
    candidates: tuple[Candidate, ...] = Field(description="What was compared with it, in the order given.")
    noise_floor: tuple[NoiseFloor, ...] = Field(default=(), description="The reference against itself.")
    comparisons: tuple[Comparison, ...] = Field(default=(), description="Candidates against each other.")
    warnings: tuple[str, ...] = Field(default=(), description="What a reader must know, one sentence each.")


def schema_text() -> str:
    """The JSON schema (draft 2020-12) of ``results.json``, generated from the records."""
    return Results.schema_text()


if __name__ == "__main__":
    write_atomically(SCHEMA_FILE, schema_text())
