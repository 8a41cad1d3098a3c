"""How a denoiser's attention runs: the native kernel or torch's, and what of it is computed once an image."""

from halftone.attention.processor import (
    ATTENTIONS,
    Attention,
    NativeAttnProcessor,
    attention_of,
    attention_words,
    kept_words,
    running_attention,
    use_attention,
)

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
