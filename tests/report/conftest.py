import numpy as np
import pytest
from PIL import Image

from halftone.qdiffbench.fidelity import psnr, ssim
from halftone.qdiffbench.intervals import Estimate, bootstrap_mean
from halftone.report.data import (
    ActivationRange,
    ComparisonReport,
    Fidelity,
    LeftOutLayer,
    Pair,
    Quantization,
    Settings,
    Sizes,
    StepError,
    Timing,
)

PROMPTS = ['a "quoted" <script>alert(1)</script> & <b>bold</b>', "a 🦊 and it's snow", "{{ 7 * 7 }}", "plain"]
TIMESTEPS = (951.0, 701.0, 451.0, 201.0, 1.0)


def make_pairs(folder, count=8, side=16):
    generator = np.random.default_rng(0)
    pairs = []
    for index in range(count):
        reference = generator.integers(20, 230, (side, side, 3)).astype(np.uint8)
        candidate = (reference + generator.integers(0, 3 + index, reference.shape)).astype(np.uint8)
        names = f"{index:03d}-reference.png", f"{index:03d}-candidate.png"
        Image.fromarray(reference).save(folder / names[0])
        Image.fromarray(candidate).save(folder / names[1])
        similarity = ssim(candidate, reference)
        pairs.append(
            Pair(
                index=index,
                prompt=PROMPTS[index % len(PROMPTS)],
                seed=index,
                reference=names[0],
                candidate=names[1],
                psnr=psnr(candidate, reference),
                ssim=similarity,
            )
        )
    return tuple(pairs)


@pytest.fixture
def report(tmp_path):
    pairs = make_pairs(tmp_path)
    return ComparisonReport(
        title="Shapes & <i>things</i>",
        created="2026-01-05T12:30:11+00:00",
        environment={"torch": "2.9.0", "threads": 2},
        settings=Settings(
            source="bundled:shapes",
            recipe="pcr-w8a8",
            scheduler="DDIM",
            num_inference_steps=5,
            guidance_scale=4.0,
            seed=0,
            calibration_prompts=16,
            evaluation_prompts=len(pairs),
            commands=("halftone demo --prompt 'a <b>'",),
        ),
        quantization=Quantization(
            layers_quantized=12,
            layers_left_out=(LeftOutLayer(name="conv_in", reason="first <convolution>"),),
            weight_bits=8,
            average_activation_bits=8.4,
            slot_timesteps=TIMESTEPS,
            slot_bits=(8, 8, 8, 8, 10),
            denoiser_passes_per_prompt=10,
            calibration_seconds=12.5,
        ),
        sizes=Sizes(full_precision_bytes=44_000_000, quantized_bytes=11_000_000),
        timings=(
            Timing(name="float32", seconds_per_image=0.6, role="reference"),
            Timing(name="int8", seconds_per_image=0.9, role="candidate"),
        ),
        fidelity=Fidelity(
            psnr=bootstrap_mean([p.psnr for p in pairs]),
            ssim=bootstrap_mean([p.ssim for p in pairs]),
            latent_error=tuple(StepError(timestep=t, error=Estimate(0.01, 0.005, 0.02, 8)) for t in TIMESTEPS),
        ),
        pairs=pairs,
        activation_ranges={
            'mid <"block">': tuple(ActivationRange(timestep=t, low=-t / 100, high=1.0) for t in TIMESTEPS),
            "steady": tuple(ActivationRange(timestep=t, low=-1.0, high=1.0) for t in TIMESTEPS),
        },
    )
