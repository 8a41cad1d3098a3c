"""Writes what was measured of the noisy model prompt by prompt: ``python -m benchmarks.qdiffbench.columns WORK FILE``.

Used by the study itself, after the same comparison was run by `halftone bench`: its images and features are read.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.qdiffbench.coverage import write_columns
from benchmarks.qdiffbench.settings import Study, noisy_name
from halftone.cli.console import progress
from halftone.generation import GenerationSettings
from halftone.qdiffbench.bench import BenchRequest, bench


def main(work: Path, path: Path) -> None:
    """Runs the comparison, of which only the measuring is left, and keeps what results.json leaves out."""
    study = Study.reopened(work)
    settings, name = study.settings, study.settings.coverage_set
    request = BenchRequest(
        reference=settings.source,
        candidates=(study.candidate(settings.coverage_sigma),),
        prompt_sets={name: settings.prompts[name]},
        out=study.out,
        settings=GenerationSettings(settings.steps, settings.guidance, settings.seed),
        cache=study.cache,
        num_images=settings.num_images,
        features=(f"clip:{settings.clip}",),
        clip=settings.clip,
        noise_floor=(),
    )
    outcome = bench(request, progress)
    assert outcome is not None
    part = path.with_name(f"{path.name}.part")
    write_columns(outcome.measured[noisy_name(settings.coverage_sigma), name], part)
    os.replace(part, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
