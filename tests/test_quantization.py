"""The one call: wrong arguments, numbers that are not finite, other schedulers and image-to-image afterwards."""

import math
import weakref

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image
from pipelines import BUILDERS, denoiser_of, tiny_sd, tiny_sd3, tiny_sdxl

import halftone
from halftone import quantization
from halftone.artifact.config import quantized_digest
from halftone.attention import use_attention
from halftone.calibration import run
from halftone.calibration.settings import DEFAULT_MEMORY_BUDGET
from halftone.denoiser import choose_layers
from halftone.errors import InputError, NonFiniteError, RecipeError
from halftone.kernels import reference, register_kernel, registry
from halftone.layers import QuantizedLayer, quantize_layer, quantized_layers
from halftone.quantization import find_made
from halftone.recipe import Recipe
from halftone.schedulers import use_scheduler

LAYER = "mid_block.resnets.0.conv1"


def _quantize(pipeline=None, recipe="pcr-w8a8", prompts=("x",), steps=2, **arguments):
    return halftone.quantize(pipeline or tiny_sd(), recipe, prompts, num_inference_steps=steps, **arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"prompts": []}, "There are no prompts"),
        ({"prompts": "a red cube"}, "a list of texts"),
        ({"prompts": ["ok", "x" * 10_001]}, "Prompt 2 has 10001 characters"),
        ({"prompts": ["a\0b"]}, "NUL character"),
        ({"prompts": ["\udce9"]}, "no valid Unicode"),
        ({"steps": 0}, "num_inference_steps is 0"),
        ({"steps": "20"}, "num_inference_steps is '20'"),
        ({"steps": True}, "num_inference_steps is True"),
        ({"seed": True}, "seed is True"),
        ({"guidance_scale": "7"}, "guidance_scale is '7'"),
        ({"prompts": 5}, "Prompts must be a list of texts, not int"),
        ({"callback_on_step_end": print}, "callback_on_step_end is or holds a builtin_function"),
        ({"cross_attention_kwargs": {"x": object()}}, "cross_attention_kwargs is or holds a object"),
        ({"steps": 1001}, "cannot be called with these arguments"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 1.5}, "batch_size is 1.5"),
        ({"seed": "a"}, "seed is 'a'"),
        ({"heigth": 8}, r"has no argument 'heigth'; did you mean 'height'\?"),
        ({"callback_on_step_end_tensor_inputs": ["x"]}, "cannot be called with these arguments"),
        ({"output_type": "np"}, "output_type cannot be set"),
        ({"generator": None}, "generator cannot be set"),
        ({"num_images_per_prompt": 2}, "num_images_per_prompt cannot be set"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt has 2 texts for 1 prompts; give one text, or one for each"),
    ],
)
def test_wrong_arguments_are_one_sentence_and_leave_the_pipeline_alone(arguments, message):
    pipeline = tiny_sd()
    with pytest.raises(InputError, match=message) as caught:
        _quantize(pipeline, **arguments)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert not any(isinstance(module, QuantizedLayer) for module in pipeline.unet.modules())
    assert "forward" not in pipeline.unet.__dict__
    _quantize(pipeline)


def test_wrong_recipes(tmp_path):
    (tmp_path / "mine.yaml").write_text("activations: {num_bit: 8}\n")
    with pytest.raises(RecipeError, match="did you mean 'num_bits'"):
        _quantize(recipe=tmp_path / "mine.yaml")
    with pytest.raises(RecipeError, match="did you mean 'pcr-w8a8'"):
        _quantize(recipe="prc-w8a8")


def test_recipe_may_be_a_mapping_and_prompts_any_iterable():
    data = Recipe.load("pcr-w8a8").to_dict()
    result = _quantize(recipe=data, prompts=(text for text in ("x", "y")))
    assert result.config.recipe == Recipe.load("pcr-w8a8") and result.config.calibration["prompts"] == 2
    with pytest.raises(RecipeError, match="not NoneType"):
        _quantize(recipe=None)


@pytest.mark.parametrize("build", [tiny_sd, tiny_sdxl])
def test_negative_prompt_is_one_for_all_or_one_for_each(build):
    digests = []
    for negative in ("no", ["no", "no", "no"], ("no", "", "never")):
        result = _quantize(build(), prompts=("a", "b", "c"), steps=1, negative_prompt=negative)
        digests.append(quantized_digest(result.pipeline.unet))
    assert digests[0] == digests[1] != digests[2]


def test_second_prompt_and_latents_are_those_of_the_prompts():
    """As SDXL has it: a text for all prompts beside a list of negative ones, and noise of one's own."""
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    arguments = {"prompt_2": "hello", "negative_prompt": ["no", "", "never"], "latents": latents}
    result = _quantize(tiny_sdxl(), prompts=("a", "b", "c"), steps=1, **arguments)
    described = result.config.calibration["call_kwargs"]
    assert described["prompt_2"] == "'hello'"
    assert described["latents"].startswith("tensor(torch.float32, (3, 4, 8, 8), sha256 ")


def test_denoiser_of_another_pipeline_is_one_sentence():
    pipeline = tiny_sd()
    pipeline.register_modules(unet=tiny_sdxl().unet)
    for recipe in ("pcr-w8a8", "minmax-w8a8"):
        with pytest.raises(InputError, match="UNet2DConditionModel cannot run as the pipeline calls it") as caught:
            halftone.quantize(pipeline, recipe, ["x"], num_inference_steps=1)
        assert "\n" not in str(caught.value)
        pipeline.register_modules(unet=tiny_sdxl().unet)


def test_what_is_no_full_precision_pipeline():
    with pytest.raises(InputError, match="no denoiser"):
        _quantize(tiny_sd().vae)
    done = _quantize().pipeline
    with pytest.raises(InputError, match="quantized already"):
        _quantize(done)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("recipe", ["pcr-w8a8", "minmax-w8a8"])
def test_weight_that_is_not_finite_names_the_layer(value, recipe):
    pipeline = tiny_sd()
    pipeline.unet.get_submodule(LAYER).weight[0, 0, 0, 0] = value
    with pytest.raises(NonFiniteError, match=LAYER.replace(".", r"\.")):
        _quantize(pipeline, recipe)


def _break_at(pipeline, layer, timestep, value):
    """Makes a layer's input not finite at one timestep of the sampler."""
    now = []
    pipeline.unet.register_forward_pre_hook(lambda _, args: now.append(float(args[1])))

    def spoil(_, args):
        if now[-1] == timestep:
            args[0][(0,) * args[0].ndim] = value

    pipeline.unet.get_submodule(layer).register_forward_pre_hook(spoil)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("recipe", ["pcr-w8a8", "per-step-w8a8", "minmax-w8a8"])
@pytest.mark.parametrize("timestep, step", [(751.0, 1), (501.0, 2), (1.0, 4)])
def test_activation_that_is_not_finite_names_layer_and_step(value, recipe, timestep, step):
    """The normalization just before the layer hands the value on, and nothing before it is quantized from it."""
    pipeline = tiny_sd()
    _break_at(pipeline, "mid_block.attentions.0.transformer_blocks.0.norm1", timestep, value)
    with pytest.raises(NonFiniteError) as caught:
        _quantize(pipeline, recipe, steps=4)
    text = str(caught.value)
    assert "mid_block.attentions.0.transformer_blocks.0.attn1.to_" in text
    assert f"step {step} of 4 (timestep {timestep:g})" in text and "\n" not in text
    assert "forward" not in pipeline.unet.__dict__


@pytest.mark.parametrize("recipe", ["pcr-w8a8", "minmax-w8a8"])
def test_output_that_is_not_finite_names_the_step_even_the_last(recipe):
    """conv_out stays in floating point, so no observer sees what it gives."""
    pipeline = tiny_sd()
    _break_at(pipeline, "conv_out", 1.0, math.nan)
    with pytest.raises(NonFiniteError, match=r"output of the denoiser .* step 4 of 4 \(timestep 1\)"):
        _quantize(pipeline, recipe, steps=4)


def test_after_a_failure_the_pipeline_says_that_it_is_half_quantized():
    pipeline = tiny_sd()
    _break_at(pipeline, "conv_out", 1.0, math.nan)
    with pytest.raises(NonFiniteError):
        _quantize(pipeline)
    with pytest.raises(InputError, match="half quantized; open the pipeline again"):
        _quantize(pipeline)


def test_training_mode_is_given_back_also_after_a_failure():
    pipeline = tiny_sd()
    pipeline.unet.train()
    _break_at(pipeline, "conv_out", 1.0, math.nan)
    with pytest.raises(NonFiniteError):
        _quantize(pipeline)
    assert pipeline.unet.training


def test_result_says_what_was_done():
    result = _quantize(prompts=["a", "b"], steps=5, guidance_scale=3.0, seed=7, height=8, width=8)
    record = result.config.calibration
    assert (record["guidance_scale"], record["seed"], record["prompts"]) == (3.0, 7, 2)
    assert record["call_kwargs"] == {"height": "8", "width": "8"} and record["dtype"] == "float32"
    assert result.config.slots.num_bits == (8, 8, 8, 8, 10) and result.average_activation_bits == 8.4
    assert result.config.layers == tuple(name for name, _ in quantized_layers(result.pipeline.unet))
    assert set(result.config.left_out) >= {"conv_in", "conv_out"} and result.calibration.seconds > 0


def test_recorded_dtype_is_that_before_quantization():
    everything = halftone.Recipe.from_dict({"exclude": []})
    assert _quantize(recipe=everything).config.calibration["dtype"] == "float32"
    half = tiny_sd().to(torch.bfloat16)
    assert _quantize(half).config.calibration["dtype"] == "bfloat16"


def test_progress_counts_the_denoiser_calls():
    seen = []
    _quantize(tiny_sd(scheduler="pndm"), steps=4, progress=lambda *numbers: seen.append(numbers))
    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize("name", BUILDERS)
def test_same_seed_gives_the_same_tables_and_another_seed_others(name):
    one, two = (quantized_digest(denoiser_of(_quantize(BUILDERS[name]()).pipeline)) for _ in range(2))
    assert one == two != quantized_digest(denoiser_of(_quantize(BUILDERS[name](), seed=1).pipeline))


def test_noise_of_a_prompt_does_not_depend_on_how_many_there_are():
    """conv_in sees the noise itself at the first step: its output range over prompts is the widest single one."""
    name = "down_blocks.0.resnets.0.conv1"
    alone = [_quantize(prompts=["x"], seed=seed).calibration.ranges[name][0] for seed in (0, 1)]
    both = _quantize(prompts=["x", "x"]).calibration.ranges[name][0]
    expected = min(lo for lo, _ in alone), max(hi for _, hi in alone)
    assert both == pytest.approx(expected, rel=1e-5)


def _slots_used(pipeline, **arguments):
    """(timestep, slot) of every denoiser call."""
    denoiser, used = denoiser_of(pipeline), []
    layer = next(iter(quantized_layers(denoiser)))[1]

    def note(_, args, kwargs):
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        used.append((float(timestep.flatten()[0]), layer.clock.current))

    handle = denoiser.register_forward_pre_hook(note, with_kwargs=True)
    images = pipeline(prompt="x", output_type="latent", generator=torch.Generator().manual_seed(0), **arguments).images
    handle.remove()
    assert torch.isfinite(images).all()
    return used


@pytest.mark.parametrize("scheduler", ["DDPM", "DPMSolverMultistep", "EulerDiscrete", "UniPCMultistep", "PNDM"])
@pytest.mark.parametrize("steps", [4, 9])
def test_slots_follow_the_timestep_under_other_schedulers_and_step_counts(scheduler, steps):
    result = _quantize(tiny_sd(), steps=4)
    use_scheduler(result.pipeline, scheduler)
    calibrated = (751.0, 501.0, 251.0, 1.0)
    used = _slots_used(result.pipeline, num_inference_steps=steps)
    assert len(used) >= steps
    for timestep, slot in used:
        assert abs(calibrated[slot] - timestep) == min(abs(value - timestep) for value in calibrated)


def test_flow_matching_timesteps_at_another_step_count():
    result = _quantize(tiny_sd3(), steps=4)
    calibrated = result.config.slots.timesteps
    used = _slots_used(result.pipeline, num_inference_steps=7)
    assert len({slot for _, slot in used}) == 4 and len(used) == 7
    assert all(abs(calibrated[s] - t) == min(abs(c - t) for c in calibrated) for t, s in used)


@pytest.mark.parametrize("build", [tiny_sd, tiny_sdxl])
def test_negative_prompts_and_other_batches_run_afterwards(build):
    pipeline = _quantize(build(), steps=2).pipeline
    images = pipeline(["a", "b", "c"], negative_prompt=["x", "", "y"], num_inference_steps=2, output_type="np").images
    assert images.shape == (3, 16, 16, 3)


@pytest.mark.parametrize("strength, first_slot", [(0.5, 2), (1.0, 0)])
def test_image_to_image_starts_in_the_middle(strength, first_slot):
    quantized = _quantize(tiny_sd(), steps=4).pipeline
    components = {name: part for name, part in quantized.components.items() if name != "image_encoder"}
    by_components = StableDiffusionImg2ImgPipeline(**components, requires_safety_checker=False)
    image = Image.new("RGB", (16, 16), (200, 30, 60))
    outputs = []
    for pipeline in (by_components, StableDiffusionImg2ImgPipeline.from_pipe(quantized)):
        pipeline.set_progress_bar_config(disable=True)
        assert pipeline.unet is quantized.unet
        used = _slots_used(pipeline, image=image, strength=strength, num_inference_steps=4)
        assert [slot for _, slot in used] == list(range(first_slot, 4))
        generator = torch.Generator().manual_seed(0)
        outputs.append(pipeline("x", image=image, num_inference_steps=4, generator=generator, output_type="pt").images)
    assert torch.equal(*outputs)


@pytest.mark.parametrize("name", ["conv_in.weight", "conv_out.bias", "time_embedding.linear_1.weight"])
def test_weight_of_a_layer_left_in_floating_point_is_checked_too(name):
    pipeline = tiny_sd()
    pipeline.unet.get_parameter(name).view(-1)[0] = math.nan
    layer, leaf = name.rsplit(".", 1)
    with pytest.raises(NonFiniteError, match=f"The {leaf} of layer {layer} has 1 NaN"):
        _quantize(pipeline)
    assert not any(isinstance(module, QuantizedLayer) for module in pipeline.unet.modules())


def test_quantized_pipeline_can_be_cast_and_integers_stay():
    pipeline = _quantize().pipeline
    before = quantized_digest(pipeline.unet)
    pipeline.to(torch.bfloat16)
    assert pipeline.unet.conv_in.weight.dtype == torch.bfloat16 and quantized_digest(pipeline.unet) == before
    assert torch.isfinite(pipeline("x", num_inference_steps=2, output_type="latent").images).all()


@pytest.mark.parametrize("recipe", ["pcr-w8a8", "minmax-w8a8"])
def test_float_weights_are_let_go_as_layers_are_replaced(recipe, monkeypatch):
    pipeline = tiny_sd()
    chosen = choose_layers(pipeline.unet, Recipe.load(recipe).exclude).chosen
    weights = [weakref.ref(layer.weight) for layer in chosen.values()]
    del chosen
    alive = []

    def noting(*args):
        new = quantize_layer(*args)
        alive.append(sum(weight() is not None for weight in weights))
        return new

    monkeypatch.setattr(run, "quantize_layer", noting)
    halftone.quantize(pipeline, recipe, ["a red cube"], num_inference_steps=1)
    assert alive == list(range(len(weights), 0, -1))


@pytest.fixture
def another_kernel():
    """One that is taken before all others."""

    @register_kernel("linear", "another", ("cpu",), priority=1000)
    def prepare(weights):
        return reference.prepare_linear(weights)

    yield
    registry._KERNELS[:] = [kernel for kernel in registry._KERNELS if kernel.name != "another"]
    registry._choices.clear()


def test_unfinished_work_belongs_to_the_kernels_that_began_it(monkeypatch, tmp_path, another_kernel):
    def stop(done, _):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _quantize(checkpoint_folder=tmp_path / "work", progress=stop)
    monkeypatch.setenv("HALFTONE_KERNELS", "reference")
    with pytest.raises(InputError, match="differs in: kernels"):
        _quantize(checkpoint_folder=tmp_path / "work")


def test_finished_work_belongs_to_what_ran_it(monkeypatch, tmp_path, another_kernel):
    arguments = {"num_inference_steps": 2, "guidance_scale": None, "seed": 0, "batch_size": 4}
    arguments |= {"memory_budget": DEFAULT_MEMORY_BUDGET, "source_sha256": "abc"}
    recipe = Recipe.load("pcr-w8a8")
    result = halftone.quantize(tiny_sd(), recipe, ["x"], **arguments)
    record = result.config.calibration
    assert record["kernels"]["linear, 8 bits"] == "another" and record["attention"] == "diffusers"
    folder = result.save(tmp_path / "out")
    assert find_made(folder, tiny_sd(), recipe, ["x"], **arguments) is not None
    pipeline = tiny_sd()
    use_attention(pipeline.unet, "float")
    assert find_made(folder, pipeline, recipe, ["x"], **arguments) is None, "attention in torch, as Halftone calls it"
    monkeypatch.setenv("HALFTONE_KERNELS", "reference")
    assert find_made(folder, tiny_sd(), recipe, ["x"], **arguments) is None


def test_a_device_that_no_kernel_runs_on_is_told_before_the_work(monkeypatch):
    """As on MPS: here a machine whose kernels do not run on its CPU."""
    monkeypatch.setitem(registry._UNSUITED, "cpu", "it has no float64")
    monkeypatch.setattr(registry, "_choices", {})
    monkeypatch.setattr(quantization, "trace_calls", None)
    with pytest.raises(InputError, match="does not run on 'cpu': it has no float64; choose"):
        _quantize()


def test_record_holds_the_pipelines_default_guidance_and_the_source():
    for given, expected in ((None, 7.5), (2.0, 2.0)):
        result = halftone.quantize(
            tiny_sd(), "pcr-w8a8", ["x"], num_inference_steps=1, guidance_scale=given, source_sha256="abc"
        )
        assert result.config.calibration["guidance_scale"] == expected
        assert result.config.calibration["source_sha256"] == "abc"
