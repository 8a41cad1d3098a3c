"""Images for prompts: one generator a prompt, files named by index, resumable.

Every image is painted by a pipeline call of its own. So it depends on prompt, seed and settings alone, never on
the batch it happened to be in (matrix products of another shape round differently, and quantization amplifies that).
"""

from __future__ import annotations

import inspect
import io
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from halftone.attention import running_attention
from halftone.denoiser import find_denoiser, place_of
from halftone.errors import InputError, NonFiniteError
from halftone.files import output_errors, parse_json, write_atomically
from halftone.image_size import with_both_sides
from halftone.kernels import select
from halftone.layers import quantized_layers
from halftone.locks import only_writer
from halftone.prompts import check_prompts
from halftone.schedulers import check_steps, scheduler_config

MANIFEST = "manifest.jsonl"
SETTINGS = "generation.json"
_LOCK = ".generation.lock"  # within the folder: nobody may have to write beside it
_SEEDS = range(-(2**63), 2**63)  # what torch takes, with room above for the seeds of later prompts
_CALLBACK = "callback_on_step_end"
_FLAG = {"flagged": True}  # in the entry of an image that the safety checker made black

OnStep = Callable[[int, torch.Tensor], None]


@dataclass(frozen=True)
class GenerationSettings:
    """What determines an image besides model and prompt; the image of prompt i is seeded with ``seed + i``.

    Raises:
        InputError: no steps, a seed that torch does not take, or a guidance that is no finite number.
    """

    num_inference_steps: int = 50
    guidance_scale: float | None = None
    seed: int = 0
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        check_count("num_inference_steps", self.num_inference_steps)
        check_seed(self.seed)
        check_guidance(self.guidance_scale)

    def for_pipeline(self, pipeline: Any) -> GenerationSettings:
        """The same with both height and width where one is given.

        Raises:
            InputError: the pipeline does not tell the other one's default.
        """
        sides = {name: value for name, value in (("height", self.height), ("width", self.width)) if value is not None}
        return replace(self, **with_both_sides(pipeline, sides))

    def call_arguments(self) -> dict[str, Any]:
        """What is handed to the pipeline's call, None standing for the pipeline's own default."""
        given = {"guidance_scale": self.guidance_scale, "height": self.height, "width": self.width}
        return {name: value for name, value in given.items() if value is not None}


def default_guidance(pipeline: Any) -> float | None:
    """The guidance that the pipeline takes where none is given; None where its call has no such number."""
    parameter = inspect.signature(type(pipeline).__call__).parameters.get("guidance_scale")
    default = parameter.default if parameter is not None else None
    return float(default) if isinstance(default, int | float) else None


def paint(
    pipeline: Any,
    prompt: str,
    seed: int,
    settings: GenerationSettings,
    on_step: OnStep | None = None,
    on_flagged: Callable[[], None] | None = None,
) -> Any:
    """One PIL image.

    Args:
        on_step: called with (step index, latents (1, …)) after every sampler step.
        on_flagged: called if the pipeline's safety checker took offence, and so made the image black.

    Raises:
        InputError: the pipeline refuses the settings (a size or number of steps that it does not do).
        NonFiniteError: NaN or infinity in the latents or in the decoded image, of which the pipeline would make a
            black image; says where.
    """
    check_steps(pipeline, settings.num_inference_steps)
    arguments = settings.for_pipeline(pipeline).call_arguments()
    if _CALLBACK in inspect.signature(type(pipeline).__call__).parameters:
        arguments[_CALLBACK] = _callback(prompt, on_step)
    try:
        with torch.inference_mode(), _watching_decoder(pipeline, prompt):
            output = pipeline(
                prompt=prompt,
                num_inference_steps=settings.num_inference_steps,
                generator=torch.Generator().manual_seed(seed),
                **arguments,
            )
    except (TypeError, ValueError) as error:
        said = " ".join(str(error).split())[-300:]
        raise InputError(f"{type(pipeline).__name__} cannot paint with these settings: {said}") from error
    if on_flagged is not None and any(getattr(output, "nsfw_content_detected", None) or ()):
        on_flagged()
    return output.images[0]


def check_count(name: str, value: int) -> None:
    """Refuses what is no count; True and False, which Python takes for 1 and 0, are none.

    Raises:
        InputError: no integer, or below 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} is {value!r}; it must be an integer, at least 1.")


def check_seed(seed: int) -> None:
    """Refuses what torch cannot seed a generator with.

    Raises:
        InputError: no integer, or out of range.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed not in _SEEDS:
        raise InputError(f"seed is {seed!r}; it must be an integer from -2^63 to 2^63 - 1.")


def check_guidance(guidance_scale: float | None) -> None:
    """Refuses NaN and infinity, which pipelines take for "no guidance" or multiply with.

    Raises:
        InputError: it is no number, or not finite.
    """
    if guidance_scale is None:
        return
    is_number = isinstance(guidance_scale, int | float) and not isinstance(guidance_scale, bool)
    if not is_number or not math.isfinite(guidance_scale):
        raise InputError(f"guidance_scale is {guidance_scale!r}; it must be a finite number.")


def _callback(prompt: str, on_step: OnStep | None) -> Callable[..., dict[str, torch.Tensor]]:
    """What the pipeline calls after every step."""

    def callback(_: Any, step: int, __: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        latents = tensors["latents"]
        if not bool(torch.isfinite(latents).all()):
            raise NonFiniteError(
                f"The latents of the prompt {prompt[:80]!r} hold NaN or infinity after step {step + 1}: broken weights,"
                " or numbers too large for this dtype."
            )
        if on_step is not None:
            on_step(step, latents)
        return {}

    return callback


@contextmanager
def _watching_decoder(pipeline: Any, prompt: str) -> Iterator[None]:
    """Within it, a decoder that gives NaN or infinity is an error: pipelines turn that into a black image."""
    decoder = getattr(getattr(pipeline, "vae", None) or getattr(pipeline, "movq", None), "decoder", None)
    if not isinstance(decoder, nn.Module):
        yield
        return

    def look(module: nn.Module, _: Any, output: Any) -> None:
        found = output if isinstance(output, torch.Tensor) else output[0]
        if not bool(torch.isfinite(found).all()):
            raise NonFiniteError(
                f"The decoded image of the prompt {prompt[:80]!r} holds NaN or infinity: numbers too large for the VAE"
                f" in {found.dtype}, or broken weights; try --dtype bfloat16 or float32."
            )

    hook = decoder.register_forward_hook(look)
    try:
        yield
    finally:
        hook.remove()


def generate(
    pipeline: Any,
    prompts: Iterable[str],
    out: str | Path,
    settings: GenerationSettings | None = None,
    *,
    source: str = "",
    source_sha256: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
    on_step: Callable[[int, int, torch.Tensor], None] | None = None,
    warn: Callable[[str], object] = warnings.warn,
) -> list[Path]:
    """Paints every prompt to ``out/00000.png`` …, with ``manifest.jsonl`` (index, prompt, seed, file; ``"flagged":
    true`` if the pipeline's safety checker made the image black).

    A run that was interrupted goes on where it was when called again with the same arguments.

    Args:
        source: what made the pipeline, for the record; it tells whether the folder belongs to this run if there is no
            digest.
        source_sha256: of its content (`sources.content_sha256`), which tells that however its path is spelt.
        on_step: called with (prompt index, step index, latents) after every sampler step of an image painted now.
        warn: called with a sentence if images are black because of the safety checker.

    Raises:
        InputError: wrong prompts, the folder belongs to something else, or another command is writing to it.
        OutputError: an image could not be written; those before it stay.
    """
    settings = (settings or GenerationSettings()).for_pipeline(pipeline)
    prompts, folder = check_prompts(prompts), Path(out)
    with only_writer(folder, folder / _LOCK):
        _prepare(folder, pipeline, settings, {"source": source, "source_sha256": source_sha256})
        finished = _painted(pipeline, prompts, folder, settings, progress, on_step)
    flagged = [_name(index) for index in range(len(prompts)) if "flagged" in finished[index]]
    if flagged:
        warn(_black(flagged, len(prompts)))
    return [folder / _name(index) for index in range(len(prompts))]


def _painted(
    pipeline: Any,
    prompts: Sequence[str],
    folder: Path,
    settings: GenerationSettings,
    progress: Callable[[int, int], None],
    on_step: Callable[[int, int, torch.Tensor], None] | None,
) -> dict[int, dict[str, Any]]:
    """Paints what is missing in the folder; the entries of its manifest."""
    finished = _finished(folder, prompts, settings)
    for index, prompt in enumerate(prompts):
        if index not in finished:
            watch = None if on_step is None else _with_index(on_step, index)
            entry = _entry(index, prompt, settings)
            image = paint(pipeline, prompt, settings.seed + index, settings, watch, partial(entry.update, _FLAG))
            finished[index] = entry
            with output_errors(f"The image {folder / _name(index)}"):
                _save_image(image, folder / _name(index))
                _write_manifest(folder, finished)
        progress(index + 1, len(prompts))
    return finished


def _black(flagged: Sequence[str], total: int) -> str:
    names = ", ".join(flagged[:5]) + (", …" if len(flagged) > 5 else "")
    return (
        f"The pipeline's safety checker made {len(flagged)} of {total} images black ({names}); they are marked as"
        f" flagged in {MANIFEST}, and a folder without a safety checker paints them."
    )


def _with_index(on_step: Callable[[int, int, torch.Tensor], None], index: int) -> OnStep:
    return lambda step, latents: on_step(index, step, latents)


def _name(index: int) -> str:
    return f"{index:05d}.png"


def _entry(index: int, prompt: str, settings: GenerationSettings) -> dict[str, Any]:
    return {"index": index, "prompt": prompt, "seed": settings.seed + index, "file": _name(index)}


def _entries(index: int, prompt: str, settings: GenerationSettings) -> tuple[dict[str, Any], ...]:
    """What may stand in the manifest for this image."""
    entry = _entry(index, prompt, settings)
    return entry, {**entry, **_FLAG}


def _prepare(folder: Path, pipeline: Any, settings: GenerationSettings, source: Mapping[str, str]) -> None:
    """Makes the output folder, or sees that it is empty or begun by the same run."""
    given = settings.guidance_scale
    wanted = {
        **source,
        "scheduler": type(pipeline.scheduler).__name__,
        "scheduler_config": scheduler_config(pipeline),
        **_running(pipeline),
        **asdict(settings),
        "guidance_scale": default_guidance(pipeline) if given is None else given,
    }
    path = folder / SETTINGS
    if folder.is_file():
        raise InputError(f"{folder} is a file; choose another folder for the images.")
    if path.exists():
        stored = _read(path, path.read_text(encoding="utf-8", errors="replace"))
        compared = {*stored, *wanted} - ({"source"} if wanted["source_sha256"] else set())
        different = sorted(key for key in compared if stored.get(key) != wanted.get(key))
        if different:
            raise InputError(
                f"{folder} holds images of another run (it differs in: {', '.join(different)}); choose another folder."
            )
        return
    if folder.exists() and {entry.name for entry in folder.iterdir()} - {f"{SETTINGS}.part", _LOCK}:
        raise InputError(f"{folder} is not empty and holds no images of this program; choose another folder.")
    with output_errors(f"The folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(wanted, indent=2) + "\n")


def _running(pipeline: Any) -> dict[str, Any]:
    """What runs the denoiser on this machine, whatever was asked for: two kernels differ in last bits."""
    module = find_denoiser(pipeline).module
    device, dtype = place_of(module)
    kernels = {
        f"{layer.operation}, {bits} bits": select(layer.operation, device, bits, layer.features).name
        for _, layer in quantized_layers(module)
        for bits in sorted({*layer.input_num_bits.tolist()} - {0})
    }
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "device": device,
        "kernels": kernels,
        "attention": running_attention(module),
    }


def _read(path: Path, text: str) -> dict[str, Any]:
    """A JSON object out of one of this module's files."""
    try:
        return dict(parse_json(text))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged; delete it, or choose another folder.") from error


def _finished(folder: Path, prompts: Sequence[str], settings: GenerationSettings) -> dict[int, dict[str, Any]]:
    """Entries of the manifest whose image is there and whose prompt is still the same."""
    path = folder / MANIFEST
    if not path.exists():
        return {}
    entries = {}
    # Not splitlines: it also splits at characters like U+2028, which JSON leaves in a prompt as they are.
    for line in path.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n"):
        entry = _read(path, line)
        index = entry.get("index")
        if not isinstance(index, int) or not isinstance(entry.get("file"), str):
            raise InputError(f"{path} is damaged; delete it, or choose another folder.")
        if index < len(prompts) and entry not in _entries(index, prompts[index], settings):
            raise InputError(f"{folder} holds an image of another prompt at index {index}; choose another folder.")
        if (folder / entry["file"]).exists():
            entries[index] = entry
    return entries


def _write_manifest(folder: Path, entries: dict[int, dict[str, Any]]) -> None:
    lines = [json.dumps(entries[index], ensure_ascii=False) for index in sorted(entries)]
    write_atomically(folder / MANIFEST, "\n".join(lines) + "\n")


def _save_image(image: Image.Image, path: Path) -> None:
    data = io.BytesIO()
    image.save(data, format="PNG")
    write_atomically(path, data.getvalue())
