"""The files with a pipeline's weights: which of them to open, and whether they hold every tensor."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import diffusers
import transformers

from halftone.errors import InputError

_PREFERRED = "fp16"
_patching = threading.Lock()
#: Where the pipeline that is being opened notes what it lacks; other threads, which load something else, have none.
_noted: ContextVar[dict[str, list[str]] | None] = ContextVar("noted", default=None)


def choose_variant(components: Iterable[Path]) -> str | None:
    """The variant (``fp16`` of ``model.fp16.safetensors``) that is needed because some component has nothing else.

    Raises:
        InputError: a component has its weights as pickles alone.
    """
    needed = []
    for folder in components:
        names = [path.name for path in folder.glob("*.safetensors")]
        if not names and any(folder.glob("*pytorch_model*.bin")):
            raise InputError(
                f"{folder} has its weights as .bin files alone, pickles that can run code when they are read, which"
                " Halftone does not open; if you trust them, convert the model with diffusers:"
                " DiffusionPipeline.from_pretrained(OLD, use_safetensors=False).save_pretrained(NEW)."
            )
        variants = {_variant(name) for name in names}
        if variants and None not in variants:
            needed.append(variants)
    common = set.intersection(*needed) if needed else set()
    return min(common, key=lambda name: (name != _PREFERRED, name), default=None)


def opened_files(component: Path, variant: str | None) -> list[Path]:
    """The files with a component's weights that are opened where ``variant`` is asked for; without such ones the plain.

    Other variants (.non_ema, .fp16) lie beside them and are no part of the model.
    """
    files = sorted(component.glob("*.safetensors"))
    found = [path for path in files if _variant(path.name) == variant]
    return found or [path for path in files if _variant(path.name) is None]


def _variant(name: str) -> str | None:
    """``model.fp16.safetensors``, ``model.fp16-00001-of-00002.safetensors`` -> ``fp16``."""
    parts = name.split(".")
    return parts[1].partition("-")[0] if len(parts) > len(["model", "safetensors"]) else None


@contextmanager
def noting_missing_tensors() -> Iterator[dict[str, list[str]]]:
    """Yields what is filled, while pipelines are opened within it, with the tensors that a component's files lack.

    diffusers and transformers fill them with random numbers or leave them without any, and tell it in their logs alone.
    Each of them knows best which names it really misses (tied weights, names of older releases), and says so if
    `from_pretrained` is asked for it, which a pipeline's own `from_pretrained` does not do. What other threads load
    meanwhile is not noted.
    """
    missing: dict[str, list[str]] = {}
    with _patching, ExitStack() as stack:
        for base in (diffusers.ModelMixin, transformers.PreTrainedModel):
            stack.enter_context(_asking_what_is_missing(base))
        stack.callback(_noted.reset, _noted.set(missing))
        yield missing


@contextmanager
def _asking_what_is_missing(base: Any) -> Iterator[None]:
    original = base.__dict__["from_pretrained"]

    def from_pretrained(cls: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        missing = _noted.get()
        if missing is None:
            return original.__func__(cls, *args, output_loading_info=output_loading_info, **kwargs)
        model, info = original.__func__(cls, *args, output_loading_info=True, **kwargs)
        if info["missing_keys"]:
            missing[Path(args[0]).name] = sorted(info["missing_keys"])
        return (model, info) if output_loading_info else model

    base.from_pretrained = classmethod(from_pretrained)
    try:
        yield
    finally:
        base.from_pretrained = original
