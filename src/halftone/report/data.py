"""What a comparison of a quantized model with its full-precision original found, as strict frozen records.

A record is checked when it is made (unknown fields, NaN and infinity are refused) and survives
``ComparisonReport.from_json(report.to_json())`` unchanged.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from halftone.qdiffbench.intervals import Estimate

SCHEMA: Literal["halftone.comparison/1"] = "halftone.comparison/1"


class Record(BaseModel):
    """Base of all records: immutable, no unknown fields, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_by_name=True)


class Settings(Record):
    """What was asked for. ``commands`` are the exact command lines that reproduce the report, in order."""

    source: str
    recipe: str
    scheduler: str
    num_inference_steps: int = Field(ge=1)
    guidance_scale: float
    seed: int
    calibration_prompts: int = Field(ge=0)
    evaluation_prompts: int = Field(ge=1)
    commands: tuple[str, ...] = ()


class LeftOutLayer(Record):
    """A layer that stayed in floating point, and why, in words for a reader."""

    name: str
    reason: str


class Quantization(Record):
    """What was done. Slots are in sampling order; slot i is for ``slot_timesteps[i]``, in ``slot_bits[i]`` bits.

    ``calibration_seconds`` is wall-clock; ``denoiser_passes_per_prompt`` counts calibration's passes.
    """

    layers_quantized: int = Field(ge=0)
    layers_left_out: tuple[LeftOutLayer, ...] = ()
    weight_bits: int = Field(ge=1, le=32)
    average_activation_bits: float = Field(gt=0)
    slot_timesteps: tuple[float, ...]
    slot_bits: tuple[int, ...]
    denoiser_passes_per_prompt: float = Field(ge=0)
    calibration_seconds: float = Field(ge=0)

    @model_validator(mode="after")
    def _one_width_per_slot(self) -> Quantization:
        timesteps, widths = len(self.slot_timesteps), len(self.slot_bits)
        if timesteps != widths or widths == 0:
            raise ValueError(f"there are {timesteps} slot timesteps but {widths} slot widths")
        return self

    def bits_at(self, timestep: float) -> int:
        """Activation width of the slot nearest to ``timestep`` (the earlier slot wins a tie)."""
        nearest = min(range(len(self.slot_bits)), key=lambda i: abs(self.slot_timesteps[i] - timestep))
        return self.slot_bits[nearest]

    @property
    def base_bits(self) -> int:
        """The smallest activation width; a slot above it is a relaxed one."""
        return min(self.slot_bits)


class Sizes(Record):
    """Bytes of the denoiser's weights alone: all in float32, and as the quantized artifact stores them."""

    full_precision_bytes: int = Field(gt=0)
    quantized_bytes: int = Field(gt=0)

    @property
    def ratio(self) -> float:
        """How many times smaller the quantized denoiser is."""
        return self.full_precision_bytes / self.quantized_bytes


class Timing(Record):
    """One measured run. The page compares all with the ``reference`` and puts the ``candidate`` on top."""

    name: str
    seconds_per_image: float = Field(gt=0)
    role: Literal["reference", "candidate", "other"] = "other"


class StepError(Record):
    """Relative error of the latent after the denoiser call at ``timestep``, over the evaluation prompts."""

    timestep: float
    error: Estimate


class Fidelity(Record):
    """Nearness to the full-precision pictures, with 95 % intervals.

    ``noise_floor_psnr`` is the PSNR (dB) of the full-precision model against itself, run again with another
    batch size or thread count: no quantized model needs to exceed it. ``latent_error`` is in sampling order.
    """

    psnr: Estimate
    ssim: Estimate
    latent_error: tuple[StepError, ...] = ()
    noise_floor_psnr: Estimate | None = None


class Pair(Record):
    """Two PNG files, absolute or relative to the report's folder, of one prompt and one initial noise."""

    index: int
    prompt: str
    seed: int
    reference: str
    candidate: str
    psnr: float
    ssim: float


class ActivationRange(Record):
    """The smallest and largest value a layer's input took at ``timestep``, over the calibration prompts."""

    timestep: float
    low: float
    high: float


class ComparisonReport(Record):
    """All that ``results.json`` holds and ``report.html`` shows; ``created`` is ISO 8601 with an offset."""

    schema_: Literal["halftone.comparison/1"] = Field(default=SCHEMA, alias="schema")
    title: str
    created: str
    environment: dict[str, str | int | float]
    settings: Settings
    quantization: Quantization
    sizes: Sizes
    timings: tuple[Timing, ...] = ()
    fidelity: Fidelity
    pairs: tuple[Pair, ...]
    activation_ranges: dict[str, tuple[ActivationRange, ...]] = Field(default_factory=dict)

    def to_json(self) -> str:
        """The report as JSON text, UTF-8 characters unescaped."""
        return self.model_dump_json(indent=2, by_alias=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> ComparisonReport:
        """Read what :meth:`to_json` wrote.

        Raises:
            pydantic.ValidationError: a field is missing, unknown or out of range, or the schema is another.
        """
        return cls.model_validate_json(text)
