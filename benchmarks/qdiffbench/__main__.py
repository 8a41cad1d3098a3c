"""Does QDiffBench tell the truth? Its numbers on images of which the answer is known.

    python -m benchmarks.qdiffbench --work runs/qdiffbench --out docs/qdiffbench-study

1. Full precision against itself on both prompt sets (FID to 0, PSNR to its cap), killed ten times on its way, then
   measured again from its images: the same numbers, no image painted twice. Peak memory of all of it.
2. A model with noise on its weights on the first set, undisturbed: time and peak memory of one comparison.
3. Models with growing noise on both sets: every metric must put them in order.
4. Samples of the first set's prompts: how often the benchmark's 95 % intervals hold the large-sample value.

Leaves study.json, study.md and study.png in --out. Interrupted or killed, the same command goes on where it was; what
is painted or measured is never done twice.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.qdiffbench import parts
from benchmarks.qdiffbench.page import draw, markdown
from benchmarks.qdiffbench.settings import Study, StudySettings
from benchmarks.qdiffbench.verdicts import criteria
from halftone.cli.console import quiet_libraries
from halftone.errors import HalftoneError
from halftone.files import write_atomically
from halftone.qdiffbench.model_folders import folder_sha256, resolve_model
from halftone.sources import content_sha256

DURATION = """
On two free cores it takes about two and a half hours: 13,824 images of bundled:mini-sd at 20 steps are 1.06 s of a core
each (2.0 h in two processes; --estimate measures that here), 200 samples of 1,536 prompts 5.5 s each (0.3 h).
"""


def main() -> None:
    """Command line; exits with 2 and a sentence where something is wrong, with 1 where a criterion does not hold."""
    args = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the comparison in progress is stopped too
    quiet_libraries()
    try:
        settings = _settings(args)
        if args.estimate:
            print(estimate(settings))
            return
        result = run_study(Study(settings, args.work.absolute()), _say)
    except HalftoneError as error:
        print(f"benchmarks.qdiffbench: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out / "study.json", json.dumps(result, indent=1) + "\n")
    text = markdown(result, shlex.join(["python", "-m", "benchmarks.qdiffbench", *sys.argv[1:]]))
    write_atomically(args.out / "study.md", text)
    draw(result, args.out / "study.png")
    print(text)
    sys.exit(not all(one["holds"] for one in result["criteria"]))


def run_study(study: Study, say: Callable[[str], None]) -> dict[str, Any]:
    """All parts, those that an earlier run has finished being read."""
    settings = study.settings
    contents = {"source": content_sha256(settings.source), "clip": folder_sha256(resolve_model(settings.clip))}
    study.claim(contents)
    makers = {
        "itself": parts.itself,
        "undisturbed": parts.undisturbed,
        "coverage": parts.coverage,
        "ranking": parts.ranking,
    }
    done = {name: parts.kept(study, name, partial(make, study, say)) for name, make in makers.items()}
    return {
        "settings": asdict(settings),
        "contents": contents,
        "criteria": criteria(done, settings.kills),
        "parts": done,
    }


def estimate(settings: StudySettings, images: int = 4) -> str:
    """What painting takes, from a few images on one thread of this process."""
    import torch

    from halftone.generation import GenerationSettings, paint
    from halftone.prompts import read_prompts
    from halftone.sources import open_pipeline

    torch.set_num_threads(1)
    pipeline = open_pipeline(settings.source, progress_bar=False)
    prompts = read_prompts(settings.prompts[settings.coverage_set], images)
    how = GenerationSettings(settings.steps, settings.guidance, settings.seed)
    paint(pipeline, prompts[0], 0, how)
    started = time.process_time()  # not of the wall: other programs may be busy while this one measures
    for seed, prompt in enumerate(prompts):
        paint(pipeline, prompt, seed, how)
    each = (time.process_time() - started) / images
    count, workers = settings.images_to_paint, settings.processes
    return (
        f"{count} images to paint, {each:.2f} s of a core each, measured on {images}: about"
        f" {count * each / workers / 3600:.1f} h in {workers} processes with a free core for each."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.qdiffbench",
        description=f"{__doc__}{DURATION}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, default=Path("runs/qdiffbench"), help="images and finished parts")
    parser.add_argument("--out", type=Path, default=Path("docs/qdiffbench-study"))
    parser.add_argument("--source", default="bundled:mini-sd")
    parser.add_argument("--clip", default="bundled:mini-clip")
    parser.add_argument("--in-domain", default="bundled:scenes")
    parser.add_argument("--out-of-domain", default="bundled:styled")
    parser.add_argument("--num-images", type=int, default=2048, help="of each set (1), and of the first set (2, 4)")
    parser.add_argument("--rank-images", type=int, default=512, help="of each set and noisy model (3)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--sigmas", default="0.01,0.02,0.04,0.08", help="relative noise on the weights")
    parser.add_argument("--coverage-sigma", type=float, default=0.02, help="the model of (2) and (4)")
    parser.add_argument("--sample", type=int, help="prompts of a sample (4); three quarters of --num-images")
    parser.add_argument("--trials", type=int, default=200, help="samples (4)")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="one thread each")
    parser.add_argument("--estimate", action="store_true", help="only say how long it will take")
    return parser


def _settings(args: argparse.Namespace) -> StudySettings:
    return StudySettings(
        source=args.source,
        clip=args.clip,
        prompts={"in-domain": args.in_domain, "out-of-domain": args.out_of_domain},
        num_images=args.num_images,
        rank_images=args.rank_images,
        steps=args.steps,
        guidance=args.guidance,
        sigmas=tuple(float(one) for one in args.sigmas.split(",")),
        coverage_sigma=args.coverage_sigma,
        sample=args.sample or 3 * args.num_images // 4,
        trials=args.trials,
        kills=args.kills,
        processes=args.processes,
    )


def _say(sentence: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {sentence}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
