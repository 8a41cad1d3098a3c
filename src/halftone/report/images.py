"""Pictures of a comparison as data URIs: the files' pixels, their amplified difference, contact sheets."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from halftone.errors import InputError

ByteImage = npt.NDArray[np.uint8]


def difference(a: ByteImage, b: ByteImage, gain: int) -> ByteImage:
    """min(255, gain · |a - b|) for every pixel and channel: black where the images agree.

    Args:
        a, b: uint8 images (height, width, 3) of one shape.
        gain: amplification, at least 1.

    Raises:
        InputError: the shapes differ or the gain is below 1.
    """
    if a.shape != b.shape:
        raise InputError(f"images must have one shape, got {a.shape} and {b.shape}")
    if gain < 1:
        raise InputError(f"gain must be at least 1, got {gain}")
    distance = np.abs(a.astype(np.int32) - b.astype(np.int32))
    return np.minimum(255, gain * distance).astype(np.uint8)


def contact_sheet(images: Sequence[ByteImage], columns: int) -> ByteImage:
    """Images of one shape (height, width, 3) side by side, row by row; an unfilled last row ends in black.

    Raises:
        InputError: no images, or images of several shapes.
    """
    if not images or len({image.shape for image in images}) != 1:
        raise InputError("a contact sheet needs at least one image, all of one shape")
    height, width, channels = images[0].shape
    rows = -(-len(images) // columns)
    sheet = np.zeros((rows * height, columns * width, channels), dtype=np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * height, index % columns * width
        sheet[top : top + height, left : left + width] = image
    return sheet


def reduced(image: ByteImage, side: int) -> ByteImage:
    """The image with its longer side at most ``side`` pixels (area averaging); unchanged if it is no larger."""
    height, width = image.shape[:2]
    longest = max(height, width)
    if longest <= side:
        return image
    size = max(1, round(width * side / longest)), max(1, round(height * side / longest))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def data_uri(image: ByteImage, lossless: bool) -> str:
    """An image as the ``src`` of an element that needs no network: PNG, or JPEG without colour subsampling."""
    buffer = io.BytesIO()
    picture = Image.fromarray(image)
    if lossless:
        picture.save(buffer, format="PNG", optimize=True)
    else:
        picture.save(buffer, format="JPEG", quality=90, subsampling=0)  # optimize fails on noise: Pillow's buffer
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
