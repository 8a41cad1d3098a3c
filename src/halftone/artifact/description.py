"""Words for what `inspect_artifact` found, the same in every place that tells people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = [
    "activation_words",
    "calibration_words",
    "correction_words",
    "is_measured",
    "layer_words",
    "protection_words",
    "relaxation_words",
    "weight_words",
]


def is_measured(facts: Mapping[str, Any]) -> bool:
    """Whether the ranges of activations are measured at inference."""
    return bool(facts["recipe"]["activations"]["granularity"] == "token")


def weight_words(facts: Mapping[str, Any]) -> str:
    """Bits of the weights, and what they share."""
    weights = facts["recipe"]["weights"]
    group = weights.get("group_size")
    shared = "each output channel" if group is None else f"every {group} weights of an output channel"
    what = "a scale" if weights["symmetric"] else "a scale and a zero point"
    return f"{facts['weight_bits']} bits, {what} for {shared}"


def activation_words(facts: Mapping[str, Any]) -> str:
    """Bits of the activations, and where their ranges come from."""
    bits = f"{facts['average_activation_bits']:.4g} bits"
    if is_measured(facts):
        return f"{bits}; the range of each token (of each image in convolutions) is measured at inference"
    return f"{bits} on average over {len(facts['slots'])} slots"


def layer_words(facts: Mapping[str, Any]) -> str:
    """How many layers are quantized, and which convolutions are two of them."""
    words = f"{len(facts['layers'])} quantized, {len(facts['left_out'])} left in floating point"
    if facts["splits"]:
        return f"{words}; {len(facts['splits'])} convolutions of joined skips have halves of their own"
    if facts["recipe"].get("split_shortcuts"):
        return f"{words}; split_shortcuts changed nothing, since the model joins no skips"
    return words


def correction_words(facts: Mapping[str, Any]) -> str:
    """How the denoiser's output is corrected, in every slot and channel; empty if it is not."""
    correction = facts["correction"]
    if correction is None:
        return ""
    aims = {"drift": "the next latents of the full-precision trajectory"}
    aim = aims.get(correction["kind"], "the full-precision prediction at the same input")
    guidance = facts["calibration"].get("guidance_scale")
    fitted = "" if guidance is None else f", fitted at guidance {guidance:g}"
    spans = [f"{name} from {low:.4g} to {high:.4g}" for name, (low, high) in correction["fitted"].items()]
    return f"{correction['kind']}, towards {aim}{fitted}; {', '.join(spans)}"


def relaxation_words(facts: Mapping[str, Any]) -> str:
    """How a scan chose the relaxed steps; empty if the recipe names them."""
    relaxed = facts["calibration"].get("relaxed")
    if relaxed is None:
        return ""
    found = {"auto": "where it helps most"}.get(relaxed["side"], f"at the {relaxed['side']}, which proved better")
    errors = ", ".join(f"{side} {error:.3g}" for side, error in relaxed["final_error"].items())
    return f"{len(relaxed['slots'])} steps chosen {found}; error of the final latents on the scan's prompts: {errors}"


def protection_words(facts: Mapping[str, Any]) -> str:
    """What a scan left in floating point, and what that gained; empty if the recipe asks for none."""
    protected = facts["calibration"].get("protected")
    if protected is None:
        return ""
    layers, errors = protected["layers"], protected["prediction_error"]
    before, after = errors["all_quantized"], errors["protected"]
    if layers:
        share = 100 * sum(shares["operations"] for shares in layers.values())
        return (
            f"{_layers(len(layers))} in floating point, with {share:.3g} % of the multiplications; error of the"
            f" prediction in the scan's calls: {after:.3g} instead of {before:.3g}"
        )
    if protected.get("tried"):
        return (
            f"nothing: with {_layers(len(protected['tried']))} in floating point the error of the prediction in the"
            f" scan's calls was {after:.3g}, and {before:.3g} without"
        )
    return "nothing: no layer within the budget makes more than its fair share of the error"


def _layers(count: int) -> str:
    return f"{count} layer{'' if count == 1 else 's'}"


def calibration_words(facts: Mapping[str, Any]) -> str:
    """What the calibration consisted of."""
    calibration = facts["calibration"]
    passes = f"{calibration['denoiser_passes_per_prompt']:g} denoiser passes a prompt"
    if is_measured(facts):
        return f"no activations, {passes}"
    return (
        f"{calibration['prompts']} prompts, {calibration['num_inference_steps']} steps of {calibration['scheduler']},"
        f" {passes}"
    )
