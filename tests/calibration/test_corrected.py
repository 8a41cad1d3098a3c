"""Output corrections in the lockstep: exact where the error is affine, counted, resumed, led back to the right path."""

import pytest
import torch
from pipelines import BUILDERS, denoiser_of, tiny_sd, tiny_sd3

import halftone
from halftone.artifact.config import quantized_digest
from halftone.calibration import CalibrationSettings, run
from halftone.calibration.lockstep import ProgressiveLockstep
from halftone.calibration.pipeline_call import call_pipeline
from halftone.schedulers import use_scheduler

PROMPTS = ("a red cube", "a blue ball")
KINDS = ("bias", "gain_bias", "drift")
GUIDANCE = 4.0


def _recipe(kind, weights=None, bits=8, **options):
    return halftone.Recipe.from_dict(
        {
            "weights": weights or {"num_bits": 8},
            "activations": {"num_bits": bits},
            "correction": {"kind": kind, **options},
        }
    )


def _pipeline(scheduler=None, build=tiny_sd):
    if scheduler == "PNDM":
        return tiny_sd(scheduler="pndm")
    pipeline = build()
    if scheduler is not None:
        use_scheduler(pipeline, scheduler)
    return pipeline


def _quantize(recipe, pipeline=None, steps=3, folder=None, **arguments):
    return halftone.quantize(
        pipeline or tiny_sd(),
        recipe,
        PROMPTS,
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        checkpoint_folder=folder,
        **arguments,
    )


def _latents(pipeline, steps=3):
    return call_pipeline(pipeline, CalibrationSettings(PROMPTS, steps, GUIDANCE), PROMPTS)


@pytest.fixture
def last_latents(monkeypatch):
    """What the calls of the pipeline in `quantize` end in."""
    found, call = [], run.call_pipeline

    def noting(*args):
        found.append(call(*args))
        return found[-1]

    monkeypatch.setattr(run, "call_pipeline", noting)
    return found


def _affine_error(monkeypatch, build, gain, bias, noise=0.0):
    """Makes the quantized model's output gain * (full precision) + bias, of each channel, and noise."""
    full, measured = denoiser_of(build()), ProgressiveLockstep.run_call
    scale, shift = (torch.tensor(values).view(1, -1, 1, 1) for values in (gain, bias))
    generator = torch.Generator().manual_seed(3)

    def run_call(self, slot, label, args, kwargs):
        measured(self, slot, label, args, kwargs)
        output = full(*args, **kwargs)[0]
        return (scale * output + shift + noise * torch.randn(output.shape, generator=generator),)

    monkeypatch.setattr(ProgressiveLockstep, "run_call", run_call)


@pytest.mark.parametrize("build", [tiny_sd, tiny_sd3])
@pytest.mark.parametrize("kind, gain", [("bias", [1.0] * 4), ("gain_bias", [0.8, 1.25, 1.0, 1.6]), ("drift", None)])
def test_error_that_is_affine_is_corrected_exactly(kind, gain, build, monkeypatch, last_latents):
    gain, bias = gain or [0.8, 1.25, 1.0, 1.6], [0.1, -0.2, 0.0, 0.5]
    expected = _latents(build())
    _affine_error(monkeypatch, build, gain, bias)
    correction = denoiser_of(_quantize(_recipe(kind), build()).pipeline).output_correction
    torch.testing.assert_close(last_latents[-1], expected, rtol=1e-3, atol=1e-3)
    inverse = 1 / torch.tensor(gain)
    torch.testing.assert_close(correction.output_gain, inverse.expand(3, 4), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(
        correction.output_bias, (-inverse * torch.tensor(bias)).expand(3, 4), rtol=5e-3, atol=5e-3
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BUILDERS)
def test_calibrated_trajectory_is_the_one_that_is_executed(kind, name, last_latents):
    """Bit for bit: all prompts are one micro-batch here, and no timestep repeats."""
    result = _quantize(_recipe(kind), BUILDERS[name]())
    assert torch.equal(_latents(result.pipeline), last_latents[-1])


@pytest.mark.parametrize("kind", ["bias", "drift"])
def test_split_convolutions_are_corrected_too(kind, last_latents):
    """Their halves take turns with those in floating point."""
    recipe = halftone.Recipe.from_dict({**_recipe(kind).to_dict(), "split_shortcuts": True})
    result = _quantize(recipe)
    assert result.config.splits and torch.equal(_latents(result.pipeline), last_latents[-1])


@pytest.mark.parametrize("kind", ["gain_bias", "drift"])
def test_the_largest_gain_is_that_of_the_recipe(kind, monkeypatch):
    _affine_error(monkeypatch, tiny_sd, [0.5, 0.5, 2.0, 2.0], [0.0] * 4)
    for largest, expected in ((1.0, [1.0] * 4), (1.5, [1.5, 1.5, 1 / 1.5, 1 / 1.5])):
        correction = denoiser_of(_quantize(_recipe(kind, max_gain=largest)).pipeline).output_correction
        torch.testing.assert_close(correction.output_gain[0], torch.tensor(expected))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 2])
def test_micro_batches_and_no_guidance_are_corrected_too(kind, batch, monkeypatch):
    """The bias that was added is taken off; without guidance there is one half."""
    bias = torch.tensor([0.1, -0.2, 0.0, 0.5])
    _affine_error(monkeypatch, tiny_sd, [1.0] * 4, bias.tolist())
    pipeline = tiny_sd()
    halftone.quantize(pipeline, _recipe(kind), PROMPTS, num_inference_steps=3, guidance_scale=1.0, batch_size=batch)
    correction = pipeline.unet.output_correction
    torch.testing.assert_close(correction.output_bias, -bias.expand(3, 4), rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("kind, passes", [("none", 2), ("bias", 3), ("gain_bias", 3), ("drift", 3)])
def test_passes_are_counted(kind, passes):
    pipeline, rows = tiny_sd(), []
    pipeline.unet.conv_in.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    told = []
    result = _quantize(_recipe(kind), pipeline, progress=lambda done, total: told.append((done, total)))
    assert result.config.calibration["denoiser_passes_per_prompt"] == passes * 3 == sum(rows) / 4
    total = 6 if kind == "drift" else 3
    assert told == [(done, total) for done in range(1, total + 1)]


def test_trajectory_of_the_rounding_rule_serves_the_drift_correction_too():
    weights = {"num_bits": 4, "rounding": "gptq", "rounding_options": {"num_samples": 4}}
    pipeline, rows = tiny_sd(), []
    pipeline.unet.conv_in.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    result = _quantize(_recipe("drift", weights), pipeline)
    assert result.calibration.denoiser_passes_per_prompt == 2 * 3
    record = result.config.calibration
    assert record["denoiser_passes_per_prompt"] == pytest.approx(sum(rows) / 4)


SAMPLERS = (None, "EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "UniPCMultistep", "PNDM")


@pytest.mark.parametrize("scheduler", SAMPLERS)
@pytest.mark.parametrize("gain", ["unbiased", "least_squares"])
def test_drift_correction_finds_an_affine_error_within_noise(scheduler, gain, monkeypatch, last_latents):
    """Whatever the sampler makes of a prediction: one step, several, noise of its own, a timestep twice."""
    expected = _latents(_pipeline(scheduler))
    _affine_error(monkeypatch, tiny_sd, [0.8, 1.25, 1.0, 1.2], [0.1, -0.2, 0.0, 0.3], noise=0.01)
    distances = []
    for kind, options in (("none", {}), ("drift", {"gain": gain})):
        _quantize(_recipe(kind, **options), _pipeline(scheduler))
        distances.append(float((last_latents[-1] - expected).norm()))
    assert distances[1] < 0.5 * distances[0]


@pytest.mark.parametrize("scheduler", [None, "EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep"])
def test_drift_correction_ends_nearer_to_full_precision(scheduler):
    """Least squares, whose aim that is; of a model at 4 bits, so that much is to be corrected."""
    expected = _latents(_pipeline(scheduler), 4)
    distances = []
    for kind, options in (("none", {}), ("drift", {"gain": "least_squares"})):
        result = _quantize(_recipe(kind, {"num_bits": 4}, 6, **options), _pipeline(scheduler), 4)
        distances.append(float((_latents(result.pipeline, 4) - expected).norm()))
    assert distances[1] < distances[0]


@pytest.mark.parametrize("kind", ["bias", "drift"])
def test_bias_makes_means_meet(kind, last_latents):
    """Of the prediction at the same input, and of the last latents (up to the slot of a repeated timestep)."""
    expected = _latents(tiny_sd())
    plain = _quantize(_recipe("none", {"num_bits": 4}))
    corrected = _quantize(_recipe(kind, {"num_bits": 4}))
    means = [_latents(result.pipeline).mean((0, 2, 3)) for result in (plain, corrected)]
    errors = [(mean - expected.mean((0, 2, 3))).abs().max() for mean in means]
    assert errors[1] < errors[0]
    if kind == "drift":
        assert errors[1] < 1e-5


def test_no_correction_is_what_it_was():
    plain, none = _quantize(_recipe("none")), _quantize("pcr-no-relax-w8a8")
    assert not hasattr(plain.pipeline.unet, "output_correction")
    assert quantized_digest(plain.pipeline.unet) == quantized_digest(none.pipeline.unet)
    assert plain.config.to_dict()["format_version"] == 3 and "correction" not in plain.config.calibration


class _Interrupt(Exception):
    pass


@pytest.mark.parametrize("kind, stops", [("gain_bias", (1, 2)), ("drift", (1, 4, 5, 6))])
@pytest.mark.parametrize("scheduler", ["DPMSolverMultistep", "PNDM"])
def test_interrupted_fit_ends_in_the_same_bytes(kind, stops, scheduler, tmp_path):
    """Of 3 steps, 4 calls with PNDM: while the full-precision path is noted, when it ends, and in the lockstep."""
    recipe = _recipe(kind)
    whole = _quantize(recipe, _pipeline(scheduler))
    for stop in (*stops, None):

        def progress(done, total, stop=stop):
            if done == stop:
                raise _Interrupt

        try:
            resumed = _quantize(recipe, _pipeline(scheduler), folder=tmp_path / "steps", progress=progress)
        except _Interrupt:
            continue
    assert resumed.calibration.resumed_calls == stops[-1]
    assert resumed.config == whole.config
    assert quantized_digest(resumed.pipeline.unet) == quantized_digest(whole.pipeline.unet)
    resumed.save(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_finished_steps_of_another_correction_are_not_taken(tmp_path):
    def stop(done, total):
        raise _Interrupt

    with pytest.raises(_Interrupt):
        _quantize(_recipe("bias"), folder=tmp_path / "steps", progress=stop)
    with pytest.raises(halftone.HalftoneError, match="differs in: recipe"):
        _quantize(_recipe("gain_bias"), folder=tmp_path / "steps")


@pytest.mark.parametrize("kind", KINDS)
def test_announcement_counts_the_additional_passes(kind):
    said = []
    _quantize(_recipe(kind), announce=said.append)
    assert said[0].startswith("18 passes through the denoiser")  # 2 prompts, 3 steps, 3 passes


def test_bfloat16_pipeline_is_corrected():
    pipeline = tiny_sd().to(torch.bfloat16)
    correction = _quantize(_recipe("drift"), pipeline).pipeline.unet.output_correction
    assert correction.output_gain.dtype == torch.float32 and torch.isfinite(correction.output_bias).all()
