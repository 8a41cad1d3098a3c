import pytest
from made_up_results import BITS, TIMESTEPS, candidate, comparison, pictures_of, results_of, values

from halftone.report import ActivationRange, PageInput, QuantizationFacts


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """One candidate on one set, as the demo has it."""
    only = candidate("pcr-w8a8", (36.0, 0.97), 8, ["in-domain"])
    return PageInput(
        title="Shapes & <i>things</i>",
        results=results_of([only], ["in-domain"], warnings=["40 images are <few>."]),
        pictures=pictures_of(tmp_path_factory.mktemp("small"), ["pcr-w8a8"], ["in-domain"]),
        psnr_values={("pcr-w8a8", "in-domain"): list(values(36, 2, 40, 0))},
        activation_ranges={
            'mid <"block">': [ActivationRange(t, -t / 100, 1.0) for t in TIMESTEPS],
            "steady": [ActivationRange(t, -1.0, 1.0) for t in TIMESTEPS],
        },
        quantization=QuantizationFacts(
            weight_bits=8,
            slot_timesteps=TIMESTEPS,
            slot_bits=BITS,
            layers_quantized=12,
            left_out={"conv_in": "first <convolution>"},
            denoiser_passes_per_prompt=10,
            calibration_seconds=12.5,
            calibration_prompts=16,
            recipe="pcr-w8a8",
            commands=("halftone demo --prompt 'a <b>'",),
        ),
    )


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """Three candidates on two sets."""
    names, sets = ["w4a8", "pcr-w8a8", "minmax-w8a8"], ["in-domain", "out-of-domain"]
    three = [
        candidate(names[0], (21.0, 0.7), 4, sets, seconds=0.5),
        candidate(names[1], (36.0, 0.98), 8, sets, seconds=0.55),
        candidate(names[2], (29.0, 0.91), 8, sets, seconds=0.52, bits_of_slots=(8, 8, 8, 8, 8)),
    ]
    compared = [
        comparison(s, metric, "pcr-w8a8", "minmax-w8a8", p, difference)
        for s in sets
        for metric, p, difference in (("psnr", 0.0004, 7.0), ("latent_error", 0.004, -0.1), ("clip_score", 0.31, 0.1))
    ]
    return PageInput(
        title="Three recipes",
        results=results_of(three, sets, comparisons=compared),
        pictures=pictures_of(tmp_path_factory.mktemp("large"), names, sets),
        psnr_values={(n, s): list(values(30, 2, 40, i)) for i, n in enumerate(names) for s in sets},
    )
