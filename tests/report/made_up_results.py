"""Made-up but plausible results and pictures, for the report's tests and for looking at its pages."""

import numpy as np
from PIL import Image

from halftone.qdiffbench.directions import higher_is_better
from halftone.qdiffbench.intervals import summarize
from halftone.qdiffbench.results import (
    Candidate,
    Comparison,
    Environment,
    Gap,
    KernelUse,
    Model,
    NoiseFloor,
    PromptSetFacts,
    Results,
    Seconds,
    Settings,
)
from halftone.qdiffbench.set_results import Mean, SetResult, StepDrift, Summary, WorstPair
from halftone.report import Picture

PROMPTS = ['a "quoted" <script>alert(1)</script> & <b>bold</b>', "a 🦊 and it's snow", "{{ 7 * 7 }}", "plain $x^2$"]
TIMESTEPS = (951.0, 701.0, 451.0, 201.0, 1.0)
BITS = (8, 8, 8, 8, 10)


def values(center, spread, n, seed, low=-1e9, high=1e9):
    return np.clip(np.random.default_rng(seed).normal(center, spread, n), low, high)


def summary(array, higher):
    return Summary.of(summarize(array, higher_is_better=higher, resamples=200))


def set_result(psnr, ssim, n=40, seed=0, optional=True, steps=5, fid=None):
    """A set's result around the given means; ``optional`` False leaves out all that may be absent."""
    error = 10 ** (-psnr / 20)
    fid = 20 * error if fid is None else fid
    more = {}
    if optional:
        more = {
            "fid_to_fp_unbiased": 0.6 * fid,
            "fid_to_fp_ci95": (0.4 * fid, 0.8 * fid),
            "kid_to_fp_ci95": (0.0001 * fid, 0.0005 * fid),
            "clip_score_difference": Mean(mean=-4 * error, ci95=(-6 * error, -2 * error), n=n),
            "attribute_accuracy": max(0.0, 0.95 - error),
            "attribute_accuracy_reference": 0.96,
            "lpips": summary(values(error, error / 5, n, seed + 2, 0), False),
            "latent_error": summary(values(2 * error, error / 3, n, seed + 3, 0), False),
            "drift": tuple(
                StepDrift(step=i, latent_error=summary(values(2 * error * share, error / 4 * share, n, i, 0), False))
                for i, share in enumerate(np.linspace(0.15, 1.0, steps) ** 1.4)
            ),
            "worst_pairs": tuple(
                WorstPair(index=i, prompt=PROMPTS[i % 4], seed=i, psnr=psnr - 6 + i / 10) for i in (5, 3, 7)
            ),
        }
    return SetResult(
        n=n,
        fid_to_fp=fid,
        kid_to_fp=0.0003 * fid,
        clip_score=31.2 - 4 * error,
        clip_score_reference=31.2,
        psnr=summary(values(psnr, 2.0, n, seed, 5, 100), True),
        ssim=summary(values(ssim, (1 - ssim) / 3, n, seed + 1, -1, 1), True),
        **more,
    )


def candidate(name, quality, bits, sets, seconds=0.5, optional=True, bits_of_slots=BITS, steps=5):
    psnr, ssim = quality
    results = {
        set_name: set_result(psnr - 2 * i, ssim - 0.02 * i, seed=i, optional=optional, steps=steps)
        for i, set_name in enumerate(sets)
    }
    more = {}
    if optional:
        more = {
            "dtype": "float32",
            "size_bytes": 11_400_000 * bits // 8,
            "avg_weight_bits": float(bits),
            "avg_activation_bits": sum(bits_of_slots) / len(bits_of_slots),
            "seconds_per_image": Seconds(median=seconds, low=0.9 * seconds, high=1.15 * seconds, n=12),
            "peak_memory_bytes": 410_000_000,
            "kernels": tuple(
                KernelUse(timestep=t, activation_bits=b, kernel="reference", execution="integer", layers=129)
                for t, b in zip(np.linspace(951, 1, len(bits_of_slots)), map(float, bits_of_slots), strict=True)
            ),
        }
    return Candidate(name=name, source=f"./{name}", sets=results, gaps=gaps(results), **more)


def gaps(results):
    first, *others = results
    return tuple(
        Gap(
            metric=metric,
            from_set=first,
            to_set=other,
            difference=getattr(results[other], metric).mean - getattr(results[first], metric).mean,
        )
        for other in others
        for metric in ("psnr", "ssim")
    )


def comparison(set_name, metric, a, b, p_value, difference):
    higher = higher_is_better(metric)
    if p_value >= 0.05:
        verdict = f"{a} and {b}: not distinguishable, p = {p_value:.2f}"
    else:
        winner, loser = (a, b) if (difference > 0) == higher else (b, a)
        verdict = f"{winner} better than {loser}, p < 0.01"
    ends = (difference - 0.5, difference + 0.5)
    return Comparison(
        set=set_name, metric=metric, a=a, b=b, difference=difference, ci95=ends, p_value=p_value, n=40, verdict=verdict
    )


def results_of(candidates, sets, floors=True, comparisons=(), warnings=(), commands=("halftone bench a b",)):
    kinds = [("float64", "dtype", 62.0, 0.9999), ("seed + 1000", "seed", 11.0, 0.22)] if floors else []
    return Results(
        environment=Environment(
            versions={"python": "3.11.2", "halftone": "0.1.0", "torch": "2.13.0"},
            platform="Linux x86_64",
            processor="Some CPU <fast>",
            threads=2,
            git_hash="0123abc",
            created="2026-01-05T12:30:11+00:00",
        ),
        settings=Settings(
            scheduler="PNDMScheduler",
            num_inference_steps=5,
            guidance_scale=4.0,
            seed=0,
            width=64,
            height=64,
            prompt_sets={name: PromptSetFacts(source=f"bundled:{name}", sha256="0" * 64, n=40) for name in sets},
            features="clip:bundled:mini-clip@sha256:0011",
            clip="bundled:mini-clip@sha256:0011",
            commands=commands,
        ),
        reference=Model(
            name="fp32",
            source="bundled:mini-sd",
            dtype="float32",
            size_bytes=44_000_000,
            seconds_per_image=Seconds(median=0.42, low=0.4, high=0.47, n=12),
            peak_memory_bytes=400_000_000,
        ),
        candidates=tuple(candidates),
        noise_floor=tuple(
            NoiseFloor(name=name, kind=kind, sets={s: set_result(psnr, ssim) for s in sets})
            for name, kind, psnr, ssim in kinds
        ),
        comparisons=tuple(comparisons),
        warnings=tuple(warnings),
    )


def pictures_of(folder, names, sets, indices=range(8), side=16):
    generator = np.random.default_rng(0)
    pictures = []
    for set_name in sets:
        for index in indices:
            reference = generator.integers(20, 230, (side, side, 3)).astype(np.uint8)
            original = folder / f"{set_name}-{index}.png"
            Image.fromarray(reference).save(original)
            for place, name in enumerate(names):
                noisy = reference + generator.integers(0, 3 + index + 4 * place, reference.shape)
                path = folder / f"{set_name}-{name}-{index}.png"
                Image.fromarray(noisy.astype(np.uint8)).save(path)
                pictures.append(
                    Picture(
                        set_name=set_name,
                        candidate=name,
                        index=index,
                        prompt=PROMPTS[index % len(PROMPTS)],
                        seed=index,
                        reference=original,
                        image=path,
                        psnr=38.0 - index - place,
                        ssim=0.97,
                    )
                )
    return pictures
