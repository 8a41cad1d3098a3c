"""The attention processor: the same numbers as diffusers', who keeps which processor, and the switch."""

import copy
import io

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from pipelines import tiny_sd, tiny_sd3, tiny_sdxl

import halftone
from halftone.artifact import load as load_module
from halftone.attention import (
    NativeAttnProcessor,
    attention_of,
    attention_words,
    kept_words,
    running_attention,
    use_attention,
)
from halftone.errors import InputError
from halftone.native import attention as native

runs_here = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))


def _attention(**more):
    torch.manual_seed(0)
    return Attention(query_dim=32, heads=2, dim_head=16, **more).eval()


def _states(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
    return draw(2, 40, 32), draw(2, 7, 24)


def _relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def _sample(unet, dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    latents, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, 16, generator=generator)
    return unet(latents.to(dtype), 500, text.to(dtype)).sample


@torch.no_grad()
@pytest.mark.parametrize("attention", ["auto", "float"])
def test_float32_stays_as_exact_as_torch(attention):
    unet = tiny_sd().unet
    expected = _sample(unet)
    use_attention(unet, attention)
    torch.testing.assert_close(_sample(unet), expected)


@torch.no_grad()
@runs_here
@pytest.mark.parametrize(("attention", "most"), [("bfloat16", 0.005), ("int8", 0.01)])
@pytest.mark.parametrize("is_cross", [False, True], ids=["self", "cross"])
def test_the_kernel_runs_where_it_is_asked_for(attention, most, is_cross):
    module = _attention(cross_attention_dim=24 if is_cross else None)
    states, text = _states()
    inputs = (states, text) if is_cross else (states,)
    expected = module(*inputs)
    use_attention(module, attention)
    result = module(*inputs)
    assert 0 < _relative(result, expected) < most


@torch.no_grad()
@runs_here
def test_auto_takes_the_kernel_for_bfloat16(monkeypatch):
    module = _attention().bfloat16()
    states, _ = _states(torch.bfloat16)
    expected = module(states)
    asked = []
    run = native.attention
    monkeypatch.setattr(native, "attention", lambda *inputs: asked.append(inputs[3]) or run(*inputs))
    use_attention(module, "auto")
    assert _relative(module(states), expected) < 0.01
    assert asked == ["bfloat16"]


@pytest.mark.parametrize("name", ["HALFTONE_NATIVE", "HALFTONE_KERNELS"])
def test_the_environment_switches_it_off(monkeypatch, name):
    monkeypatch.setenv(name, {"HALFTONE_NATIVE": "0", "HALFTONE_KERNELS": "reference"}[name])
    module = _attention().bfloat16()
    states, _ = _states(torch.bfloat16)
    with torch.no_grad():
        expected = module(states)
        use_attention(module, "auto")
        assert torch.equal(module(states), expected)
    assert name in attention_words()
    with pytest.raises(InputError, match=f"cannot run attention in int8: {name}"):
        use_attention(module, "int8")


@runs_here
def test_a_kernel_of_the_layers_leaves_attention_as_it_is(monkeypatch):
    monkeypatch.setenv("HALFTONE_KERNELS", "onednn")
    module = _attention()
    use_attention(module, "int8")
    assert running_attention(module) == "native int8" and "HALFTONE_KERNELS" not in attention_words()


@runs_here
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_by_name_it_is_refused_in_a_dtype_that_the_kernel_does_not_take(dtype):
    unet = tiny_sd().unet.to(dtype)
    with pytest.raises(InputError, match=f"attention in int8 is not for this pipeline: it does not take {dtype}"):
        use_attention(unet, "int8")
    assert running_attention(unet) == "diffusers", "left as it was"


@runs_here
def test_by_name_it_is_refused_where_nothing_would_run_it():
    transformer = tiny_sd3().transformer
    with pytest.raises(InputError, match=r"No attention of SD3\w+ can run in int8: all 2 .*JointAttnProcessor2_0"):
        use_attention(transformer, "int8")
    with pytest.raises(InputError, match="AutoencoderKL can run in int8: all"):
        use_attention(tiny_sd().vae, "int8")
    with pytest.raises(InputError, match="Linear has no attention"):
        use_attention(torch.nn.Linear(2, 2), "int8")


@torch.no_grad()
@runs_here
def test_a_cast_after_it_was_asked_for_by_name_is_told():
    module = _attention()
    use_attention(module, "int8")
    module.half()
    states, _ = _states(torch.float16)
    assert running_attention(module) == "torch"
    with pytest.raises(InputError, match=r"it does not take torch\.float16"):
        module(states)


@runs_here
def test_what_keeps_its_own_is_told_where_it_was_asked_for_by_name():
    model = torch.nn.ModuleDict({"a": _attention(norm_num_groups=4), "b": _attention()})
    words = kept_words("int8", use_attention(model, "int8"))
    assert words == "Attention runs in int8 but for 1 modules, the first of them a: it normalizes its input."
    assert running_attention(model) == "native int8"
    assert kept_words("auto", use_attention(model, "auto")) == ""
    wide = torch.nn.ModuleDict({"a": Attention(query_dim=32, heads=1, dim_head=300), "b": _attention()})
    assert "at most 256 channels" in use_attention(wide, "int8")["a"] and attention_of(wide) == "int8"
    assert use_attention(wide, "auto") == {}


@runs_here
def test_what_runs_depends_on_the_dtype():
    unet = tiny_sd().unet
    assert running_attention(unet) == "diffusers"
    for dtype, running in ((torch.float32, "torch"), (torch.bfloat16, "native bfloat16"), (torch.float16, "torch")):
        unet.to(dtype)
        use_attention(unet, "auto")
        assert running_attention(unet) == running
    use_attention(unet.bfloat16(), "float")
    assert running_attention(unet) == "torch"


@torch.no_grad()
def test_diffusers_may_set_its_own_again():
    unet = tiny_sd().unet
    expected = _sample(unet)
    use_attention(unet, "auto")
    unet.set_default_attn_processor()
    assert attention_of(unet) is None
    torch.testing.assert_close(_sample(unet), expected)


def test_gradients_go_through_torch():
    module = _attention()
    states, _ = _states()
    expected = module(states)
    processor = NativeAttnProcessor("int8")
    module.set_processor(processor)
    result = module(states)
    torch.testing.assert_close(result, expected)
    result.sum().backward()
    assert module.to_q.weight.grad is not None


@torch.no_grad()
def test_masks_go_through_diffusers():
    module = _attention(cross_attention_dim=24)
    states, text = _states()
    mask = torch.zeros(2, 1, 7)
    mask[:, :, 4:] = -10000.0
    expected = module(states, text, attention_mask=mask)
    module.set_processor(NativeAttnProcessor("int8"))
    assert torch.equal(module(states, text, attention_mask=mask), expected)


@torch.no_grad()
@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"norm_num_groups": 4}, "normalizes its input"),
        ({"cross_attention_norm": "layer_norm", "cross_attention_dim": 24}, "normalizes the text"),
        ({"qk_norm": "rms_norm"}, "normalizes queries or keys"),
        ({"residual_connection": True}, "adds its input"),
        ({"rescale_output_factor": 2.0}, "divides its output"),
    ],
)
def test_modules_that_do_more_keep_theirs(more, why):
    model = torch.nn.ModuleDict({"a": _attention(**more), "b": _attention()})
    kept = use_attention(model, "auto")
    assert list(kept) == ["a"] and why in kept["a"]
    assert type(model["a"].processor) is AttnProcessor2_0 and type(model["b"].processor) is NativeAttnProcessor
    # and if someone sets it all the same, diffusers' own code runs
    states, text = _states()
    inputs = (states, text) if "cross_attention_dim" in more else (states,)
    expected = model["a"](*inputs)
    model["a"].set_processor(NativeAttnProcessor("int8"))
    assert torch.equal(model["a"](*inputs), expected)


def test_other_processors_stay():
    kept = use_attention(tiny_sd3().transformer, "auto")
    assert kept and all("JointAttnProcessor2_0" in why for why in kept.values())
    assert attention_of(tiny_sd3().transformer) is None


@torch.no_grad()
def test_sdxl_runs():
    pipeline = tiny_sdxl()
    call = {"prompt": "a red cube", "num_inference_steps": 2, "output_type": "latent"}
    before = pipeline(**call, generator=torch.Generator().manual_seed(0)).images
    assert use_attention(pipeline.unet, "float") == {}
    after = pipeline(**call, generator=torch.Generator().manual_seed(0)).images
    torch.testing.assert_close(after, before)


def test_an_unknown_name_is_explained():
    with pytest.raises(InputError, match="did you mean 'int8'"):
        use_attention(tiny_sd().unet, "int9")


def test_loaded_and_fresh_pipelines_have_it(sd_artifact):
    pipeline = halftone.load(sd_artifact)
    assert attention_of(pipeline.unet) == "auto"
    assert attention_of(halftone.load(sd_artifact, attention="float").unet) == "float"
    assert attention_of(copy.deepcopy(pipeline.unet)) == "auto"
    assert attention_of(tiny_sd().unet) is None


@torch.no_grad()
@runs_here
def test_load_takes_the_switch(sd_artifact):
    outputs = {
        attention: _sample(halftone.load(sd_artifact, attention=attention).unet)
        for attention in ("float", "auto", "bfloat16", "int8")
    }
    assert torch.equal(outputs["float"], outputs["auto"])
    for attention in ("bfloat16", "int8"):
        assert 0 < _relative(outputs[attention], outputs["float"]) < 0.05


def test_load_tells_what_keeps_its_own_and_refuses_a_device(sd_artifact, monkeypatch):
    monkeypatch.setattr(load_module, "use_attention", lambda module, attention: {"mid": "it adds its input"})
    with pytest.warns(UserWarning, match="in int8 but for 1 modules, the first of them mid: it adds its input"):
        halftone.load(sd_artifact, attention="int8")
    for device in ("mps", "mps:0", torch.device("mps")):
        with pytest.raises(InputError, match="does not run on 'mps'"):
            halftone.load(sd_artifact, device=device)


def test_a_denoiser_can_be_pickled(sd_artifact):
    unet = halftone.load(sd_artifact).unet
    torch.save(unet.attn_processors, io.BytesIO())
