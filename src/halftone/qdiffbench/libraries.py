"""Other libraries' quantization, applied on the fly to a pipeline's denoiser, so that it can be compared.

A new library is one function under `_register`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from halftone.denoiser import find_denoiser
from halftone.errors import InputError, suggest

Apply = Callable[[Any, str], None]

LIBRARIES: dict[str, Apply] = {}


def _register(name: str) -> Callable[[Apply], Apply]:
    def register(apply: Apply) -> Apply:
        LIBRARIES[name] = apply
        return apply

    return register


def quantize_on_the_fly(pipeline: Any, library: str, scheme: str) -> None:
    """Quantizes the pipeline's denoiser with another library, in place.

    Raises:
        InputError: the library is not installed, or has no such scheme.
    """
    LIBRARIES[library](find_denoiser(pipeline).module, scheme)


@_register("torchao")
def _torchao(module: Any, scheme: str) -> None:
    api = _imported("torchao.quantization", "torchao")
    configs = {
        "int8wo": "Int8WeightOnlyConfig",
        "int8dq": "Int8DynamicActivationInt8WeightConfig",
        "int4wo": "Int4WeightOnlyConfig",
        "float8wo": "Float8WeightOnlyConfig",
    }
    _check_scheme("torchao", scheme, configs)
    if not hasattr(api, configs[scheme]):
        raise InputError(f"This torchao has no {configs[scheme]}; install another release to compare {scheme!r}.")
    _applied("torchao", scheme, lambda: api.quantize_(module, getattr(api, configs[scheme])()))


@_register("quanto")
def _quanto(module: Any, scheme: str) -> None:
    api = _imported("optimum.quanto", "optimum-quanto")
    weights = {"int8": "qint8", "int4": "qint4", "int2": "qint2", "float8": "qfloat8"}
    _check_scheme("quanto", scheme, weights)

    def apply() -> None:
        api.quantize(module, weights=getattr(api, weights[scheme]))
        api.freeze(module)

    _applied("quanto", scheme, apply)


def _imported(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except Exception as error:  # also a build that does not fit this torch
        first = " ".join(str(error).split())[:200]
        raise InputError(f"{package} cannot be used ({first}); install it with: pip install {package}") from error


def _check_scheme(library: str, scheme: str, known: dict[str, str]) -> None:
    if scheme not in known:
        raise InputError(f"{library} has no scheme {scheme!r} here; {suggest(scheme, known)}.")


def _applied(library: str, scheme: str, apply: Callable[[], None]) -> None:
    try:
        apply()
    except (RuntimeError, ImportError, NotImplementedError, AssertionError, ValueError, TypeError) as error:
        first = " ".join(str(error).split())[:200]
        raise InputError(f"{library} could not apply {scheme!r} to this model: {first}") from error
