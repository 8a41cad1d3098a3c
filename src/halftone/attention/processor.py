"""An attention processor of diffusers that runs Halftone's fused kernel, and the switch that sets it.

    halftone.load(path, attention="int8")

"auto" keeps a pipeline as exact as diffusers runs it: the kernel multiplies bfloat16 inputs as exactly as torch's own
attention, so it is taken for them; float32 inputs it would round, so torch computes those.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast, get_args

import torch
from diffusers.models import attention_processor
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional

from halftone.attention.constant_input import ConstantInput
from halftone.denoiser import place_of
from halftone.errors import InputError, suggest
from halftone.kernels.registry import ENVIRONMENT_VARIABLE
from halftone.native import attention as native

__all__ = [
    "ATTENTIONS",
    "Attention",
    "NativeAttnProcessor",
    "attention_of",
    "attention_words",
    "kept_words",
    "running_attention",
    "use_attention",
]

#: "float": torch computes it. "bfloat16", "int8": the kernel, Q and K rounded to that. "auto": see the module's head.
Attention = Literal["auto", "float", "bfloat16", "int8"]
ATTENTIONS: tuple[Attention, ...] = get_args(Attention)
_NAMED = ("bfloat16", "int8")
_REFERENCE = "reference"
_logger = logging.getLogger("halftone.attention")


class NativeAttnProcessor(AttnProcessor2_0):
    """Self- and cross-attention without masks on the native kernel; what that does not take, diffusers' own code runs.

    Keys and values of a text are computed once an image: see `ConstantInput`.

    Attributes:
        attention: "auto", "float", "bfloat16" or "int8".
    """

    def __init__(self, attention: Attention = "auto", text: ConstantInput | None = None) -> None:
        super().__init__()
        self.attention = attention
        self._text = ConstantInput() if text is None else text

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """``[batch, queries, channels]`` (and ``[batch, keys, text channels]``) to ``[batch, queries, channels]``."""
        if attention_mask is not None or hidden_states.dim() != 3 or _reason_to_keep(attn):
            result: Tensor = super().__call__(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs
            )
            return result
        query = _heads(attn.to_q(hidden_states), attn.heads)
        if encoder_hidden_states is None:
            key, value = attn.to_k(hidden_states), attn.to_v(hidden_states)
        else:
            key = self._text.apply(attn.to_k, encoder_hidden_states)
            value = self._text.apply(attn.to_v, encoder_hidden_states)
        result = self._attend(query, _heads(key, attn.heads), _heads(value, attn.heads))
        result = attn.to_out[0](result.transpose(1, 2).flatten(2))
        return cast(Tensor, attn.to_out[1](result))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``[batch, heads, tokens, head_dim]`` on the kernel, or in torch if that is wanted or the kernel cannot."""
        precision = _precision(self.attention, query.dtype)
        if self.attention in _NAMED:  # asked by name it is not silently something else: the model was cast since
            _check_type(self.attention, query.device.type, query.dtype)
        if precision is None or _not_here() is not None or native.reason_against(query, key, value) is not None:
            return functional.scaled_dot_product_attention(query, key, value)
        return native.attention(query, key, value, precision)


def _make_known(kind: type) -> None:
    """Lets diffusers' `set_default_attn_processor` replace a processor of ours: it looks at a tuple, which modules that
    are imported already hold under the same name."""
    known: tuple[type, ...] = attention_processor.CROSS_ATTENTION_PROCESSORS
    for name, module in list(sys.modules.items()):
        holds = getattr(module, "__dict__", {})
        if name.startswith("diffusers.") and holds.get("CROSS_ATTENTION_PROCESSORS") is known:
            holds["CROSS_ATTENTION_PROCESSORS"] = (*known, kind)


_make_known(NativeAttnProcessor)


def use_attention(module: nn.Module, attention: str) -> dict[str, str]:
    """Sets how a denoiser's attention runs.

    Args:
        module: a UNet or transformer of diffusers; others are left alone.
        attention: one of `ATTENTIONS`.

    Returns:
        Name -> reason of the attention modules that keep their own processor.

    Raises:
        InputError: there is no such attention; or what is asked for by name cannot run: on this machine, in the
            module's dtype or on its device, or because all its attention modules keep their own. The module is then
            left as it was.
    """
    if attention not in ATTENTIONS:
        raise InputError(f"attention is {attention!r}; {suggest(attention, ATTENTIONS)}")
    named = attention in _NAMED
    reasons = {name: _reason_against(attn, named) for name, attn in _attention_modules(module)}
    kept = {name: why for name, why in reasons.items() if why is not None}
    if named:
        _check_named(attention, module, reasons)
    processor = NativeAttnProcessor(attention)
    for name, attn in _attention_modules(module):
        if name not in kept:
            attn.set_processor(processor)
    _logger.info("attention: %s%s", attention, "".join(f"; {name} keeps its own: {why}" for name, why in kept.items()))
    return kept


def kept_words(attention: str, kept: Mapping[str, str]) -> str:
    """What `use_attention` returned, as a sentence; empty if nothing keeps its own or nothing was asked for by name."""
    if attention not in _NAMED or not kept:
        return ""
    name, why = next(iter(kept.items()))
    return f"Attention runs in {attention} but for {len(kept)} modules, the first of them {name}: {why}."


def attention_of(module: nn.Module) -> Attention | None:
    """What `use_attention` set; None if no attention of the module is Halftone's."""
    found = [attn.processor.attention for attn in _ours(module)]
    return next((attention for attention in found if attention in _NAMED), found[0] if found else None)


def running_attention(module: nn.Module) -> str:
    """What a denoiser's attention runs on, as it is now: "diffusers" if none is Halftone's, "torch", "native bfloat16"
    or "native int8". Modules that keep their own processor are not told."""
    chosen = attention_of(module)
    if chosen is None:
        return "diffusers"
    device, dtype = place_of(module)
    precision = _precision(chosen, dtype)
    if precision is None or _not_here() is not None or native.reason_against_type(device, dtype) is not None:
        return "torch"
    return f"native {precision}"


def attention_words() -> str:
    """What "auto" runs on this machine's CPU, and why nothing faster."""
    reason = _not_here()
    return "torch; not native: " + reason if reason else "native for bfloat16 inputs, torch for float32"


def _not_here() -> str | None:
    """Why the kernel is not to run on this machine, whatever the tensors; None if it may."""
    if os.environ.get(ENVIRONMENT_VARIABLE) == _REFERENCE:  # other names are of the layers' products alone
        return f"{ENVIRONMENT_VARIABLE}={_REFERENCE}"
    return native.unavailable()


def _check_named(attention: str, module: nn.Module, reasons: Mapping[str, str | None]) -> None:
    """Refuses an attention that was asked for by name and would run nowhere.

    Args:
        reasons: attention modules -> why each keeps its own processor, or None.
    """
    reason = _not_here()
    if reason is not None:
        raise InputError(f"This machine cannot run attention in {attention}: {reason}; 'auto' takes what there is.")
    if not reasons:
        raise InputError(f"{type(module).__name__} has no attention that could run in {attention}; take 'auto'.")
    if None not in reasons.values():
        name, why = next(iter(reasons.items()))
        raise InputError(
            f"No attention of {type(module).__name__} can run in {attention}: all {len(reasons)} modules keep their own"
            f" processor, {name} because {why}; take 'auto'."
        )
    _check_type(attention, *place_of(module))


def _check_type(attention: str, device_type: str, dtype: torch.dtype) -> None:
    reason = native.reason_against_type(device_type, dtype)
    if reason is not None:
        raise InputError(
            f"The kernel that runs attention in {attention} is not for this pipeline: {reason}; take 'auto', or float32"
            " or bfloat16 on a CPU."
        )


def _ours(module: nn.Module) -> Iterator[Any]:
    """Attention modules that have Halftone's processor."""
    return (attn for _, attn in _attention_modules(module) if isinstance(attn.processor, NativeAttnProcessor))


def _precision(attention: Attention, dtype: torch.dtype) -> native.Precision | None:
    """What the kernel rounds Q and K to; None if torch is to run."""
    if attention == "auto":
        return "bfloat16" if dtype == torch.bfloat16 else None
    return None if attention == "float" else attention


def _attention_modules(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, child in module.named_modules():
        if isinstance(child, attention_processor.Attention):
            yield name, child


def _reason_against(attn: Any, named: bool) -> str | None:
    """Why a module keeps its own processor; None if it takes ours.

    Args:
        named: whether the kernel is asked for by name; otherwise ours may as well call torch.
    """
    why = _reason_to_keep(attn) or _foreign_processor(attn)
    return why or (native.reason_against_width(attn.inner_dim // attn.heads) if named else None)


def _foreign_processor(attn: Any) -> str | None:
    kind = type(attn.processor)
    return None if kind in (AttnProcessor2_0, NativeAttnProcessor) else f"its processor is {kind.__name__}"


def _reason_to_keep(attn: Any) -> str | None:
    """What a module does besides projections and attention; None if nothing."""
    extras = {
        "normalizes its input": attn.group_norm is not None or attn.spatial_norm is not None,
        "normalizes the text": attn.norm_cross is not None,
        "normalizes queries or keys": attn.norm_q is not None or attn.norm_k is not None,
        "adds its input": attn.residual_connection,
        "divides its output": attn.rescale_output_factor != 1,
        "has other heads for keys": attn.to_k is None or attn.inner_kv_dim != attn.inner_dim,
        "has no output projection": attn.to_out is None,
    }
    return next((f"it {what}" for what, is_so in extras.items() if is_so), None)


def _heads(x: Tensor, heads: int) -> Tensor:
    """``[batch, tokens, heads * head_dim]`` to ``[batch, heads, tokens, head_dim]``."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)
