"""Reading image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from halftone.errors import InputError


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """An image file as uint8 RGB (height, width, 3).

    Raises:
        InputError: it is absent or no image.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"The image {path} cannot be read: {error}") from error
