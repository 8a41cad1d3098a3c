"""Projections of a text that stays the same for all steps of an image: computed once instead of once a step.

A quantized layer gives the same bits for the same input, weights and row of its table. The text's ranges are the same
at every step of a calibration, so the rows of different slots are the same, but for the bits of relaxed slots.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from halftone.kernels.registry import ENVIRONMENT_VARIABLE
from halftone.layers import ExecutionMode, QuantizedLinear, SlotRow
from halftone.layers.table import DerivedCache

__all__ = ["ConstantInput"]

#: Results kept of a layer: one of ordinary and one of relaxed slots.
_ROWS = 2


class _Key(NamedTuple):
    """What a result depends on, besides input and weights."""

    row: SlotRow
    kernels: str
    is_inference: bool  # such results cannot take part in a backward pass


class ConstantInput:
    """Remembers what quantized layers made of an input, for as long as the input stays what it is.

    One object serves all layers that read the same input. It compares the input with a copy (inference tensors do not
    count their changes), which costs some millionth of a second per kilobyte; it forgets everything when the input is
    deleted, and is not copied with the model.
    """

    def __init__(self) -> None:
        self._input: weakref.ref[Tensor] | None = None
        self._copy: Tensor | None = None
        self._results: weakref.WeakKeyDictionary[nn.Module, DerivedCache[dict[_Key, Tensor]]] = (
            weakref.WeakKeyDictionary()
        )

    def apply(self, layer: nn.Module, x: Tensor) -> Tensor:
        """``layer(x)``, from memory if nothing that it depends on has changed."""
        if not _is_deterministic(layer) or x.requires_grad or torch.compiler.is_compiling():
            result: Tensor = layer(x)
            return result
        assert isinstance(layer, QuantizedLinear)
        self._notice(x)
        key = _Key(layer.current_row(), os.environ.get(ENVIRONMENT_VARIABLE, ""), torch.is_inference_mode_enabled())
        results = self._of(layer)
        if key not in results:
            if len(results) == _ROWS:
                results.clear()
            results[key] = layer(x)
        return results[key]

    def _notice(self, x: Tensor) -> None:
        """Forgets all results if this is another input than before, or has been written to."""
        is_known = self._input is not None and self._input() is x
        if is_known and self._copy is not None and torch.equal(self._copy, x):
            return
        self._forget()
        self._input, self._copy = weakref.ref(x, self._forgetter()), x.detach().clone()

    def _of(self, layer: QuantizedLinear) -> dict[_Key, Tensor]:
        """Results of a layer with the weights that it has now."""
        cache = self._results.setdefault(layer, DerivedCache())
        held = (layer.weight, layer.weight_scale, layer.weight_zero_point, layer.bias)
        sources = [tensor for tensor in held if tensor is not None]
        return cache.get("results", sources, dict)

    def _forget(self) -> None:
        self._input, self._copy = None, None
        self._results.clear()

    def _forgetter(self) -> Callable[[object], None]:
        """Called when the input is deleted; does not keep this object alive."""
        weak = weakref.ref(self)

        def forget(deleted: object) -> None:
            this = weak()
            if this is not None and this._input is deleted:
                this._forget()

        return forget

    def __reduce__(self) -> tuple[type[ConstantInput], tuple[()]]:
        return type(self), ()


def _is_deterministic(layer: nn.Module) -> bool:
    """Whether a call is nothing but the integer product: no hook, no wrapper (LoRA, offloading), no observation."""
    if type(layer) is not QuantizedLinear or layer.mode is not ExecutionMode.INTEGER:
        return False
    return not (layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__)
