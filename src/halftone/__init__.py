"""Halftone: step-by-step quantization of text-to-image diffusion models, executed in integers and measured.

    import halftone

    pipeline = halftone.load("./my-sd-w8a8")
    image = pipeline("a lighthouse at dusk").images[0]

Importing this package loads neither torch nor diffusers; each public name loads its module on first use.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

import wrapt

if TYPE_CHECKING:
    from halftone.artifact.load import load
    from halftone.errors import HalftoneError
    from halftone.generation import generate
    from halftone.quantization import QuantizationResult, quantize
    from halftone.recipe import Recipe

__version__ = "0.1.0"

__all__ = [
    "HalftoneError",
    "QuantizationResult",
    "Recipe",
    "__version__",
    "generate",
    "load",
    "quantize",
]

_MODULE_OF = {
    "HalftoneError": "halftone.errors",
    "QuantizationResult": "halftone.quantization",
    "Recipe": "halftone.recipe",
    "generate": "halftone.generation",
    "load": "halftone.artifact.load",
    "quantize": "halftone.quantization",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


@wrapt.when_imported("diffusers.quantizers.auto")
def _teach_diffusers(auto: ModuleType) -> None:
    """Let ``DiffusionPipeline.from_pretrained`` read Halftone folders, as soon as diffusers is there.

    The module registers itself at its end: it may be what is being imported, and then is not whole here yet.
    """
    import_module("halftone.artifact.diffusers_quantizer")
