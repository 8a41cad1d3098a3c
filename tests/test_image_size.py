"""Height and width: both or neither."""

import pytest
import torch
from pipelines import tiny_sd, tiny_sd3, tiny_sdxl

from halftone.errors import InputError
from halftone.image_size import with_both_sides


@pytest.mark.parametrize("build", [tiny_sd, tiny_sdxl, tiny_sd3])
def test_missing_side_is_what_the_pipeline_takes_by_itself(build):
    pipeline = build()
    size = pipeline("x", num_inference_steps=1).images[0].height
    assert with_both_sides(pipeline, {"height": 24, "eta": 1.0}) == {"height": 24, "width": size, "eta": 1.0}
    assert with_both_sides(pipeline, {"height": None, "width": 24}) == {"height": size, "width": 24}
    for complete in ({}, {"height": None}, {"height": 8, "width": 24}):
        assert with_both_sides(pipeline, complete) == complete


def _pipeline(call, sample_size=None, **attributes):
    """A pipeline with that call; its denoiser has that sample size."""
    unet = torch.nn.Identity()
    unet.config = {"sample_size": sample_size}
    kind = type("Pipeline", (), {"__call__": call, "components": {"unet": unet}, **attributes})
    return kind()


def test_default_of_the_signature_and_sample_sizes_of_two_sides():
    def signed(self, prompt, height=512, width=768):
        pass

    def unsigned(self, prompt, height=None, width=None):
        pass

    assert with_both_sides(_pipeline(signed), {"height": 64}) == {"height": 64, "width": 768}
    oblong = _pipeline(unsigned, (32, 64), vae_scale_factor=8)
    assert with_both_sides(oblong, {"height": 64})["width"] == 512
    assert with_both_sides(oblong, {"width": 64})["height"] == 256
    with pytest.raises(InputError, match=r"Only height is given, and Pipeline tells no .*; give width too"):
        with_both_sides(_pipeline(unsigned), {"height": 64})
