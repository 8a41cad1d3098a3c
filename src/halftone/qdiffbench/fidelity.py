"""How near one picture (or latent) is to the one it should equal: PSNR, SSIM, MS-SSIM and relative latent error."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from halftone.errors import InputError

PSNR_CAP_DB = 100.0
"""What :func:`psnr` returns, in dB, for identical images (truly infinite): means and JSON stay finite.

A 64x64 RGB pair that differs by one level in one value has 89.0 dB; from 227x227 pixels on a difference as
small as that reaches the cap too.
"""

DATA_RANGE = 255.0
SSIM_SIGMA = 1.5
SSIM_RADIUS = 5
SSIM_WINDOW = 2 * SSIM_RADIUS + 1
SSIM_K1, SSIM_K2 = 0.01, 0.03
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_SIDE = SSIM_WINDOW * 2 ** (len(MS_SSIM_WEIGHTS) - 1)
"""The smallest side, in pixels, that :func:`ms_ssim` takes: its fifth scale must hold one window."""

ByteImage = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float64]


def psnr(a: ByteImage, b: ByteImage) -> float:
    """Peak signal-to-noise ratio, 10·log10(255² / mean squared error over pixels and channels).

    Args:
        a, b: uint8 images, (height, width, 3), of one shape. The order does not matter.

    Returns:
        dB; higher is nearer. At most :data:`PSNR_CAP_DB`, which stands for identical images.

    Raises:
        InputError: a shape or dtype other than that.
    """
    check_images(a, b)
    mean_squared_error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    if mean_squared_error == 0.0:
        return PSNR_CAP_DB
    return min(PSNR_CAP_DB, 10.0 * math.log10(DATA_RANGE**2 / mean_squared_error))


def ssim(a: ByteImage, b: ByteImage) -> float:
    """Mean structural similarity: Wang et al., "Image Quality Assessment" (IEEE TIP 2004), equation 13.

    Gaussian 11x11 window (sigma 1.5), K1 = 0.01, K2 = 0.03, population covariance, windows that lie
    wholly inside the image, averaged over windows and then over the channels. Nothing is downsampled.

    Args:
        a, b: uint8 images, (height, width, 3), of one shape, sides of at least 11. The order does not matter.

    Returns:
        A value in [-1, 1]; 1 for identical images.

    Raises:
        InputError: a shape or dtype other than that.
    """
    check_images(a, b)
    if min(a.shape[:2]) < SSIM_WINDOW:
        raise InputError(f"ssim needs images of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, got {a.shape}")
    luminance, structure = _ssim_maps(a.astype(np.float64), b.astype(np.float64))
    return float(np.mean(luminance * structure))


def ms_ssim(a: ByteImage, b: ByteImage) -> float:
    """Multi-scale structural similarity: Wang, Simoncelli & Bovik, Asilomar 2003, equation 7, five scales.

    Contrast and structure of every scale and luminance of the coarsest, averaged over windows and raised to the
    paper's weights, for each channel; then the mean over channels. From scale to scale, 2x2 pixels become their
    mean (an odd last row or column is dropped). A negative structure term counts as zero, since it has no power.

    Args:
        a, b: uint8 images, (height, width, 3), of one shape, sides of at least :data:`MS_SSIM_SIDE` (176). The
            order does not matter.

    Returns:
        A value in [0, 1]; 1 for identical images.

    Raises:
        InputError: a shape or dtype other than that.
    """
    check_images(a, b)
    if not ms_ssim_fits(a.shape):
        raise InputError(f"ms_ssim needs images of at least {MS_SSIM_SIDE}x{MS_SSIM_SIDE} pixels, got {a.shape}")
    x, y = a.astype(np.float64), b.astype(np.float64)
    similarity = np.ones(3)
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        if scale:
            x, y = _halved(x), _halved(y)
        luminance, structure = _ssim_maps(x, y)
        last = scale == len(MS_SSIM_WEIGHTS) - 1
        term = (luminance * structure if last else structure).mean(axis=(0, 1))
        similarity *= np.maximum(term, 0.0) ** weight
    return float(similarity.mean())


def ms_ssim_fits(shape: tuple[int, ...]) -> bool:
    """Whether images of this shape (height, width, …) are large enough for :func:`ms_ssim`."""
    return min(shape[:2]) >= MS_SSIM_SIDE


def latent_error(
    candidate: torch.Tensor | npt.NDArray[np.floating], reference: torch.Tensor | npt.NDArray[np.floating]
) -> float:
    """Relative Euclidean error ‖candidate - reference‖ / ‖reference‖ of one prompt's latent at one step.

    Args:
        candidate, reference: floating tensors or arrays of one shape, any device; computed in float64.

    Returns:
        A non-negative number without unit; 0 for equal latents, 0.01 for an error of one per cent.

    Raises:
        InputError: the shapes differ, a value is not finite, or the reference is all zeros.
    """
    c = torch.as_tensor(candidate).detach().to("cpu", torch.float64)
    r = torch.as_tensor(reference).detach().to("cpu", torch.float64)
    if c.shape != r.shape:
        raise InputError(f"latents must have one shape, got {tuple(c.shape)} and {tuple(r.shape)}")
    if not (torch.isfinite(c).all() and torch.isfinite(r).all()):
        raise InputError("latents must be finite; one of them holds NaN or infinity")
    norm = float(torch.linalg.vector_norm(r))
    if norm == 0.0:
        raise InputError("the reference latent is all zeros, so no relative error exists")
    return float(torch.linalg.vector_norm(c - r)) / norm


def _ssim_maps(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Luminance, and contrast times structure, of every window: (H, W, C) -> twice (H - 10, W - 10, C)."""
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (SSIM_K1 * DATA_RANGE) ** 2, (SSIM_K2 * DATA_RANGE) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return luminance, structure


def _halved(image: FloatArray) -> FloatArray:
    """Means of 2x2 pixels: (H, W, C) -> (H // 2, W // 2, C)."""
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    even = image[:height, :width]
    return np.asarray((even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4.0)


def _gaussian() -> FloatArray:
    """Weights of the SSIM window along one axis: (11,), summing to 1."""
    offsets = np.arange(-SSIM_RADIUS, SSIM_RADIUS + 1, dtype=np.float64)
    weights = np.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    return np.asarray(weights / weights.sum())


def _blur(image: FloatArray) -> FloatArray:
    """Gaussian mean around every pixel whose window fits: (H, W, C) -> (H - 10, W - 10, C)."""
    weights = _gaussian()
    rows = np.lib.stride_tricks.sliding_window_view(image, SSIM_WINDOW, axis=0) @ weights
    return np.asarray(np.lib.stride_tricks.sliding_window_view(rows, SSIM_WINDOW, axis=1) @ weights)


def check_images(a: ByteImage, b: ByteImage) -> None:
    """Refuses what is not a pair of pictures.

    Raises:
        InputError: one is not uint8 (height, width, 3), they differ in shape, or they are empty.
    """
    for image in (a, b):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(f"expected a uint8 image (height, width, 3), got {image.dtype} {image.shape}")
    if a.shape != b.shape:
        raise InputError(f"images must have one shape, got {a.shape} and {b.shape}")
    if a.size == 0:
        raise InputError(f"images must not be empty, got {a.shape}")
