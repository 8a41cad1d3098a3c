"""From a benchmark's outcome to what the page shows: which pairs, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from halftone.qdiffbench.bench import BenchOutcome
from halftone.report.page_input import ActivationRange, PageInput, Picture, QuantizationFacts

FIRST_PAIRS = 64
WORST_PAIRS = 10


def page_of(
    outcome: BenchOutcome,
    title: str,
    activation_ranges: Mapping[str, Sequence[ActivationRange]] | None = None,
    quantization: QuantizationFacts | None = None,
) -> PageInput:
    """The page of an outcome: of each candidate and set the first pairs, chosen by nothing, and the worst ones."""
    return PageInput(
        title=title,
        results=outcome.results,
        pictures=list(_pictures(outcome)),
        psnr_values={key: one.values["psnr"].tolist() for key, one in outcome.measured.items()},
        activation_ranges=activation_ranges or {},
        quantization=quantization,
    )


def _pictures(outcome: BenchOutcome) -> Iterator[Picture]:
    for (candidate, set_name), pairs in outcome.pairs.items():
        measured, prompts = outcome.measured[candidate, set_name], outcome.prompts[set_name].prompts
        values = measured.values
        worst = sorted(range(len(pairs)), key=lambda i: (values["psnr"][i], i))[:WORST_PAIRS]
        for index in sorted({*range(min(FIRST_PAIRS, len(pairs))), *worst}):
            yield Picture(
                set_name=set_name,
                candidate=candidate,
                index=index,
                prompt=prompts[index],
                seed=measured.seeds[index] if measured.seeds else None,
                reference=pairs[index][0],
                image=pairs[index][1],
                psnr=float(values["psnr"][index]),
                ssim=float(values["ssim"][index]),
            )
