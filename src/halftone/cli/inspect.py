"""``halftone inspect``: what an artifact is, without running it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from halftone.cli import options
from halftone.cli.console import emit


def inspect(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A folder that `halftone quantize` wrote.")],
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Show an artifact's recipe, bits of each slot, layers and why any was left out, sizes, calibration record."""
    from halftone.artifact.inspection import inspect_artifact

    facts = inspect_artifact(artifact)
    if as_json:
        emit(facts)
    else:
        print("\n".join(_lines(facts)))


def _lines(facts: dict[str, Any]) -> list[str]:
    from halftone.artifact.description import (
        activation_words,
        calibration_words,
        correction_words,
        layer_words,
        protection_words,
        relaxation_words,
        weight_words,
    )

    calibration, sizes = facts["calibration"], facts["sizes"]
    rounding = facts["recipe"]["weights"]["rounding"]
    packed = "; packed" if facts["weights_packed"] else ""
    lines = [
        f"artifact     {facts['artifact']}",
        f"recipe       {facts['recipe']['name']}: {facts['recipe']['description']}".rstrip(": "),
        f"weights      {weight_words(facts)}, rounding {rounding}{packed}",
        f"activations  {activation_words(facts)}",
        *([f"relaxed      {relaxation_words(facts)}"] if relaxation_words(facts) else []),
        f"layers       {layer_words(facts)}",
        *([f"protected    {protection_words(facts)}"] if protection_words(facts) else []),
        *([f"output       corrected: {correction_words(facts)}"] if facts["correction"] else []),
        f"denoiser     {sizes['denoiser_bytes'] / 1e6:.2f} MB, {sizes['denoiser_ratio']:.3f} of float32",
        f"whole        {sizes['total_bytes'] / 1e6:.2f} MB",
        f"calibrated   {calibration_words(facts)}",
        f"with         {', '.join(f'{name} {version}' for name, version in calibration['versions'].items())}",
        *([] if facts["files_checked"] else ["files        not checked: the folder has no halftone.json"]),
        "",
        "slots (timestep: activation bits)",
        *_wrapped([f"{slot['timestep']:g}: {slot['bits']}" for slot in facts["slots"]]),
    ]
    if facts["left_out"]:
        lines += ["", "left out", *(f"  {name}: {reason}" for name, reason in facts["left_out"].items())]
    if facts["kernels"]:
        lines += ["", "kernels on this machine", *(f"  {name}: {words}" for name, words in facts["kernels"].items())]
    return lines


def _wrapped(items: list[str], width: int = 100) -> list[str]:
    import textwrap

    return textwrap.wrap("   ".join(items), width, initial_indent="  ", subsequent_indent="  ", break_long_words=False)
