"""Makes a module with quantized layers a citizen of diffusers: slot choice, config, save_pretrained."""

from __future__ import annotations

import dataclasses
from typing import Any

from halftone.artifact.config import HalftoneConfig, quantized_digest
from halftone.artifact.diffusers_quantizer import HalftoneQuantizer
from halftone.attention import use_attention
from halftone.denoiser import choose_slots
from halftone.timesteps import SlotClock


def attach(module: Any, config: HalftoneConfig) -> None:
    """Gives a freshly quantized denoiser what loading would have given it, so that `save_pretrained` round-trips."""
    config = dataclasses.replace(config, digest=quantized_digest(module))
    choose_slots(module, SlotClock(config.slots))
    use_attention(module, "auto")
    module.register_to_config(quantization_config=config)
    module.is_quantized = False  # see HalftoneQuantizer: it can be cast
    module.quantization_method = config.quant_method
    module.hf_quantizer = HalftoneQuantizer(config, pre_quantized=True)
