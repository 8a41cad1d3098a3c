"""Features kept beside the images, so that a further candidate, or a run after a kill, need not extract them anew.

A file holds those of a few images under one extractor. Its name follows from what the extractor is and from the
images' names, sizes and times of change: another extractor or another image never finds it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from halftone.files import output_errors, write_atomically
from halftone.qdiffbench.features import Extractor, FloatFeatures

FOLDER = "features"


def kept_features(extractor: Extractor, paths: Sequence[Path]) -> FloatFeatures | None:
    """(n, d) float32 of these images; None if they are not kept, or damaged."""
    try:
        found = np.load(_file(extractor, paths), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    usable = found.dtype == np.float32 and found.shape == (len(paths), extractor.dimension)
    return found if usable and np.isfinite(found).all() else None


def keep_features(extractor: Extractor, paths: Sequence[Path], features: FloatFeatures) -> None:
    """Writes them beside the images.

    Raises:
        OutputError: they cannot be written.
    """
    data = io.BytesIO()
    np.save(data, features, allow_pickle=False)
    with output_errors(f"The features of the images in {paths[0].parent}"):
        target = _file(extractor, paths)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, data.getvalue(), shared=True)


def _file(extractor: Extractor, paths: Sequence[Path]) -> Path:
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    own = hashlib.sha256(extractor.identity.encode()).hexdigest()[:16]
    return paths[0].parent / FOLDER / own / f"{hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:16]}.npy"
