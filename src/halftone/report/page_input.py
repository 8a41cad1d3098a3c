"""What the page shows besides the results themselves: pictures, values of single prompts, facts of a quantization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from halftone.errors import InputError
from halftone.qdiffbench.results import Results
from halftone.qdiffbench.set_results import StepDrift

Of = tuple[str, str]
"""A candidate's name and a prompt set's name."""


@dataclass(frozen=True)
class Picture:
    """One shown pair: the reference's and a candidate's picture of one prompt and one initial noise.

    Attributes:
        set_name, candidate: names as in the results.
        index: position in the sample of the prompt set.
        reference, image: image files of one size; ``image`` is the candidate's.
        seed: of the candidate's initial noise; None where it is unknown.
        psnr, ssim: of this pair, dB and -1 … 1.
    """

    set_name: str
    candidate: str
    index: int
    prompt: str
    seed: int | None
    reference: Path
    image: Path
    psnr: float
    ssim: float


@dataclass(frozen=True)
class ActivationRange:
    """The smallest and largest value that a layer's input took at ``timestep``, over the calibration prompts."""

    timestep: float
    low: float
    high: float


@dataclass(frozen=True)
class QuantizationFacts:
    """How a candidate was quantized. Slots are in sampling order.

    Attributes:
        weight_bits: bits of a quantized layer's weight.
        slot_timesteps, slot_bits: slot i is for ``slot_timesteps[i]`` and has activations of ``slot_bits[i]`` bits.
        layers_quantized: how many layers run in integers.
        left_out: layer -> why it stayed in floating point, in words for a reader.
        denoiser_passes_per_prompt: calibration's passes through the denoiser, counted.
        calibration_seconds: wall-clock time of the calibration.
        calibration_prompts: how many prompts it saw.
        recipe: the recipe's name.
        candidate: which candidate this is about; None: the first one.
        commands: command lines that reproduce it, in order; the settings' commands come after them.
    """

    weight_bits: int
    slot_timesteps: Sequence[float]
    slot_bits: Sequence[int]
    layers_quantized: int
    left_out: Mapping[str, str] = field(default_factory=dict)
    denoiser_passes_per_prompt: float | None = None
    calibration_seconds: float | None = None
    calibration_prompts: int | None = None
    recipe: str | None = None
    candidate: str | None = None
    commands: Sequence[str] = ()

    def __post_init__(self) -> None:
        timesteps, widths = len(self.slot_timesteps), len(self.slot_bits)
        if timesteps != widths or widths == 0:
            raise InputError(f"There are {timesteps} slot timesteps but {widths} slot widths.")


@dataclass(frozen=True)
class PageInput:
    """All that ``report.html`` shows.

    Attributes:
        title: the page's heading.
        results: what ``results.json`` holds.
        pictures: pairs to show: the worst ones of each candidate and set, and the first ones in order.
        psnr_values: PSNR of every prompt in dB, for the histograms.
        drift: latent error after each step; where a pair of names is absent, the results' own drift is shown.
        activation_ranges: layer -> its input's range in each slot, in any order.
        quantization: how the (first) candidate was made.
    """

    title: str
    results: Results
    pictures: Sequence[Picture] = ()
    psnr_values: Mapping[Of, Sequence[float]] = field(default_factory=dict)
    drift: Mapping[Of, Sequence[StepDrift]] = field(default_factory=dict)
    activation_ranges: Mapping[str, Sequence[ActivationRange]] = field(default_factory=dict)
    quantization: QuantizationFacts | None = None
