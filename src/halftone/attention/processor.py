"""An attention processor of diffusers that runs Halftone's fused kernel, and the switch that sets it.

    halftone.load(path, attention="int8")

"auto" keeps a pipeline as exact as diffusers runs it: the kernel multiplies bfloat16 inputs as exactly as torch's own
attention, so it is taken for them; float32 inputs it would round, so torch computes those.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any, Literal, cast, get_args

import torch
from diffusers.models import attention_processor
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional

from halftone.attention.constant_input import ConstantInput
from halftone.errors import InputError, suggest
from halftone.kernels.registry import ENVIRONMENT_VARIABLE
from halftone.native import attention as native

__all__ = ["ATTENTIONS", "Attention", "NativeAttnProcessor", "attention_of", "attention_words", "use_attention"]

#: "float": torch computes it. "bfloat16", "int8": the kernel, Q and K rounded to that. "auto": see the module's head.
Attention = Literal["auto", "float", "bfloat16", "int8"]
ATTENTIONS: tuple[Attention, ...] = get_args(Attention)
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
        if precision is None or _not_here() is not None or native.reason_against(query, key, value) is not None:
            return functional.scaled_dot_product_attention(query, key, value)
        return native.attention(query, key, value, precision)


def use_attention(module: nn.Module, attention: str) -> dict[str, str]:
    """Sets how a denoiser's attention runs.

    Args:
        module: a UNet or transformer of diffusers; others are left alone.
        attention: one of `ATTENTIONS`.

    Returns:
        Name -> reason of the attention modules that keep their own processor.

    Raises:
        InputError: there is no such attention, or this machine cannot run what is asked for by name.
    """
    if attention not in ATTENTIONS:
        raise InputError(f"attention is {attention!r}; {suggest(attention, ATTENTIONS)}")
    reason = _not_here()
    if attention in ("bfloat16", "int8") and reason is not None:
        raise InputError(f"This machine cannot run attention in {attention}: {reason}; 'auto' takes what there is.")
    kept: dict[str, str] = {}
    processor = NativeAttnProcessor(attention)
    for name, attn in _attention_modules(module):
        why = _reason_to_keep(attn) or _foreign_processor(attn)
        if why is None:
            attn.set_processor(processor)
        else:
            kept[name] = why
    _logger.info("attention: %s%s", attention, "".join(f"; {name} keeps its own: {why}" for name, why in kept.items()))
    return kept


def attention_of(module: nn.Module) -> Attention | None:
    """What `use_attention` set; None if no attention of the module is Halftone's."""
    for _, attn in _attention_modules(module):
        if isinstance(attn.processor, NativeAttnProcessor):
            return attn.processor.attention
    return None


def attention_words() -> str:
    """What "auto" runs on this machine's CPU, and why nothing faster."""
    reason = _not_here()
    return "torch; not native: " + reason if reason else "native for bfloat16 inputs, torch for float32"


def _not_here() -> str | None:
    """Why the kernel is not to run on this machine, whatever the tensors; None if it may."""
    forced = os.environ.get(ENVIRONMENT_VARIABLE, "")
    if forced not in ("", "native"):
        return f"{ENVIRONMENT_VARIABLE}={forced}"
    return native.unavailable()


def _precision(attention: Attention, dtype: torch.dtype) -> native.Precision | None:
    """What the kernel rounds Q and K to; None if torch is to run."""
    if attention == "auto":
        return "bfloat16" if dtype == torch.bfloat16 else None
    return None if attention == "float" else attention


def _attention_modules(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, child in module.named_modules():
        if isinstance(child, attention_processor.Attention):
            yield name, child


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
