"""The strip of numbers at the top of the page, in plain words."""

from __future__ import annotations

from dataclasses import dataclass

from halftone.qdiffbench.results import Candidate, Results
from halftone.qdiffbench.set_results import Summary
from halftone.report import words
from halftone.report.standing import Standing, another_seed


@dataclass(frozen=True)
class Fact:
    """One headline number, its unit, and the sentence under it."""

    value: str
    unit: str
    words: str


def facts(standing: Standing, set_name: str, results: Results) -> list[Fact]:
    """Nearness, structure, size, widths and time of one candidate; what was not measured is absent."""
    candidate = standing.candidate
    result = candidate.sets[set_name]
    found = [
        _nearness(result.psnr, set_name, results),
        Fact(f"{result.ssim.mean:.3f}", "SSIM", f"1 is the same structure everywhere. {_interval(result.ssim, 3)}"),
        _size(candidate, results),
        _bits(candidate),
        _time(candidate, results),
    ]
    return [fact for fact in found if fact is not None]


def smaller(candidate: Candidate, results: Results) -> float | None:
    """How many times smaller than the reference's the candidate's weights are."""
    before, after = results.reference.size_bytes, candidate.size_bytes
    return before / after if before and after else None


def execution_words(candidate: Candidate) -> str:
    """How the layers were executed: "integer products", or what was not; empty if it was not recorded."""
    kinds = {use.execution for use in candidate.kernels if use.layers}
    names = {"integer": "integer products", "simulated": "simulated in floating point", "float": "floating point"}
    return words.enumerated([names[kind] for kind in names if kind in kinds])


def _nearness(psnr: Summary, set_name: str, results: Results) -> Fact:
    if psnr.mean >= words.CAP_DB:
        return Fact("100", "dB PSNR", "Every pixel of every picture is identical.")
    sentence = f"Colour values are typically off by {words.typical_levels(psnr.mean):.2g} of 255"
    seed = another_seed(results, set_name)
    if seed is not None:
        sentence += f"; from other noise, by {words.typical_levels(seed.psnr.mean):.0f}"
    return Fact(f"{psnr.mean:.1f}", "dB PSNR", f"{sentence}. {_interval(psnr, 1)}")


def _interval(summary: Summary, digits: int) -> str:
    low, high = (words.number(end, digits) for end in summary.ci95)
    return f"95\N{NO-BREAK SPACE}% interval {low} to {high}."


def _size(candidate: Candidate, results: Results) -> Fact | None:
    ratio, before = smaller(candidate, results), results.reference.size_bytes
    if ratio is None or before is None or candidate.size_bytes is None:
        return None
    sizes = words.in_bytes(before), words.in_bytes(candidate.size_bytes)
    if ratio < 1:
        return Fact(f"{1 / ratio:.1f}×", "larger", f"{sizes[0]} of weights became {sizes[1]}.")
    return Fact(f"{ratio:.1f}×", "smaller", f"{sizes[0]} of weights became {sizes[1]}.")


def _bits(candidate: Candidate) -> Fact | None:
    name = words.bits_name(candidate.avg_weight_bits, candidate.avg_activation_bits)
    if not name:
        return None
    which = [
        kind
        for kind, bits in (("a weight", candidate.avg_weight_bits), ("an activation", candidate.avg_activation_bits))
        if bits is not None
    ]
    execution = execution_words(candidate)
    run = f" Layers ran as {execution}." if execution else ""
    return Fact(name, "bits", f"Mean bits of {words.enumerated(which)}.{run}")


def _time(candidate: Candidate, results: Results) -> Fact | None:
    mine, theirs = candidate.seconds_per_image, results.reference.seconds_per_image
    if mine is None:
        return None
    value, unit = words.in_seconds(mine.median).rsplit(" ", 1)
    sentence = f"Median, {words.in_seconds(mine.low)} to {words.in_seconds(mine.high)} in most runs."
    if theirs is not None:
        speed = words.compared(mine.median, theirs.median)
        speed = "The same as" if speed == "as fast" else f"{speed} than"
        sentence = f"{speed} full precision on this machine ({words.in_seconds(theirs.median)}). {sentence}"
    return Fact(value, f"{unit} an image", sentence)
