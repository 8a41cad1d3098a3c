"""The trial call that finds the timesteps, and the pipeline call in micro-batches."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import BUILDERS, denoiser_of, tiny_sd, tiny_sdxl
from torch import nn

from halftone.calibration.pipeline_call import call_pipeline
from halftone.calibration.settings import CalibrationSettings, described
from halftone.calibration.trace import trace_calls
from halftone.denoiser import find_denoiser
from halftone.errors import InputError


def _trace(pipeline, **arguments):
    return trace_calls(pipeline, find_denoiser(pipeline), CalibrationSettings(("x", "y"), **arguments))


@pytest.mark.parametrize(
    "scheduler, steps, timesteps",
    [("ddim", 4, (751, 501, 251, 1)), ("ddim", 1, (1,)), ("pndm", 4, (751, 501, 501, 251, 1))],
)
def test_timesteps_are_those_of_the_sampler(scheduler, steps, timesteps):
    trace = _trace(tiny_sd(scheduler=scheduler), num_inference_steps=steps)
    assert trace.timesteps == timesteps and trace.distinct == tuple(dict.fromkeys(timesteps))


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("guidance, rows", [(5.0, 2), (1.0, 1), (None, 2)])
def test_rows_are_the_guidance_halves_and_the_denoiser_never_runs(name, guidance, rows):
    pipeline = BUILDERS[name]()
    passes = []
    for module in denoiser_of(pipeline).children():
        module.register_forward_pre_hook(lambda *_: passes.append(1))
    trace = _trace(pipeline, num_inference_steps=2, guidance_scale=guidance)
    assert trace.rows == rows and passes == [] and len(trace.timesteps) == 2
    assert "forward" not in denoiser_of(pipeline).__dict__


class _Old(nn.Module):
    """A denoiser whose pipeline reads `.sample`, as the older ones of diffusers do."""

    def __init__(self):
        super().__init__()
        self.config = {"out_channels": 4}
        self.proj = nn.Linear(8, 8)

    def forward(self, sample, timestep):
        raise AssertionError("never called in the trial")


class _OldPipeline:
    def __init__(self, denoise):
        self.unet, self.denoise = _Old(), denoise
        self.components = {"unet": self.unet}
        self.scheduler = SimpleNamespace(config={})

    def __call__(self, prompt, num_inference_steps, generator, output_type):
        x = torch.zeros(len(prompt), 4, 8, 8)
        for step in range(num_inference_steps):
            x = self.denoise(self.unet, x, step)
        return SimpleNamespace(images=x)


def test_pipeline_that_reads_sample_is_traced():
    trace = _trace(_OldPipeline(lambda unet, x, step: unet(x, step).sample), num_inference_steps=3)
    assert trace.timesteps == (0.0, 1.0, 2.0)


def test_pipeline_that_never_calls_its_denoiser():
    with pytest.raises(InputError, match="never called its unet"):
        _trace(_OldPipeline(lambda unet, x, step: x), num_inference_steps=3)


def test_refused_arguments_are_one_sentence():
    with pytest.raises(InputError, match=r"_OldPipeline cannot be called with these arguments: .*'guidance_scale'"):
        _trace(_OldPipeline(lambda unet, x, step: x), guidance_scale=1.0)


@pytest.mark.parametrize("build", [tiny_sd, tiny_sdxl])
def test_text_encoders_walk_the_prompts_in_micro_batches(build):
    """Positions in the sequence are shared by all rows, also where their tensor is not cut."""
    prompts = ("a red cube", "x", "a blue ball", "", "two")
    latents = []
    for batch_size in (2, 5):
        pipeline, rows = build(), []
        for name in ("text_encoder", "text_encoder_2"):
            if name in pipeline.components:
                embedding = pipeline.components[name].get_input_embeddings()
                embedding.register_forward_pre_hook(lambda _, args, rows=rows: rows.append(len(args[0])))
        settings = CalibrationSettings(prompts, num_inference_steps=2, batch_size=batch_size)
        latents.append(call_pipeline(pipeline, settings, prompts))
        assert max(rows) <= batch_size and sum(rows) % len(prompts) == 0
    torch.testing.assert_close(*latents, rtol=1e-3, atol=1e-4)


def test_record_holds_hashes_and_survives_arguments_that_cannot_be_copied():
    tracked = torch.ones(2, requires_grad=True) * 2
    record = CalibrationSettings(("a", "b"), call_kwargs={"z": tracked, "a": 1}).to_dict()
    assert list(record["call_kwargs"]) == ["a", "z"] and record["call_kwargs"]["a"] == "1"
    assert record["prompts"] == 2
    assert record["prompts_sha256"][0] == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"


@pytest.mark.parametrize(
    "make",
    [
        lambda value: Image.new("RGB", (4, 4), (value, 0, 0)),
        lambda value: np.full(3, value),
        lambda value: torch.full((3,), value),
        lambda value: {"scale": [value, (None, "x", 1.5)]},
    ],
)
def test_description_of_an_argument_tells_its_content_and_nothing_else(make):
    assert described("image", make(1)) == described("image", make(1)) != described("image", make(2))
    assert " at 0x" not in described("image", make(1))
