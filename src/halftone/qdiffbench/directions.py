"""Which way is better: the direction of every metric, by the name it has in ``results.json``."""

from __future__ import annotations

from halftone.errors import InputError, suggest

_HIGHER_IS_BETTER = {
    "psnr": True,
    "ssim": True,
    "ms_ssim": True,
    "clip_score": True,
    "attribute_accuracy": True,
    "lpips": False,
    "latent_error": False,
    "fid_to_fp": False,
    "kid_to_fp": False,
    "seconds_per_image": False,
    "peak_memory_bytes": False,
    "size_bytes": False,
}


def metric_names() -> tuple[str, ...]:
    """All metrics that have a direction."""
    return tuple(_HIGHER_IS_BETTER)


def higher_is_better(metric: str) -> bool:
    """Whether a larger value of the metric is the better one.

    Raises:
        InputError: no such metric.
    """
    if metric not in _HIGHER_IS_BETTER:
        raise InputError(f"There is no metric {metric!r}; {suggest(metric, _HIGHER_IS_BETTER)}")
    return _HIGHER_IS_BETTER[metric]
