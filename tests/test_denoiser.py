"""Finding the denoiser, its layers, the timestep; the clock that follows the calls."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from pipelines import BUILDERS, denoiser_of, tiny_sd
from torch import nn

import halftone
from halftone.denoiser import as_output, choose_layers, choose_slots, find_denoiser, set_submodule, timestep_of
from halftone.errors import InputError
from halftone.layers import quantize_layer
from halftone.numerics import range_to_qparams
from halftone.timesteps import SlotClock, TimestepSlots


@pytest.mark.parametrize("name, expected", [("sd", "unet"), ("sdxl", "unet"), ("sd3", "transformer")])
def test_denoiser_is_found(name, expected):
    pipeline = BUILDERS[name]()
    found = find_denoiser(pipeline)
    assert found.name == expected and found.module is denoiser_of(pipeline)


@pytest.mark.parametrize("components", [{}, {"vae": nn.Identity()}, {"unet": None}])
def test_pipeline_without_a_denoiser_is_one_sentence(components):
    with pytest.raises(InputError, match="has no denoiser to quantize"):
        find_denoiser(SimpleNamespace(components=components))


def test_what_is_no_pipeline_at_all_is_one_sentence():
    with pytest.raises(InputError, match="AutoencoderKL has no denoiser"):
        find_denoiser(tiny_sd().vae)


@pytest.mark.parametrize("name", BUILDERS)
def test_every_layer_is_chosen_or_left_out_with_a_reason(name):
    module = denoiser_of(BUILDERS[name]())
    choice = choose_layers(module, halftone.Recipe().exclude)
    every = [n for n, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert sorted([*choice.chosen, *choice.left_out]) == sorted(every)
    assert list(choice.chosen) == [n for n in every if n in choice.chosen]
    assert not {*choice.chosen} & {"conv_in", "conv_out", "proj_out", "pos_embed.proj"}
    embedding = [n for n in choice.chosen if n.startswith(("time_embedding", "add_embedding", "time_text_embed"))]
    assert not embedding and any("excluded by the recipe" in reason for reason in choice.left_out.values())


def test_attention_output_named_like_the_last_layer_is_chosen():
    choice = choose_layers(tiny_sd().unet, halftone.Recipe().exclude)
    assert any(name.endswith("attentions.0.proj_out") for name in choice.chosen)


def test_unsupported_layer_is_left_out_with_its_reason():
    module = nn.Sequential(nn.Linear(2, 2), nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"))
    choice = choose_layers(module, ())
    assert list(choice.chosen) == ["0"] and "circular" in choice.left_out["1"]


def test_nothing_left_to_quantize_is_one_sentence():
    with pytest.raises(InputError, match="no Linear or Conv2d layer left"):
        choose_layers(tiny_sd().unet, ("*",))


class _Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(2, 2, bias=False)

    def forward(self, sample, timestep, extra=None):
        return self.proj(sample)


@pytest.mark.parametrize(
    "args, kwargs", [(("x", 7), {}), (("x",), {"timestep": 7}), ((), {"timestep": 7, "sample": 0})]
)
def test_timestep_is_found_by_name_and_by_position(args, kwargs):
    assert timestep_of(_Denoiser(), args, kwargs) == 7


def test_call_without_a_timestep_is_one_sentence():
    with pytest.raises(InputError, match="without a `timestep`"):
        timestep_of(_Denoiser(), ("x",), {})
    with pytest.raises(InputError, match="Linear was called without a `timestep`"):
        timestep_of(nn.Linear(1, 1), ("x", 7), {})


def _two_slots():
    """One quantized layer with two slots, at timesteps 900 and 100, whose ranges differ by a factor of ten."""
    module = _Denoiser()
    layer = quantize_layer(module.proj, 8, 2, "proj")
    layer.set_row(0, range_to_qparams(-10.0, 10.0, 8))
    layer.set_row(1, range_to_qparams(-1.0, 1.0, 8))
    set_submodule(module, "proj", layer)
    choose_slots(module, SlotClock(TimestepSlots((900.0, 100.0), (8, 8))))
    return module


def test_slot_follows_the_value_of_the_timestep():
    module = _two_slots()
    for timestep, slot in [(900, 0), (499, 1), (torch.tensor([501, 501]), 0), (0.0, 1), (999, 0)]:
        module(torch.ones(2, 2), timestep)
        assert module.proj.clock.current == slot


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copy_has_a_clock_of_its_own_that_follows_its_calls(copied):
    module = _two_slots()
    x = torch.tensor([[5.0, -5.0]])
    expected = module(x, 900)
    twin = copied(module)
    module(x, 100)
    assert torch.equal(twin(x, 900), expected)
    assert (twin.proj.clock.current, module.proj.clock.current) == (0, 1)


def test_choosing_slots_again_replaces_the_clock():
    module = _two_slots()
    choose_slots(module, SlotClock(TimestepSlots((100.0, 900.0), (8, 8))))
    module(torch.ones(1, 2), 900)
    assert module.proj.clock.current == 1 and len(module._forward_pre_hooks) == 1


def test_output_has_the_form_that_the_call_asks_for():
    x = torch.zeros(1)
    assert as_output(x, {"return_dict": False}) == (x,)
    assert as_output(x, {}).sample is x and as_output(x, {})[0] is x
