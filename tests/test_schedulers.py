"""Swapping the sampler by name."""

import pytest
from pipelines import tiny_sd, tiny_sd3

from halftone.errors import InputError
from halftone.schedulers import use_scheduler


@pytest.mark.parametrize(
    "name, expected",
    [
        ("DDIM", "DDIMScheduler"),
        ("pndm", "PNDMScheduler"),
        ("dpmsolver-multistep", "DPMSolverMultistepScheduler"),
        ("EulerAncestralDiscreteScheduler", "EulerAncestralDiscreteScheduler"),
        ("uni_pc_multistep", "UniPCMultistepScheduler"),
    ],
)
def test_sampler_is_found_and_keeps_the_noise_schedule(name, expected):
    pipeline = tiny_sd()
    use_scheduler(pipeline, name)
    assert type(pipeline.scheduler).__name__ == expected
    config = pipeline.scheduler.config
    assert (config.beta_start, config.beta_end, config.beta_schedule) == (0.00085, 0.012, "scaled_linear")


@pytest.mark.parametrize(
    "name, hint", [("DIMM", "did you mean 'DDIM'"), ("", "known: "), ("FlowMatchEulerDiscrete", "")]
)
def test_unknown_or_unfit_sampler_is_one_sentence(name, hint):
    with pytest.raises(InputError, match="is no scheduler that fits") as caught:
        use_scheduler(tiny_sd(), name)
    assert hint in str(caught.value)


def test_flow_matching_pipeline_takes_its_own_kind_only():
    pipeline = tiny_sd3()
    use_scheduler(pipeline, "flowmatcheulerdiscrete")
    assert type(pipeline.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    with pytest.raises(InputError):
        use_scheduler(pipeline, "PNDM")


def test_too_few_steps_for_a_runge_kutta_start_are_one_sentence():
    from halftone.generation import GenerationSettings, paint

    pipeline = tiny_sd()
    use_scheduler(pipeline, "PNDM")
    with pytest.raises(InputError, match="begins with Runge-Kutta steps here and needs at least 4 steps, not 3"):
        paint(pipeline, "a", 0, GenerationSettings(3))
    paint(pipeline, "a", 0, GenerationSettings(4))
    paint(tiny_sd(scheduler="pndm"), "a", 0, GenerationSettings(1))
