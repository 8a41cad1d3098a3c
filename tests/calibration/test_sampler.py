"""What becomes of predictions behind the denoiser: guidance, the sampler's response, and what is refused."""

import inspect
from contextlib import nullcontext

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from pipelines import BUILDERS, denoiser_of, tiny_sd, tiny_sd3

import halftone
from halftone.calibration import CalibrationSettings
from halftone.calibration.sampler import SamplerCall, study_sampler, watching
from halftone.denoiser import find_denoiser
from halftone.errors import InputError
from halftone.layers import quantized_layers
from halftone.schedulers import use_scheduler

LINEAR = ("DDIM", "EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "PNDM", "UniPCMultistep", "DDPM")
PLAIN_STEP = ("PNDM", "UniPCMultistep")  # without an argument for a generator


def _study(pipeline, needs_response=True, steps=4, **arguments):
    settings = CalibrationSettings(("x", "y"), num_inference_steps=steps, **arguments)
    return study_sampler(pipeline, find_denoiser(pipeline), settings, needs_response)


def _sampled_by(name, **config):
    pipeline = tiny_sd()
    use_scheduler(pipeline, name)
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **config)
    return pipeline


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("guidance, weights", [(5.0, (-4, 5)), (1.0, (1,))])
def test_guidance_is_found_without_a_pass(name, guidance, weights):
    pipeline, passes = BUILDERS[name](), []
    for module in denoiser_of(pipeline).children():
        module.register_forward_pre_hook(lambda *_: passes.append(1))
    calls = _study(pipeline, guidance_scale=guidance)
    assert len(calls) == 4 and passes == []
    for call in calls:
        assert call.weights == weights and call.channels == 4
    assert "step" not in pipeline.scheduler.__dict__ and "forward" not in denoiser_of(pipeline).__dict__


def test_guided_prediction_by_hand():
    call = SamplerCall(2, (-4.0, 5.0), {})
    rows = torch.stack([torch.full((3, 2), float(value)) for value in (1, 2, 10, 20)])[..., None]
    assert torch.equal(call.guided(rows).flatten(), torch.tensor([46.0] * 4 + [92.0] * 4))  # 5*10 - 4*1, 5*20 - 4*2
    assert call.guided(rows.bfloat16()).dtype == torch.float32


def test_response_of_ddim_is_its_closed_form():
    """x' = sqrt(a') (x - sqrt(1-a) e) / sqrt(a) + sqrt(1-a') e (Song et al. 2021, equation 12 with sigma 0)."""
    pipeline = tiny_sd()
    calls = _study(pipeline)
    scheduler = pipeline.scheduler
    alphas = [float(scheduler.alphas_cumprod[t]) for t in scheduler.timesteps] + [float(scheduler.final_alpha_cumprod)]
    for call, a, after in zip(calls, alphas, alphas[1:], strict=False):
        assert call.response == pytest.approx((1 - after) ** 0.5 - (after * (1 - a) / a) ** 0.5, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("build", ["sd", "sd3"])
def test_response_of_euler_is_the_step_of_sigma(build):
    pipeline = tiny_sd3() if build == "sd3" else _sampled_by("EulerDiscrete")
    calls = _study(pipeline)
    expected = pipeline.scheduler.sigmas.diff().tolist()
    assert [call.response for call in calls] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", LINEAR)
def test_samplers_are_left_as_they_were(name):
    """Probes in the middle of a run change neither its result nor what the next probe says."""
    plain, probed = _sampled_by(name), _sampled_by(name)
    calls = _study(probed)
    assert all(call.response for call in calls[:-1])
    seen = []

    def before(step):
        call = calls[len(seen)]
        twice = [call.next_latents(probed.scheduler, step["model_output"], step["sample"]) for _ in range(2)]
        assert torch.equal(*twice)
        seen.append(twice[0])

    images = []
    for pipeline in (plain, probed):
        generator = torch.Generator().manual_seed(0)
        arguments = {"num_inference_steps": 4, "generator": generator, "output_type": "latent"}
        is_watched = watching(probed.scheduler, before, lambda latents: None) if pipeline is probed else nullcontext()
        with is_watched:
            assert ("generator" in inspect.signature(pipeline.scheduler.step).parameters) == (name not in PLAIN_STEP)
            images.append(pipeline("x", **arguments).images)
    assert torch.equal(*images) and len(seen) == len(calls)
    if name in ("DDIM", "EulerDiscrete", "DPMSolverMultistep", "PNDM", "UniPCMultistep"):
        assert torch.allclose(seen[-1], images[1], atol=1e-6)


def _quantize(pipeline, kind, **arguments):
    recipe = halftone.Recipe.from_dict({"correction": {"kind": kind}})
    return halftone.quantize(pipeline, recipe, ["x"], num_inference_steps=2, **arguments)


def _refused(pipeline, kind, **arguments):
    with pytest.raises(InputError) as caught:
        _quantize(pipeline, kind, **arguments)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400
    assert next(quantized_layers(denoiser_of(pipeline)), None) is None
    assert "step" not in pipeline.scheduler.__dict__ and "forward" not in denoiser_of(pipeline).__dict__
    return text


@pytest.mark.parametrize("config", [{"clip_sample": True}, {"thresholding": True}])
def test_sampler_that_clips_has_no_drift_correction(config):
    said = _refused(_sampled_by("DDIM", **config), "drift")
    assert "DDIMScheduler whose next latents do not follow" in said and "take kind 'bias'" in said
    _quantize(_sampled_by("DDIM", **config), "bias")


class _OwnNoise(DDIMScheduler):
    """Takes its noise from nowhere that a caller could tell, as samplers with a Brownian tree do."""

    def step(self, *args, **kwargs):
        result = super().step(*args, **kwargs)
        return (result[0] + torch.randn_like(result[0]), *result[1:])


def test_sampler_with_random_numbers_of_its_own_has_no_drift_correction():
    pipeline = tiny_sd()
    pipeline.scheduler = _OwnNoise.from_config(pipeline.scheduler.config)
    _OwnNoise.step.__signature__ = inspect.signature(DDIMScheduler.step)
    assert "_OwnNoise with random numbers of its own" in _refused(pipeline, "drift")


@pytest.mark.parametrize("kind", ["bias", "drift"])
def test_guidance_that_is_no_weighted_sum_is_refused(kind):
    said = _refused(tiny_sd(), kind, guidance_rescale=0.7)
    assert "guidance_rescale" in said and "take a recipe without correction" in said


class _Patching(StableDiffusionPipeline):
    """Moves the latents between steps, as inpainting does."""

    def __call__(self, *args, **kwargs):
        def moved(pipeline, step, timestep, tensors):
            return {"latents": tensors["latents"] + 0.1}

        return super().__call__(*args, callback_on_step_end=moved, **kwargs)


def test_pipeline_that_changes_latents_between_steps_has_no_drift_correction():
    pipeline = _Patching(**tiny_sd().components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    _Patching.__call__.__signature__ = inspect.signature(StableDiffusionPipeline.__call__)
    assert "changes the latents between its steps" in _refused(pipeline, "drift")


class _Twice(StableDiffusionPipeline):
    """Calls its denoiser twice a step."""

    def __call__(self, *args, **kwargs):
        handle = self.unet.register_forward_pre_hook(
            lambda module, args, kwargs: None if len(kwargs) == 99 else module.forward(*args, **kwargs) and None,
            with_kwargs=True,
        )
        try:
            return super().__call__(*args, **kwargs)
        finally:
            handle.remove()


@pytest.mark.parametrize("kind", ["bias", "drift"])
def test_pipeline_with_two_calls_a_step_is_refused(kind):
    pipeline = _Twice(**tiny_sd().components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    _Twice.__call__.__signature__ = inspect.signature(StableDiffusionPipeline.__call__)
    assert "does not call DDIMScheduler.step once after each" in _refused(pipeline, kind)


def _with_variance():
    """A UNet that predicts a variance too, and a sampler that takes it."""
    pipeline = tiny_sd()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_config(pipeline.unet.config, out_channels=8).eval().requires_grad_(False)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, variance_type="learned_range")
    pipeline.register_modules(unet=unet, scheduler=scheduler)
    return pipeline


def test_predicted_variance_stays_as_it_is():
    result = _quantize(_with_variance(), "bias")
    bias = result.pipeline.unet.output_correction.output_bias
    assert bias.shape == (2, 8) and bias[:, :4].abs().min() > 0 and torch.equal(bias[:, 4:], torch.zeros(2, 4))
    assert "predicted variance" in _refused(_with_variance(), "drift")
