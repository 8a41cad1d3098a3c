"""Options that several commands have, spelt once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halftone.cli.console import say

if TYPE_CHECKING:
    import torch

Source = Annotated[str, typer.Argument(metavar="SOURCE", help="A diffusers folder, a hub id, or bundled:NAME.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where the result goes: a folder that is new or empty.")]
Prompts = Annotated[
    str, typer.Option("--prompts", help="A text file with a prompt a line, JSONL, CSV, or bundled:NAME.")
]
NumPrompts = Annotated[int | None, typer.Option("--num-prompts", min=1, help="Take only so many of the prompts.")]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Sampler steps.")]
Guidance = Annotated[
    float | None, typer.Option("--guidance", help="Classifier-free guidance; the pipeline's default if not given.")
]
Scheduler = Annotated[str | None, typer.Option("--scheduler", help="Another sampler: DDIM, PNDM, DPMSolverMultistep …")]
Seed = Annotated[int, typer.Option("--seed", help="Prompt i starts from the noise of seed + i.")]
Height = Annotated[int | None, typer.Option("--height", min=8, help="Pixels; the pipeline's default if not given.")]
Width = Annotated[int | None, typer.Option("--width", min=8, help="Pixels; the pipeline's default if not given.")]
Dtype = Annotated[
    str, typer.Option("--dtype", help="float32, bfloat16 or float16: of everything that is not quantized.")
]
DtypeOrRecorded = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help="float32, bfloat16 or float16: of everything that is not quantized. If not given, that of an artifact's"
        " calibration, else float32.",
    ),
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda …; not mps, which has no float64.")]
Attention = Annotated[
    str | None,
    typer.Option("--attention", help="float, bfloat16, int8 or auto: what attention rounds to on a CPU."),
]
Features = Annotated[
    list[str] | None, typer.Option("--features", help="clip, inception or dinov2, with :SOURCE; can be repeated.")
]
Clip = Annotated[
    str | None, typer.Option("--clip", help="CLIPModel of the scores: folder, hub id, bundled:NAME or none.")
]
Cache = Annotated[
    Path | None, typer.Option("--cache", help="Where the reference's images are kept for later benchmarks.")
]
AsJson = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout, nothing else there.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and which kernels run.")]


def parse_dtype(name: str) -> torch.dtype:
    """The torch dtype of that name.

    Raises:
        InputError: it is none of the three.
    """
    import torch

    from halftone.errors import InputError, suggest

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise InputError(f"{name!r} is no dtype to run in; {suggest(name, known)}")
    return known[name]


def dtype_of(source: str, given: str | None) -> str:
    """The name of the dtype to run a source in."""
    from halftone.artifact.load import recorded_dtype
    from halftone.sources import resolve_folder

    if given is not None:
        return given
    recorded = recorded_dtype(resolve_folder(source))
    return str(recorded).removeprefix("torch.") if recorded is not None else "float32"


def parse_device(name: str) -> torch.device:
    """The torch device of that name, if this machine has it.

    Raises:
        InputError: it is no device, not here, or one that Halftone does not run on.
    """
    import torch

    from halftone.errors import InputError
    from halftone.kernels import check_device

    if name == "cuda":  # under torchrun or accelerate launch every process has an accelerator of its own
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = torch.device(name)
        check_device(device.type)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = " ".join(str(error).split())[:200]
        raise InputError(f"The device {name!r} cannot be used here: {first}") from error
    if device.type == "meta":
        raise InputError("The device 'meta' holds no numbers; choose one that computes, such as 'cpu'.")
    return device


def open_source(source: str, dtype: str, device: str, scheduler: str | None, attention: str | None = None) -> Any:
    """The pipeline of a source, set up as the options say; an artifact's files are checked first."""
    from halftone.artifact.manifest import MANIFEST, check_files
    from halftone.attention import kept_words, use_attention
    from halftone.denoiser import find_denoiser
    from halftone.schedulers import use_scheduler
    from halftone.sources import open_pipeline, resolve_folder

    folder, numbers, place = resolve_folder(source), parse_dtype(dtype), parse_device(device)
    if (folder / MANIFEST).is_file():
        check_files(folder)
    pipeline = open_pipeline(source, dtype=numbers, device=place, progress_bar=False)
    if scheduler is not None:
        use_scheduler(pipeline, scheduler)
    if attention is not None:
        kept = use_attention(find_denoiser(pipeline).module, attention)
        if words := kept_words(attention, kept):
            say(f"Note: {words}")
    return pipeline


def image_size(height: int | None, width: int | None) -> dict[str, int]:
    """Height and width as arguments of a pipeline's call, those that were given."""
    return {name: value for name, value in (("height", height), ("width", width)) if value is not None}
