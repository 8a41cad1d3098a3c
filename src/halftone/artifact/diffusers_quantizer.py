"""Registers Halftone with diffusers, so that ``DiffusionPipeline.from_pretrained`` loads artifacts."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from torch import nn

from halftone.artifact.config import HalftoneConfig, QuantMethod, quantized_digest
from halftone.artifact.packed_weights import pack_weights
from halftone.attention import use_attention
from halftone.denoiser import choose_slots, set_submodule
from halftone.errors import ArtifactError
from halftone.layers import (
    OUTPUT_CORRECTION,
    LayerForm,
    OutputCorrection,
    QuantizedConv2d,
    QuantizedLayer,
    QuantizedLinear,
    SplitConv2d,
)
from halftone.packing import packed_bytes, unpack_bits
from halftone.timesteps import SlotClock


class HalftoneQuantizer(DiffusersQuantizer):
    """What diffusers calls while it loads a denoiser whose config says ``"quant_method": "halftone"``."""

    quantization_config: HalftoneConfig

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        if not self.pre_quantized:
            raise ArtifactError(
                "Halftone needs calibration, so from_pretrained cannot quantize on the fly;"
                " use halftone.quantize or the command `halftone quantize`."
            )

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        config = self.quantization_config
        rows, form = config.recipe.table_rows(len(config.slots)), LayerForm.of(config.recipe)
        with init_empty_weights():
            for name, channels in config.splits.items():
                set_submodule(model, name, _split(_submodule(model, name), channels, name))
            for name in config.layers:
                layer = _submodule(model, name)
                kind = QuantizedLinear if isinstance(layer, nn.Linear) else QuantizedConv2d
                empty = kind.empty_like(layer, config.recipe.weights.num_bits, rows, name, form)  # type: ignore[arg-type]
                set_submodule(model, name, empty)
        if config.recipe.correction.kind != "none":
            model.add_module(OUTPUT_CORRECTION, OutputCorrection(len(config.slots), 0))

    def update_missing_keys(self, model: nn.Module, missing_keys: list[str], prefix: str) -> list[str]:
        """Refuses a file that lacks a tensor: diffusers would warn and go on with random numbers."""
        if missing_keys:
            raise ArtifactError(
                f"{type(model).__name__}'s file lacks {len(missing_keys)} tensors, the first being"
                f" {min(missing_keys)}; copy the artifact again or quantize anew."
            )
        return missing_keys

    def check_if_quantized_param(
        self, model: nn.Module, param_value: Any, param_name: str, state_dict: dict[str, Any], **kwargs: Any
    ) -> bool:
        owner, _, leaf = param_name.rpartition(".")
        module = model.get_submodule(owner)
        return isinstance(module, OutputCorrection) or (leaf != "bias" and isinstance(module, QuantizedLayer))

    def create_quantized_param(
        self,
        model: nn.Module,
        param_value: torch.Tensor,
        param_name: str,
        target_device: Any,
        state_dict: dict[str, torch.Tensor],
        *_: Any,
        **__: Any,
    ) -> None:
        """Places the tensor as it is stored: `param_value` may have been cast to the dtype of the rest.

        Packed weights are unpacked here, one layer at a time, and stay int8 in memory.
        """
        owner, leaf = param_name.rpartition(".")[::2]
        layer = model.get_submodule(owner)
        stored = state_dict[param_name].to(target_device)
        if isinstance(layer, OutputCorrection):
            _fill(layer, leaf, stored, param_name)
            return
        assert isinstance(layer, QuantizedLayer)  # `check_if_quantized_param` let no other pass
        empty = layer.get_parameter(leaf) if leaf == "weight" else layer.get_buffer(leaf)
        if leaf == "weight" and _is_packed(stored, empty, layer.weight_num_bits):
            stored = unpack_bits(stored, layer.weight_num_bits, empty.shape)
        if (stored.dtype, stored.shape) != (empty.dtype, empty.shape):
            raise ArtifactError(
                f"{param_name} is stored as {stored.dtype} {tuple(stored.shape)} instead of {empty.dtype}"
                f" {tuple(empty.shape)}; the file is damaged."
            )
        if leaf == "weight":
            layer.register_parameter(leaf, nn.Parameter(stored, requires_grad=False))
        else:
            layer.register_buffer(leaf, stored)

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, torch.Tensor], safe_serialization: bool = False
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What `save_pretrained` writes; diffusers asks for it since some release after 0.37."""
        return pack_weights(state_dict, self.quantization_config), {}

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        if quantized_digest(model) != self.quantization_config.digest:
            raise ArtifactError(
                f"The quantized tensors of {type(model).__name__} are not those that were saved (a flipped bit, or"
                " files of two artifacts mixed); copy the artifact again or quantize anew."
            )
        choose_slots(model, SlotClock(self.quantization_config.slots))
        use_attention(model, "auto")
        # diffusers takes this flag for "must not be cast", and its from_pipe (image-to-image) casts. Our layers can be
        # cast: integers and scales stay what they are.
        model.is_quantized = False  # type: ignore[assignment]

    @property
    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True


def _is_packed(stored: torch.Tensor, empty: torch.Tensor, num_bits: int) -> bool:
    """Whether a weight is stored as a stream of bits, of the length that its shape demands."""
    if stored.dtype != torch.uint8 or num_bits >= 8:
        return False
    return tuple(stored.shape) == (packed_bytes(empty.numel(), num_bits),)


def _fill(correction: OutputCorrection, leaf: str, stored: torch.Tensor, param_name: str) -> None:
    """Takes a stored table; how many channels it has, the digest vouches for."""
    if stored.dtype != torch.float32 or stored.ndim != 2 or len(stored) != correction.num_slots:
        raise ArtifactError(
            f"{param_name} is stored as {stored.dtype} {tuple(stored.shape)} instead of torch.float32 with"
            f" {correction.num_slots} rows; the file is damaged."
        )
    correction.register_buffer(leaf, stored)


def _split(layer: nn.Module, channels: int, name: str) -> SplitConv2d:
    if not isinstance(layer, nn.Conv2d) or channels >= layer.in_channels:
        raise ArtifactError(f"The artifact splits {name} at {channels} channels, which it does not have.")
    return SplitConv2d.of(layer, channels)


def _submodule(model: nn.Module, name: str) -> nn.Module:
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        layer = nn.Identity()
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        raise ArtifactError(f"The artifact names a quantized layer {name} that {type(model).__name__} does not have.")
    return layer


# Teaches diffusers to read artifacts, whoever imports this module first (see halftone/__init__.py).
auto.AUTO_QUANTIZER_MAPPING[QuantMethod.HALFTONE.value] = HalftoneQuantizer
auto.AUTO_QUANTIZATION_CONFIG_MAPPING[QuantMethod.HALFTONE.value] = HalftoneConfig
