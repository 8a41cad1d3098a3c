"""QDiffBench: does a quantized diffusion model still paint what the full-precision one paints?

Every metric compares a *candidate* with a *reference* made from the same prompt and the same initial noise,
never with photographs (Tang et al., ECCV 2024, arXiv 2311.06322, section 4).
"""

from halftone.qdiffbench.fidelity import PSNR_CAP_DB, latent_error, psnr, ssim
from halftone.qdiffbench.intervals import Estimate, bootstrap_mean

__all__ = ["PSNR_CAP_DB", "Estimate", "bootstrap_mean", "latent_error", "psnr", "ssim"]
