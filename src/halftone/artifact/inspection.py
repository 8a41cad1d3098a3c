"""What an artifact is, read from its files alone: no weight is loaded and nothing runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from halftone.artifact.config import HalftoneConfig
from halftone.artifact.manifest import MANIFEST, check_files, read_manifest
from halftone.attention import attention_words
from halftone.errors import ArtifactError, InputError
from halftone.files import parse_json
from halftone.kernels import kernel_report, select
from halftone.layers import LayerForm
from halftone.recipe import Recipe

_FLOAT32_BYTES = 4
_UINT8 = "U8"  # safetensors' name of the dtype of packed weights; nothing else in a denoiser has it
_OF_THE_RECORD = {"prompts", "num_inference_steps", "scheduler", "denoiser_passes_per_prompt", "versions"}
_TABLES = (
    *("weight_scale", "weight_zero_point"),
    *("input_scale", "input_zero_point", "input_num_bits"),
    *("output_gain", "output_bias"),
)


def inspect_artifact(path: str | Path) -> dict[str, Any]:
    """Facts about an artifact, JSON-ready.

    Returns:
        ``artifact``, ``recipe`` (as a mapping), ``weight_bits``, ``weights_packed`` (whether the file holds them as a
        stream of bits), ``average_activation_bits`` (over the denoiser calls of the calibrated trajectory), ``slots``
        (timestep and bits of each), ``layers`` (names), ``left_out`` (name -> reason), ``splits`` (name -> channels
        of the first half, of convolutions whose halves are layers of their own), ``sizes`` (bytes;
        ``denoiser_ratio`` is to float32), ``correction`` (of the denoiser's output: the recipe's, and ``fitted``, the
        smallest and the largest gain and bias; None without), ``calibration`` (the record), ``kernels`` (what would run
        here), ``files_checked`` (False for a folder without halftone.json, as a pipeline's own ``save_pretrained``
        writes it: there is nothing to compare the files with).

    Raises:
        InputError: there is no such folder.
        ArtifactError: it is no artifact, damaged, or of a newer format.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder that `halftone quantize` wrote.")
    has_manifest = (folder / MANIFEST).is_file()
    manifest = read_manifest(folder) if has_manifest else {}
    if has_manifest:
        check_files(folder)
    component, config = quantized_component(folder)
    if (
        has_manifest and manifest.get("calibration") != config.calibration
    ):  # the only file that no digest covers is the manifest itself
        raise ArtifactError(
            f"{folder / MANIFEST} is not what was saved: its calibration record differs from the denoiser's; copy the"
            " artifact again."
        )
    lacking = sorted(_OF_THE_RECORD - set(config.calibration))
    if lacking:
        raise ArtifactError(f"The calibration record of {folder / component} lacks {', '.join(lacking)}.")
    slots = config.slots
    calls = [float(value) for value in config.calibration.get("timesteps", slots.timesteps)]
    bits = [slots.num_bits[slots.slot_of(value)] for value in calls]
    return {
        "artifact": str(folder),
        "recipe": config.recipe.to_dict(),
        "weight_bits": config.recipe.weights.num_bits,
        "weights_packed": _is_packed(folder / component, config),
        "average_activation_bits": sum(bits) / len(bits),
        "slots": [
            {"timestep": value, "bits": width} for value, width in zip(slots.timesteps, slots.num_bits, strict=True)
        ],
        "layers": list(config.layers),
        "left_out": dict(config.left_out),
        "splits": dict(config.splits),
        "sizes": _sizes(folder, component, config),
        "correction": _correction(config),
        "calibration": dict(config.calibration),
        "kernels": _kernels(sorted(set(slots.num_bits)), _features(config.recipe)),
        "files_checked": has_manifest,
    }


def _features(recipe: Recipe) -> frozenset[str]:
    return LayerForm.of(recipe).features(recipe.weights.num_bits)


def _correction(config: HalftoneConfig) -> dict[str, Any] | None:
    if config.recipe.correction.kind == "none":
        return None
    return {**config.recipe.to_dict()["correction"], "fitted": dict(config.calibration.get("correction", {}))}


def quantized_component(folder: Path) -> tuple[str, HalftoneConfig]:
    """The component whose config.json has Halftone's quantization_config, and that configuration.

    Raises:
        ArtifactError: there is none, or it is damaged.
    """
    for path in sorted(folder.glob("*/config.json")):
        try:
            data = parse_json(path.read_text(encoding="utf-8")).get("quantization_config")
        except (ValueError, AttributeError) as error:
            raise ArtifactError(f"{path} cannot be read as JSON ({error}); copy the artifact again.") from error
        if isinstance(data, dict) and data.get("quant_method") == "halftone":
            return path.parent.name, HalftoneConfig.from_dict(data)
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(
            f"{folder} is no artifact of Halftone: it has no {MANIFEST} and no component that Halftone quantized."
        )
    raise ArtifactError(f"{folder} has a {MANIFEST} but no component that Halftone quantized; copy the artifact again.")


def _sizes(folder: Path, component: str, config: HalftoneConfig) -> dict[str, float]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    stored = sum(path.stat().st_size for path in (folder / component).glob("*.safetensors"))
    as_float = _FLOAT32_BYTES * sum(
        _values(tensor, config) for tensor in _stored(folder / component) if _is_weight(tensor.name)
    )
    return {
        "denoiser_bytes": stored,
        "denoiser_float32_bytes": as_float,
        "denoiser_ratio": stored / max(1, as_float),
        "total_bytes": sum(path.stat().st_size for path in files),
    }


def _is_weight(name: str) -> bool:
    return name.rpartition(".")[2] not in _TABLES


class _Stored(NamedTuple):
    """A tensor in a file: its name, safetensors' name of its dtype, its shape."""

    name: str
    dtype: str
    shape: list[int]


def _is_packed(folder: Path, config: HalftoneConfig) -> bool:
    names = {f"{name}.weight" for name in config.layers}
    return any(tensor.dtype == _UINT8 for tensor in _stored(folder) if tensor.name in names)


def _values(tensor: _Stored, config: HalftoneConfig) -> int:
    """Numbers in a tensor; in packed weights, whose bytes are all that is known, up to seven too many per layer where
    their number is no multiple of eight."""
    count = math.prod(tensor.shape)
    return count * 8 // config.recipe.weights.num_bits if tensor.dtype == _UINT8 else count


def _stored(folder: Path) -> Iterator[_Stored]:
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 (no dict)
                    part = file.get_slice(name)
                    yield _Stored(name, part.get_dtype(), part.get_shape())
        except SafetensorError as error:
            raise ArtifactError(f"{path} is damaged ({error}); copy the artifact again.") from error


def _kernels(widths: list[int], features: frozenset[str]) -> dict[str, str]:
    """What would run layers and attention on this machine's CPU, and why nothing faster would."""
    for operation in ("linear", "conv2d"):
        for bits in widths:
            select(operation, "cpu", bits, features)
    words = {}
    for key, choice in kernel_report().items():
        passed_over = choice["passed_over"]
        assert isinstance(passed_over, dict)
        reasons = "; ".join(f"not {name}: {why}" for name, why in passed_over.items())
        words[key] = f"{choice['kernel']} (integer){'; ' + reasons if reasons else ''}"
    words["attention"] = attention_words()
    return words
