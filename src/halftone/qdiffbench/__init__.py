"""QDiffBench: does a quantized diffusion model still paint what the full-precision one paints?

Every metric compares a *candidate* with a *reference* made from the same prompt and the same initial noise,
never with photographs (Tang et al., ECCV 2024, arXiv 2311.06322, section 4).

Importing this package loads no torch; each public name loads its module on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from halftone.qdiffbench.differences import Difference, paired_difference
    from halftone.qdiffbench.distribution_intervals import (
        frechet_difference,
        frechet_interval,
        kid_difference,
        kid_interval,
    )
    from halftone.qdiffbench.features import Extractor, build_extractor, extractor_names, register_extractor
    from halftone.qdiffbench.fidelity import PSNR_CAP_DB, latent_error, ms_ssim, psnr, ssim
    from halftone.qdiffbench.intervals import Estimate, Summary, bootstrap_mean, summarize
    from halftone.qdiffbench.kernel_distance import kid, kid_over_subsets
    from halftone.qdiffbench.matching import attribute_hits, clip_scores
    from halftone.qdiffbench.moments import Moments, frechet_distance, too_few_images
    from halftone.qdiffbench.perceptual import Lpips
    from halftone.qdiffbench.prompt_sets import PromptSet, load_prompt_set
    from halftone.qdiffbench.results import Results

__all__ = [
    "PSNR_CAP_DB",
    "Difference",
    "Estimate",
    "Extractor",
    "Lpips",
    "Moments",
    "PromptSet",
    "Results",
    "Summary",
    "attribute_hits",
    "bootstrap_mean",
    "build_extractor",
    "clip_scores",
    "extractor_names",
    "frechet_difference",
    "frechet_distance",
    "frechet_interval",
    "kid",
    "kid_difference",
    "kid_interval",
    "kid_over_subsets",
    "latent_error",
    "load_prompt_set",
    "ms_ssim",
    "paired_difference",
    "psnr",
    "register_extractor",
    "ssim",
    "summarize",
    "too_few_images",
]

_NAMES = {
    "differences": ("Difference", "paired_difference"),
    "distribution_intervals": ("frechet_difference", "frechet_interval", "kid_difference", "kid_interval"),
    "features": ("Extractor", "build_extractor", "extractor_names", "register_extractor"),
    "fidelity": ("PSNR_CAP_DB", "latent_error", "ms_ssim", "psnr", "ssim"),
    "intervals": ("Estimate", "Summary", "bootstrap_mean", "summarize"),
    "kernel_distance": ("kid", "kid_over_subsets"),
    "matching": ("attribute_hits", "clip_scores"),
    "moments": ("Moments", "frechet_distance", "too_few_images"),
    "perceptual": ("Lpips",),
    "prompt_sets": ("PromptSet", "load_prompt_set"),
    "results": ("Results",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
