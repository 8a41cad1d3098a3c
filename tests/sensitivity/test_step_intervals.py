"""Intervals of the steps, and the step that a denoiser's call belongs to."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pipelines import denoiser_of, tiny_sd, tiny_sd3
from torch import nn

from halftone.errors import InputError
from halftone.sensitivity.steps import divide, step_finder


@given(st.integers(1, 300), st.data())
def test_intervals_cover_all_steps_and_are_as_even_as_possible(steps, data):
    parts = data.draw(st.integers(1, steps))
    intervals = divide(steps, parts)
    assert [step for interval in intervals for step in interval] == list(range(steps))
    assert {len(interval) for interval in intervals} <= {steps // parts, -(-steps // parts)} and len(intervals) == parts


def test_intervals_of_twenty_and_of_eleven_steps():
    assert divide(20, 5) == (range(0, 4), range(4, 8), range(8, 12), range(12, 16), range(16, 20))
    assert [len(interval) for interval in divide(11, 3)] == [3, 4, 4]


@pytest.mark.parametrize("parts, said", [(0, "intervals is 0"), (-1, "at least 1"), (5, "there are 4"), (2.0, "2.0")])
def test_impossible_intervals(parts, said):
    with pytest.raises(InputError, match=said):
        divide(4, parts)


@pytest.mark.parametrize(
    "build, more, expected",
    [
        (tiny_sd, {}, [0, 1, 2, 3]),
        (tiny_sd, {"scheduler": "pndm"}, [0, 1, 1, 2, 3]),  # its second timestep is visited twice
        (tiny_sd3, {}, [0, 1, 2, 3]),
    ],
    ids=["ddim", "pndm", "sd3"],
)
def test_calls_of_a_pipeline_find_their_steps(build, more, expected):
    pipeline = build(**more)
    module = denoiser_of(pipeline)
    pipeline.scheduler.set_timesteps(4)
    timesteps = list(dict.fromkeys(pipeline.scheduler.timesteps.tolist()))
    step_of, found = step_finder(module, timesteps), []
    module.register_forward_pre_hook(lambda _, args, kwargs: found.append(step_of(args, kwargs)), with_kwargs=True)
    for _ in range(2):  # nothing is counted: the second image finds the same
        pipeline("a red cube", num_inference_steps=4, output_type="latent")
    assert found == expected * 2


def test_a_denoiser_without_a_timestep_is_told():
    with pytest.raises(InputError, match="without a `timestep`"):
        step_finder(nn.Identity(), [3.0, 1.0])((torch.zeros(1),), {})
