"""A Hugging Face model card of an artifact: YAML front matter and text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from halftone.artifact.description import activation_words, correction_words, is_measured, weight_words
from halftone.qdiffbench.results import Results
from halftone.report import words
from halftone.report.markdown import markdown_table


def model_card(
    artifact: Mapping[str, Any],
    results: Results | None = None,
    *,
    name: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
) -> str:
    """README.md of an artifact: what it is, how it was made, how to load it, its limits, and what was measured.

    Args:
        artifact: what ``halftone.artifact.inspection.inspect_artifact`` found.
        results: what ``halftone bench`` measured; without it the card says that nothing was measured.
        name: the model's name; its folder's by default.
        base_model: hub id of the full-precision model; by default the results' reference, if that is one.
        license: license identifier of the hub; the base model's applies to the weights.
    """
    name = name or Path(artifact["artifact"]).resolve().name
    base = base_model or _hub_id(results)
    parts = [
        _front_matter(artifact, base, license),
        _introduction(artifact, name, base),
        _how_to_load(name),
        _how_it_was_made(artifact),
        _limits(artifact),
        _measured(results),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _front_matter(artifact: Mapping[str, Any], base: str | None, license: str | None) -> str:
    weights = artifact["weight_bits"]
    facts: dict[str, Any] = {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["halftone", "quantized", f"{weights}-bit", "text-to-image", "diffusers"],
    }
    if license:
        facts["license"] = license
    if base:
        facts |= {"base_model": base, "base_model_relation": "quantized"}
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---"


def _hub_id(results: Results | None) -> str | None:
    """The reference's source, if it reads as owner/name rather than a path or a bundled model."""
    source = results.reference.source if results is not None else ""
    is_id = source.count("/") == 1 and not source.startswith((".", "/", "~")) and ":" not in source
    return source if is_id and not Path(source).exists() else None


def _introduction(artifact: Mapping[str, Any], name: str, base: str | None) -> str:
    sizes = artifact["sizes"]
    what = f"[{base}](https://huggingface.co/{base})" if base else "a text-to-image model"
    return f"""# {name}

{what[0].upper() + what[1:]}, its denoiser quantized with Halftone: \
{artifact["weight_bits"]}-bit weights, {artifact["average_activation_bits"]:.3g}-bit activations on average, \
recipe `{artifact["recipe"]["name"]}`. The denoiser's weights take {words.in_bytes(sizes["denoiser_bytes"])}, \
{sizes["denoiser_ratio"]:.2f} of their float32 size. Everything else is as it was."""


def _how_to_load(name: str) -> str:
    return f"""## How to load it

With [diffusers](https://github.com/huggingface/diffusers) and Halftone installed:

```python
import halftone

pipeline = halftone.load("{name}")  # a folder, or this model's id on the hub
image = pipeline("a lighthouse at dusk").images[0]
```

After `import halftone`, diffusers reads it by itself as well:

```python
import halftone
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{name}")
```"""


def _how_it_was_made(artifact: Mapping[str, Any]) -> str:
    calibration, slots = artifact["calibration"], artifact["slots"]
    widths: dict[int, int] = {}
    for slot in slots:
        widths[slot["bits"]] = widths.get(slot["bits"], 0) + 1
    bits = words.enumerated([f"{count} with {width} bits" for width, count in sorted(widths.items())])
    rows = [
        ("recipe", f"`{artifact['recipe']['name']}`: {artifact['recipe'].get('description', '')}".rstrip(": ")),
        ("weights", weight_words(artifact)),
        ("activations", activation_words(artifact) + ("" if is_measured(artifact) else f": {bits}")),
        *([("output correction", correction_words(artifact))] if artifact.get("correction") else []),
        ("layers quantized", str(len(artifact["layers"]))),
        ("layers in floating point", _left_out(artifact["left_out"])),
        *((label, str(calibration[key])) for label, key in _CALIBRATION.items() if calibration.get(key) is not None),
    ]
    lines = [f"| {label} | {' '.join(value.split()).replace('|', chr(92) + '|')} |" for label, value in rows]
    return "\n".join(["## How it was made", "", "| | |", "|---|---|", *lines])


_CALIBRATION = {
    "pipeline": "pipeline",
    "calibration prompts": "prompts",
    "calibration steps": "num_inference_steps",
    "calibration scheduler": "scheduler",
    "guidance scale": "guidance_scale",
    "seed": "seed",
    "denoiser passes per prompt": "denoiser_passes_per_prompt",
}


def _left_out(left_out: Mapping[str, str]) -> str:
    counts: dict[str, int] = {}
    for reason in left_out.values():
        counts[reason] = counts.get(reason, 0) + 1
    if not counts:
        return "none"
    return f"{len(left_out)} ({'; '.join(f'{count}: {reason}' for reason, count in counts.items())})"


_CALIBRATED = """It was calibrated on one kind of prompt; other kinds, schedulers and numbers of steps
  work, and may come out farther from full precision."""
_MEASURED = "Its ranges are measured while it paints: it was calibrated on no kind of prompt."


def _limits(artifact: Mapping[str, Any]) -> str:
    kernels = "".join(f"\n  - {where}: {what}" for where, what in artifact["kernels"].items())
    ran = f" On the machine that wrote this card:{kernels}" if kernels else ""
    calibrated = _MEASURED if is_measured(artifact) else _CALIBRATED
    return f"""## Limits

- It paints what the full-precision model paints, with that model's abilities, biases and license, and somewhat
  differently: see the measurements.
- {calibrated}
- Smaller is not always faster: speed depends on the integer kernels of the machine.{ran}"""


def _measured(results: Results | None) -> str:
    if results is None:
        return """## Measurements

None yet. `halftone bench REFERENCE ARTIFACT` measures how far its pictures are from full precision, and
`halftone card ARTIFACT --results results.json` puts the table here."""
    commands = "\n".join(results.settings.commands)
    again = f"\n\n```\n{commands}\n```" if commands else ""
    return f"## Measurements\n\n{markdown_table(results).strip()}{again}"
