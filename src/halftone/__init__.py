"""Halftone: step-by-step quantization of text-to-image diffusion models, executed in integers and measured.

    import halftone

    pipeline = halftone.load("./my-sd-w8a8")
    image = pipeline("a lighthouse at dusk").images[0]

Importing this package loads neither torch nor diffusers; each public name loads its module on first use.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

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


_AUTO = "diffusers.quantizers.auto"


def _teach_diffusers() -> None:
    """Lets ``DiffusionPipeline.from_pretrained`` read Halftone folders.

    The module registers itself at its end: it may be what is being imported, and then is not whole here yet.
    """
    import_module("halftone.artifact.diffusers_quantizer")


class _WhenDiffusersIsImported:
    """Finds diffusers' table of quantizers as the other finders do, and has it taught as soon as it is there.

    Written out because a library for such hooks takes longer to import than all else that `import halftone` does.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _AUTO:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((found for finder in others if (found := finder.find_spec(name, path, target))), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_teach(module: ModuleType) -> None:
                execute(module)
                if module.__name__ == _AUTO:  # a loader may be shared by several modules
                    _teach_diffusers()

            spec.loader.exec_module = execute_and_teach  # type: ignore[method-assign]
        return spec


if _AUTO in sys.modules:
    _teach_diffusers()
else:
    sys.meta_path.insert(0, _WhenDiffusersIsImported())
