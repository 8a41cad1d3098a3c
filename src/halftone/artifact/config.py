"""The `quantization_config` in the denoiser's config.json: all that is needed to rebuild and run the layers."""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn

from halftone.denoiser import output_correction
from halftone.errors import ArtifactError, RecipeError
from halftone.layers import OUTPUT_CORRECTION, quantized_layers
from halftone.recipe import Recipe
from halftone.timesteps import TimestepSlots

#: 2: weights of fewer than 8 bits may be packed. 3: a digest covers the configuration itself. Older ones are still
#: read: the stored dtype tells whether weights are packed, and a configuration without a digest is not checked by one.
#: 4: the denoiser's output is corrected, ranges are measured at inference, convolutions are split, weights have groups
#: or zero points, the relaxed steps were chosen by a scan or a budget, layers are protected, or 25 steps were
#: observed; written only where that is so, and older releases read all else.
FORMAT_VERSION = 4
_READABLE = (1, 2, 3, 4)
_WITH_CONFIG_DIGEST = 3
_WITH_SPLITS = 4

CONFIG_DIGEST = "config_digest"
_KINDS = {"splits": dict, "layers": list, "left_out": dict, "calibration": dict, "digest": str}


class QuantMethod(str, enum.Enum):
    """The value of `quant_method`, in the type that diffusers expects."""

    HALFTONE = "halftone"


@dataclass(frozen=True)
class HalftoneConfig:
    """What a quantized denoiser needs to be rebuilt, and what was done to it.

    Attributes:
        recipe: what was asked for.
        slots: the calibrated timesteps and their activation bits.
        layers: names of the quantized layers.
        left_out: name -> reason of the Linear and Conv2d layers that were not quantized.
        calibration: the calibration record (settings, prompt hashes, versions, counted passes).
        digest: SHA-256 of all quantized tensors; notices a flipped bit wherever the folder is loaded from.
        splits: name -> channels of the first half of the convolutions that are two (`halftone.layers.SplitConv2d`).
    """

    recipe: Recipe
    slots: TimestepSlots
    layers: tuple[str, ...]
    left_out: Mapping[str, str]
    calibration: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    splits: Mapping[str, int] = field(default_factory=dict)

    @property
    def quant_method(self) -> QuantMethod:
        return QuantMethod.HALFTONE

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        newest = self._needs_newest()
        data = {
            "quant_method": QuantMethod.HALFTONE.value,
            "format_version": FORMAT_VERSION if newest else _WITH_CONFIG_DIGEST,
            **({"splits": dict(self.splits)} if newest else {}),
            "recipe": self.recipe.to_dict(),
            "slots": self.slots.to_dict(),
            "layers": list(self.layers),
            "left_out": dict(self.left_out),
            "calibration": dict(self.calibration),
            "digest": self.digest,
        }
        return {**data, CONFIG_DIGEST: config_digest(data)}

    def _needs_newest(self) -> bool:
        """Whether releases that read up to version 3 would not know what to do with the layers or the recipe."""
        recipe = self.recipe
        plainly_relaxed = recipe.relax is None or (recipe.relax.side != "auto" and recipe.relax.fraction is not None)
        if not (recipe.weights.is_plain and plainly_relaxed):
            return True
        if recipe.observed_steps == "even" or recipe.calibration == "none":
            return True
        return recipe.correction.kind != "none" or recipe.split_shortcuts or recipe.protect is not None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], **_: Any) -> HalftoneConfig:
        """Reads what `to_dict` wrote, strictly.

        Raises:
            ArtifactError: the format is newer than this release, a key is missing, unknown or of another kind, or the
                whole is not what was saved.
        """
        version = data.get("format_version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ArtifactError(
                f"This artifact has format version {version}, and this Halftone reads up to {FORMAT_VERSION};"
                " upgrade Halftone to load it."
            )
        if type(version) is not int or version not in _READABLE:
            raise ArtifactError(
                f"The quantization_config is damaged: unexpected or missing format_version {version!r}."
            )
        expected = {"quant_method", "format_version", *(f.name for f in fields(cls))}
        if version >= _WITH_CONFIG_DIGEST:
            expected.add(CONFIG_DIGEST)
        if version < _WITH_SPLITS:
            expected.remove("splits")
        if set(data) != expected:
            odd = sorted(set(data) ^ expected)
            raise ArtifactError(f"The quantization_config is damaged: unexpected or missing {', '.join(odd)}.")
        for key, kind in _KINDS.items():
            if key in expected and not isinstance(data[key], kind):
                raise ArtifactError(
                    f"The quantization_config is damaged: {key} is a {type(data[key]).__name__}, not a {kind.__name__}."
                )
        try:
            recipe = Recipe.from_dict(data["recipe"], "the artifact's recipe")
        except RecipeError as error:
            raise ArtifactError(f"The quantization_config is damaged: {error}") from error
        slots = TimestepSlots.from_dict(data["slots"])
        splits = data.get("splits", {})
        if any(type(channels) is not int or channels < 1 for channels in splits.values()):
            raise ArtifactError("The quantization_config is damaged: splits are no numbers of channels.")
        if CONFIG_DIGEST in expected and data[CONFIG_DIGEST] != config_digest(data):
            raise ArtifactError(
                "The quantization_config is not what was saved (a changed slot, layer or recipe); copy the artifact"
                " again or quantize anew."
            )
        return cls(
            recipe=recipe,
            slots=slots,
            layers=tuple(str(name) for name in data["layers"]),
            left_out=dict(data["left_out"]),
            calibration=dict(data["calibration"]),
            digest=data["digest"],
            splits=dict(splits),
        )

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)

    def __repr__(self) -> str:
        return f"HalftoneConfig({self.recipe.name}, {len(self.layers)} layers, {len(self.slots)} slots)"


def config_digest(data: Mapping[str, Any]) -> str:
    """SHA-256 over a configuration as plain data, without its own digest: what the integers mean hangs on it."""
    covered = {key: value for key, value in data.items() if key != CONFIG_DIGEST}
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()


def quantized_digest(module: nn.Module) -> str:
    """SHA-256 over the integer weights, scales and slot tables of all quantized layers, by name, and over the
    correction of the output if there is one."""
    digest = hashlib.sha256()
    covered: list[tuple[str, nn.Module]] = sorted(quantized_layers(module), key=lambda item: item[0])
    correction = output_correction(module)
    for name, layer in [*covered, *([(OUTPUT_CORRECTION, correction)] if correction is not None else [])]:
        for key, tensor in sorted(layer.state_dict(keep_vars=True).items()):
            if key != "bias":
                digest.update(f"{name}.{key}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
                digest.update(memoryview(_bytes(tensor)))
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
