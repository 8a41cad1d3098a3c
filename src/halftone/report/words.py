"""Numbers in words a passer-by understands."""

from __future__ import annotations

from collections.abc import Sequence

from halftone.report.metrics import Reading

MINUS = "\N{MINUS SIGN}"
CAP_DB = 100.0  # the PSNR that stands for identical pictures, as in qdiffbench.fidelity (which needs torch)
LEVELS = 255.0


def number(value: float, digits: int) -> str:
    """Fixed decimals with a true minus sign and no negative zero: "−0.12", "0.00"."""
    text = f"{value:.{digits}f}"
    if float(text) == 0.0:
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def interval(reading: Reading, digits: int) -> str:
    """The ends of an interval: "41.2 to 43.9"; empty without one."""
    if reading.low is None or reading.high is None:
        return ""
    return f"{number(reading.low, digits)} to {number(reading.high, digits)}"


def in_bytes(count: float) -> str:
    """A size in decimal units: 11_300_000 -> "11.3 MB"."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def in_seconds(seconds: float) -> str:
    """A duration: "12 ms", "0.42 s", "3 min 20 s", "2 h 05 min"."""
    if seconds < 0.0995:
        return f"{1000 * seconds:#.2g} ms".replace(". ", " ")
    if seconds < 100:
        return f"{seconds:#.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def compared(seconds: float, reference: float) -> str:
    """Speed against a reference, without flattery: "1.40× faster", "1.20× slower", "as fast" (within 2 %)."""
    if abs(seconds / reference - 1) < 0.02:
        return "as fast"
    if seconds < reference:
        return f"{reference / seconds:.2f}× faster"
    return f"{seconds / reference:.2f}× slower"


def typical_levels(psnr_db: float) -> float:
    """Root-mean-square difference, in levels of 255, of an image pair with this PSNR: 255·10^(-PSNR/20)."""
    return 0.0 if psnr_db >= CAP_DB else float(LEVELS * 10 ** (-psnr_db / 20))


def enumerated(items: Sequence[str], last: str = "and") -> str:
    """ "a, b and c"."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} {last} {items[-1]}"


def bits_name(weight_bits: float | None, activation_bits: float | None) -> str:
    """ "W8 A8.4"; empty if neither is known."""
    parts = [
        f"{letter}{round(bits, 1):g}"
        for letter, bits in (("W", weight_bits), ("A", activation_bits))
        if bits is not None
    ]
    return " ".join(parts)
