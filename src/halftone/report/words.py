"""Numbers in words a passer-by understands."""

from __future__ import annotations

from dataclasses import dataclass

from halftone.qdiffbench.fidelity import DATA_RANGE, PSNR_CAP_DB
from halftone.qdiffbench.intervals import Estimate
from halftone.report.data import ComparisonReport, Timing


@dataclass(frozen=True)
class Fact:
    """One headline number, its unit, and the sentence under it."""

    value: str
    unit: str
    words: str


def in_bytes(count: int) -> str:
    """A size in decimal units: 11_300_000 -> "11.3 MB"."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def in_seconds(seconds: float) -> str:
    """A duration: "0.42 s", "3 min 20 s", "2 h 05 min"."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def interval(estimate: Estimate, digits: int) -> str:
    """The ends of an interval: "41.2 to 43.9"."""
    return f"{estimate.low:.{digits}f} to {estimate.high:.{digits}f}"


def typical_levels(psnr_db: float) -> float:
    """Root-mean-square difference, in levels of 255, of an image pair with this PSNR: 255·10^(-PSNR/20)."""
    return 0.0 if psnr_db >= PSNR_CAP_DB else float(DATA_RANGE * 10 ** (-psnr_db / 20))


def timing_of(report: ComparisonReport, role: str) -> Timing | None:
    """The first timing with that role, or None."""
    return next((row for row in report.timings if row.role == role), None)


def compared(seconds: float, reference: float) -> str:
    """Speed against a reference, without flattery: "1.4× faster", "1.2× slower", "as fast" (within 2 %)."""
    if abs(seconds / reference - 1) < 0.02:
        return "as fast"
    if seconds < reference:
        return f"{reference / seconds:.2f}× faster"
    return f"{seconds / reference:.2f}× slower"


def headline_facts(report: ComparisonReport) -> list[Fact]:
    """The numbers at the top of the page: nearness, structure, size, width, and time when it was measured."""
    fidelity, sizes, bits = report.fidelity, report.sizes, report.quantization
    levels = typical_levels(fidelity.psnr.mean)
    before, after = in_bytes(sizes.full_precision_bytes), in_bytes(sizes.quantized_bytes)
    facts = [
        Fact(f"{sizes.ratio:.1f}×", "smaller", f"{before} of float32 weights became {after}."),
        Fact(f"{fidelity.psnr.mean:.1f}", "dB PSNR", f"Colour values are typically off by {levels:.1f} of 255."),
        Fact(f"{fidelity.ssim.mean:.3f}", "SSIM", "1 would be the same structure in every patch."),
        Fact(
            f"W{bits.weight_bits} A{bits.average_activation_bits:.3g}",
            "",
            f"Bits of a weight and, on average, of an activation, in {bits.layers_quantized} layers; "
            f"{len(bits.layers_left_out)} stay in floating point.",
        ),
    ]
    return facts + _timing_fact(report)


def _timing_fact(report: ComparisonReport) -> list[Fact]:
    reference, candidate = timing_of(report, "reference"), timing_of(report, "candidate")
    if reference is None or candidate is None:
        return []
    speed = compared(candidate.seconds_per_image, reference.seconds_per_image)
    words = f"{speed[0].upper()}{speed[1:]} than" if speed != "as fast" else "The same as"
    words += f" full precision on this machine ({in_seconds(reference.seconds_per_image)})."
    seconds = candidate.seconds_per_image
    return [Fact(f"{seconds:.2g}" if seconds < 10 else f"{seconds:.0f}", "s per image", words)]
