"""Other libraries' quantization, applied on the fly to a pipeline's denoiser, so that it can be compared.

A new library is one entry of `LIBRARIES`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from halftone.denoiser import find_denoiser
from halftone.errors import InputError, suggest
from halftone.qdiffbench.stored_weights import stored_bytes


@dataclass(frozen=True)
class Library:
    """How a library is called.

    Attributes:
        package: what pip installs.
        module: what is imported.
        schemes: our name of a scheme -> the library's name of what it takes.
        integer_schemes: those whose products are of integers, and the bits of their activations.
        apply: called with (the imported module, the denoiser, the library's name).
    """

    package: str
    module: str
    schemes: Mapping[str, str]
    integer_schemes: Mapping[str, int]
    apply: Callable[[Any, Any, str], None]


def _torchao(api: Any, module: Any, name: str) -> None:
    api.quantize_(module, getattr(api, name)())


def _quanto(api: Any, module: Any, name: str) -> None:
    api.quantize(module, weights=getattr(api, name))
    api.freeze(module)


LIBRARIES: Mapping[str, Library] = {
    "torchao": Library(
        package="torchao",
        module="torchao.quantization",
        schemes={
            "int8wo": "Int8WeightOnlyConfig",
            "int8dq": "Int8DynamicActivationInt8WeightConfig",
            "int4wo": "Int4WeightOnlyConfig",
            "float8wo": "Float8WeightOnlyConfig",
        },
        integer_schemes={"int8dq": 8},
        apply=_torchao,
    ),
    "quanto": Library(
        package="optimum-quanto",
        module="optimum.quanto",
        schemes={"int8": "qint8", "int4": "qint4", "int2": "qint2", "float8": "qfloat8"},
        integer_schemes={},
        apply=_quanto,
    ),
}


def check_scheme(library: str, scheme: str) -> Any:
    """The library's module, if it is installed and has the scheme.

    Raises:
        InputError: it is not, or has not.
    """
    known = LIBRARIES[library]
    if scheme not in known.schemes:
        raise InputError(f"{library} has no scheme {scheme!r} here; {suggest(scheme, known.schemes)}")
    try:
        api = import_module(known.module)
    except Exception as error:  # also a build that does not fit this torch
        first = " ".join(str(error).split())[:200]
        raise InputError(
            f"{known.package} cannot be used ({first}); install it with: pip install {known.package}"
        ) from error
    if not hasattr(api, known.schemes[scheme]):
        raise InputError(
            f"This {known.package} has no {known.schemes[scheme]}; install another release to compare {scheme!r}."
        )
    return api


def library_version(library: str) -> str:
    """Of the installed package, or empty."""
    try:
        return importlib.metadata.version(LIBRARIES[library].package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def quantize_on_the_fly(pipeline: Any, library: str, scheme: str) -> None:
    """Quantizes the pipeline's denoiser with another library, in place.

    Raises:
        InputError: the library is not installed, has no such scheme, or left the model as it was.
    """
    api, module = check_scheme(library, scheme), find_denoiser(pipeline).module
    before = stored_bytes(module)
    try:
        LIBRARIES[library].apply(api, module, LIBRARIES[library].schemes[scheme])
    except (RuntimeError, ImportError, NotImplementedError, AssertionError, ValueError, TypeError) as error:
        first = " ".join(str(error).split())[:200]
        raise InputError(f"{library} could not apply {scheme!r} to this model: {first}") from error
    if stored_bytes(module) == before:
        raise InputError(f"{library} left every layer of this model as it was under {scheme!r}; it does not fit them.")
