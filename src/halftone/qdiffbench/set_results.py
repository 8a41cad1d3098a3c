"""What was measured on one prompt set, as records of ``results.json``: strict, frozen, units in every description."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from halftone.qdiffbench.differences import Difference
from halftone.qdiffbench.intervals import Estimate
from halftone.qdiffbench.intervals import Summary as SummaryOfValues


class Record(BaseModel):
    """Base of all records: immutable, no unknown fields, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


def _ordered(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError(f"the interval's ends {interval} are the wrong way round")
    return interval


Interval = Annotated[
    tuple[float, float],
    Field(description="Ends [low, high] of the 95 % interval."),
    AfterValidator(_ordered),
]


class Summary(Record):
    """A value measured on every prompt, all numbers in the value's unit."""

    mean: float = Field(description="Mean over the prompts.")
    ci95: Interval = Field(description="Ends [low, high] of the mean's 95 % bootstrap interval.")
    median: float = Field(description="Half of the prompts are better.")
    worst_decile: float = Field(description="Nine tenths of the prompts are better.")
    n: int = Field(ge=1, description="Number of prompts.")

    @classmethod
    def of(cls, summary: SummaryOfValues) -> Summary:
        """The record of what ``intervals.summarize`` gave."""
        return cls(
            mean=summary.mean,
            ci95=(summary.low, summary.high),
            median=summary.median,
            worst_decile=summary.worst_decile,
            n=summary.n,
        )


class Mean(Record):
    """A mean over prompts with its interval, in the value's unit."""

    mean: float = Field(description="Mean over the prompts.")
    ci95: Interval = Field(description="Ends [low, high] of the mean's 95 % bootstrap interval.")
    n: int = Field(ge=1, description="Number of prompts.")

    @classmethod
    def of(cls, value: Estimate | Difference) -> Mean:
        """The record of what ``bootstrap_mean`` or ``paired_difference`` gave."""
        mean = value.mean if isinstance(value, Estimate) else value.difference
        return cls(mean=mean, ci95=(value.low, value.high), n=value.n)


class KidSubsets(Record):
    """KID as it is usually printed: over random subsets, drawn without replacement."""

    mean: float = Field(description="Mean of the subsets' kernel distances, without unit.")
    std: float = Field(ge=0, description="Standard deviation of the subsets' kernel distances, without unit.")
    subsets: int = Field(ge=1, description="Number of subsets.")
    size: int = Field(ge=2, description="Images in a subset.")


class Distances(Record):
    """Distances to the reference's images under one feature extractor."""

    fid_to_fp: float = Field(ge=0, description="Plain Fréchet distance, squared units of the features.")
    fid_to_fp_unbiased: float | None = Field(
        default=None, ge=0, description="Fréchet distance less its estimated bias from having finitely many images."
    )
    fid_to_fp_ci95: Interval | None = Field(
        default=None, description="95 % interval of the Fréchet distance with many images; may lie below fid_to_fp."
    )
    kid_to_fp: float = Field(description="Paired unbiased kernel distance (squared MMD), no unit; may be negative.")
    kid_to_fp_ci95: Interval | None = Field(default=None, description="95 % bootstrap interval of kid_to_fp.")
    kid_subsets: KidSubsets | None = Field(default=None, description="KID over subsets, as other programs print it.")


class StepDrift(Record):
    """Relative latent error ‖candidate - reference‖ / ‖reference‖ after one sampler step."""

    step: int = Field(ge=0, description="Sampler step, 0 is the first.")
    latent_error: Summary = Field(description="Over the prompts; no unit, lower is better.")


class WorstPair(Record):
    """One of the pairs that differ most."""

    index: int = Field(ge=0, description="Position in the sample of the prompt set.")
    prompt: str = Field(description="The prompt.")
    seed: int | None = Field(
        default=None, description="Seed of the candidate image's initial noise; absent where it is unknown."
    )
    psnr: float = Field(description="PSNR in dB; higher is better.")


class SetResult(Distances):
    """What one candidate did on one prompt set."""

    n: int = Field(ge=2, description="Number of prompts, of which each has one image.")
    clip_score: float | None = Field(
        default=None, ge=0, le=100, description="Mean 100·max(cosine, 0) of the candidate's images; higher is better."
    )
    clip_score_reference: float | None = Field(
        default=None, ge=0, le=100, description="The same of the reference's images."
    )
    clip_score_difference: Mean | None = Field(
        default=None, description="Candidate minus reference, paired by prompt, in points of the CLIP score."
    )
    attribute_accuracy: float | None = Field(
        default=None, ge=0, le=1, description="Share of images whose prompt wins over all alternatives; higher."
    )
    attribute_accuracy_reference: float | None = Field(
        default=None, ge=0, le=1, description="The same of the reference's images."
    )
    attribute_accuracy_difference: Mean | None = Field(
        default=None, description="Candidate minus reference, paired by prompt, as a share of the prompts."
    )
    psnr: Summary = Field(description="Peak signal-to-noise ratio in dB, capped at 100; higher is better.")
    ssim: Summary = Field(description="Structural similarity in -1 … 1; higher is better.")
    ms_ssim: Summary | None = Field(
        default=None, description="Multi-scale SSIM in 0 … 1; absent for sides below 176 pixels; higher is better."
    )
    lpips: Summary | None = Field(default=None, description="LPIPS (AlexNet, v0.1), no unit; lower is better.")
    latent_error: Summary | None = Field(
        default=None, description="Relative error of the final latent, no unit; absent for folders of images; lower."
    )
    drift: tuple[StepDrift, ...] = Field(default=(), description="Latent error after each step, in step order.")
    other_features: dict[str, Distances] = Field(
        default_factory=dict, description="Distances under further extractors, by their names."
    )
    worst_pairs: tuple[WorstPair, ...] = Field(default=(), description="The pairs of lowest PSNR, worst first.")
