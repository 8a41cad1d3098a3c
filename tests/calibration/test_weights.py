"""Rounding before the lockstep: which inputs are seen, what memory does, resuming, failing, counting."""

import itertools
import math

import pytest
import torch
from pipelines import BUILDERS, denoiser_of, tiny_sd, tiny_sd3

import halftone
from halftone.artifact.config import quantized_digest
from halftone.calibration import CalibrationSettings, weights
from halftone.calibration.checkpoint import Checkpoint
from halftone.calibration.run import make_slots
from halftone.calibration.trace import trace_calls
from halftone.calibration.trajectory import sample_trajectory, spread
from halftone.calibration.weights import find_units, round_weights
from halftone.denoiser import choose_layers, find_denoiser
from halftone.errors import CalibrationError, InputError, NonFiniteError
from halftone.layers import quantized_layers
from halftone.numerics import quantize_weight
from halftone.rounding import AdaRound
from halftone.timesteps import SlotClock

PROMPTS = ("a red cube", "a blue ball", "x")
SHORT = {
    "gptq": {"num_samples": 6},
    "adaround": {"num_samples": 6, "iterations": 30, "batch_size": 4},
}


def _recipe(rounding, num_bits=4, calibration="progressive", **options):
    scheme = {"num_bits": num_bits, "rounding": rounding, "rounding_options": {**SHORT[rounding], **options}}
    return halftone.Recipe.from_dict({"weights": scheme, "calibration": calibration})


def _quantize(rounding, folder=None, pipeline=None, steps=2, **arguments):
    recipe = arguments.pop("recipe", None) or _recipe(rounding)
    pipeline = pipeline or tiny_sd()
    return halftone.quantize(
        pipeline, recipe, PROMPTS, num_inference_steps=steps, checkpoint_folder=folder, **arguments
    )


def _parts(pipeline, recipe, steps=4, prompts=PROMPTS, **settings):
    denoiser = find_denoiser(pipeline)
    chosen = CalibrationSettings(tuple(prompts), num_inference_steps=steps, guidance_scale=4.0, **settings)
    trace = trace_calls(pipeline, denoiser, chosen)
    return pipeline, denoiser, recipe, chosen, trace, SlotClock(make_slots(recipe, trace))


def _rounded(pipeline, recipe, **settings):
    pipeline, denoiser, recipe, *rest = _parts(pipeline, recipe, **settings)
    names = tuple(choose_layers(denoiser.module, recipe.exclude).chosen)
    return round_weights(pipeline, denoiser, names, recipe, *rest, Checkpoint(None, {}))


class _Interrupt(Exception):
    pass


def _stop_after(steps):
    def progress(done, total):
        if done == steps:
            raise _Interrupt

    return progress


def test_samples_go_evenly_through_steps_and_in_turn_through_prompts():
    assert spread(6, 3, 4) == ((0, 1), (2, 3), (0, 1))
    assert spread(2, 4, 3) == ((), (0,), (), (1,))
    assert spread(100, 2, 3) == spread(10**15, 2, 3) == ((0, 1, 2), (0, 1, 2))
    counts = [len(prompts) for prompts in spread(25, 50, 10)]
    assert sum(counts) == 25 and max(counts) == 1


@pytest.mark.parametrize("name", BUILDERS)
def test_samples_are_the_arguments_of_the_full_precision_trajectory(name):
    pipeline = BUILDERS[name]()
    seen, module = [], denoiser_of(pipeline)
    handle = module.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args, dict(kwargs))), with_kwargs=True
    )
    parts = _parts(pipeline, _recipe("gptq"), batch_size=3)
    seen.clear()
    samples = sample_trajectory(*parts, 4, Checkpoint(None, {}))
    handle.remove()
    assert samples.passes_per_prompt == 4 and samples.rows == 8 and len(samples.calls) == 4
    for prompt, whole, kept in zip((0, 1, 2, 0), seen, samples.calls, strict=True):
        flat, few = (torch.utils._pytree.tree_leaves(call) for call in (whole, kept))
        for one, other in zip(flat, few, strict=True):
            if isinstance(one, torch.Tensor):
                assert not other.is_inference()
                expected = one[[prompt, 3 + prompt]] if one.dim() and one.shape[0] == 6 else one
                assert torch.equal(other, expected)


def test_units_are_blocks_and_what_lies_outside_of_them():
    module = tiny_sd().unet
    names = tuple(choose_layers(module, halftone.Recipe().exclude).chosen)
    single = find_units(module, names, blocks=False)
    assert [unit.name for unit in single] == list(names) and all(unit.is_layer for unit in single)
    units = find_units(module, names, blocks=True)
    assert sorted(layer for unit in units for layer in unit.layers) == sorted(names)
    kinds = {type(unit.module).__name__ for unit in units}
    assert kinds == {"ResnetBlock2D", "BasicTransformerBlock", "Conv2d"}
    resnet = next(unit for unit in units if unit.name == "mid_block.resnets.0")
    assert list(resnet.layers) == [f"mid_block.resnets.0.{leaf}" for leaf in ("conv1", "time_emb_proj", "conv2")]
    transformer = tiny_sd3().transformer
    names = tuple(choose_layers(transformer, halftone.Recipe().exclude).chosen)
    found = {unit.name for unit in find_units(transformer, names, blocks=True) if not unit.is_layer}
    assert found == {"transformer_blocks.0", "transformer_blocks.1"}


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("rounding", SHORT)
@pytest.mark.parametrize("calibration", ["progressive", "full_precision"])
def test_every_pipeline_is_rounded_and_round_trips(name, rounding, calibration, tmp_path):
    recipe = _recipe(rounding, calibration=calibration)
    result = _quantize(rounding, pipeline=BUILDERS[name](), recipe=recipe)
    original = denoiser_of(BUILDERS[name]())
    layers = dict(quantized_layers(denoiser_of(result.pipeline)))
    changed = 0
    for layer_name, layer in layers.items():
        integers, scale = quantize_weight(original.get_submodule(layer_name).weight, 4)
        assert torch.equal(layer.weight_scale, scale) and int(layer.weight.abs().max()) <= 7
        changed += not torch.equal(layer.weight, integers)
    assert changed > len(layers) / 2
    loaded = halftone.load(result.save(tmp_path / "out"))
    assert quantized_digest(denoiser_of(loaded)) == quantized_digest(denoiser_of(result.pipeline))


def test_passes_are_those_that_happened(monkeypatch):
    """Trajectory, a first micro-batch for sizes (the first call keeps one prompt of three), and all samples once."""
    pipeline, rows = tiny_sd(), []
    recipe = _recipe("gptq", num_samples=3)
    pipeline.unet.conv_in.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    result = _quantize("gptq", pipeline=pipeline, recipe=recipe, guidance_scale=4.0)
    record = result.config.calibration
    assert record["rounding_passes_per_prompt"] == pytest.approx(2 + 1 / 3 + 3 / 3)
    assert record["denoiser_passes_per_prompt"] == pytest.approx(sum(rows) / 6)
    nearest = halftone.quantize(tiny_sd(), "pcr-w8a8", PROMPTS, num_inference_steps=2).config.calibration
    assert (nearest["denoiser_passes_per_prompt"], nearest["rounding_passes_per_prompt"]) == (4, 0)


def test_less_memory_is_more_passes_and_the_same_integers():
    large = _rounded(tiny_sd(), _recipe("gptq"))
    small = _rounded(tiny_sd(), _recipe("gptq"), memory_budget=100_000)
    assert small.passes_per_prompt > large.passes_per_prompt
    assert large.integers.keys() == small.integers.keys()
    assert all(torch.equal(large.integers[name][0], small.integers[name][0]) for name in large.integers)


def test_budget_holds_for_what_is_kept_at_a_time(monkeypatch):
    """Blocks whose calls alone pass the budget keep fewer rows of them; no walk keeps more than the budget, except for
    one unit by itself (a single row, or a layer's moments)."""
    kept, budget = [], 40_000
    collect = weights._Rounding._collect

    def noting(self, units):
        seen = collect(self, units)
        sizes = [
            sum(leaf.nbytes for leaf in torch.utils._pytree.tree_leaves(found._calls) if isinstance(leaf, torch.Tensor))
            if hasattr(found, "_calls")
            else found.total.nbytes
            for found in seen.values()
        ]
        kept.append((sizes, [found.kept for found in seen.values() if hasattr(found, "kept")]))
        return seen

    monkeypatch.setattr(weights._Rounding, "_collect", noting)
    _rounded(tiny_sd(), _recipe("adaround", num_samples=12, iterations=2), memory_budget=budget)
    assert len(kept) > 1 and all(sum(sizes) <= budget or len(sizes) == 1 for sizes, _ in kept)
    rows = [number for _, counts in kept for number in counts]
    assert max(rows) <= 24 and 1 <= min(rows) < 24


@pytest.mark.parametrize("rounding", SHORT)
@pytest.mark.parametrize("budget", [2**31, 200_000])
def test_interrupted_rounding_ends_in_the_same_bytes(rounding, budget, tmp_path):
    whole = _quantize(rounding, memory_budget=budget)
    totals = []
    for stop in (1, 2, 3, 4, 9, 10**9):  # two calls of the trajectory, then layers and blocks
        stopping = _stop_after(stop)

        def progress(done, total, stopping=stopping):
            totals.append(total)
            stopping(done, total)

        try:
            resumed = _quantize(rounding, tmp_path / "steps", memory_budget=budget, progress=progress)
        except _Interrupt:
            continue
    assert resumed.rounding.resumed_calls == 2 and resumed.rounding.resumed_units == 9 - 2
    assert resumed.config == whole.config
    assert quantized_digest(resumed.pipeline.unet) == quantized_digest(whole.pipeline.unet)
    assert len(set(totals)) == 1
    resumed.save(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(InputError, match="differs in: memory_budget"):
        with pytest.raises(_Interrupt):
            _quantize(rounding, tmp_path / "again", progress=_stop_after(3))
        _quantize(rounding, tmp_path / "again", memory_budget=10**6)


@pytest.mark.parametrize("rounding", SHORT)
def test_numbers_that_are_not_finite_name_the_unit_and_keep_the_finished_ones(rounding, tmp_path, monkeypatch):
    name = "mid_block.resnets.0"
    name = name if rounding == "adaround" else f"{name}.conv1"
    collect = weights._Rounding._collect

    def spoil(self, units):
        seen = collect(self, units)
        if name in seen and rounding == "adaround":
            seen[name]._calls[0][2][0] = math.nan
        elif name in seen:
            seen[name].total[0, 0, 0] = math.nan
        return seen

    with monkeypatch.context() as patch:
        patch.setattr(weights._Rounding, "_collect", spoil)
        with pytest.raises(NonFiniteError, match=name.replace(".", r"\.")) as caught:
            _quantize(rounding, tmp_path / "steps")
    assert "\n" not in str(caught.value)
    finished = len(list((tmp_path / "steps").glob("rounded-*.safetensors")))
    assert finished > 3
    resumed = _quantize(rounding, tmp_path / "steps")
    assert resumed.rounding.resumed_units == finished
    assert resumed.config == _quantize(rounding).config


def test_nan_in_the_optimization_itself(monkeypatch, tmp_path):
    rounded = AdaRound.round

    def spoil(self, unit, *rest):
        if unit.name == "mid_block.resnets.0":
            monkeypatch.setattr("halftone.rounding.soft._undecided", lambda fraction, beta: fraction.sum() * math.nan)
        return rounded(self, unit, *rest)

    monkeypatch.setattr(AdaRound, "round", spoil)
    with pytest.raises(
        NonFiniteError, match=r"rounding of mid_block\.resnets\.0 became NaN or infinite in iteration 7"
    ):
        _quantize("adaround", tmp_path / "steps")
    assert len(list((tmp_path / "steps").glob("rounded-*.safetensors"))) > 3


def test_stages_are_told_with_what_was_replayed(tmp_path):
    """Trajectory, walk, units in order, lockstep; the walk of units of which some are left is not replayed."""

    def run(stop=None):
        told = []

        def follow(advance):
            told.append(advance)
            if len(told) == stop:
                raise _Interrupt

        _quantize("gptq", tmp_path / "steps", follow=follow)
        return told

    units = 79
    with pytest.raises(_Interrupt):
        run(stop=2 + 2 + 5)
    told = run()
    assert [advance.stage for advance in told] == (
        ["full precision"] * 2 + ["looking at inputs"] * 2 + ["rounding"] * units + ["calibrating"] * 2
    )
    assert [advance.replayed for advance in told] == [True] * 2 + [False] * 2 + [True] * 5 + [False] * (units - 5 + 2)
    rounding = told[4 : 4 + units]
    for one, after in itertools.pairwise(rounding):
        assert one.left == pytest.approx(after.left + after.work) and after.work > 0
    assert rounding[-1].left == 0 and len({advance.work for advance in rounding}) > 3
    assert all(advance.replayed for advance in run())


def test_announcement_tells_what_is_left(tmp_path):
    said = []
    with pytest.raises(_Interrupt):
        _quantize("gptq", tmp_path / "steps", announce=said.append, progress=_stop_after(2 + 5))
    with pytest.raises(_Interrupt):
        _quantize("gptq", tmp_path / "steps", announce=said.append, progress=_stop_after(2 + 79 + 1))
    _quantize("gptq", tmp_path / "steps", announce=said.append)
    told = " How long the rounding itself takes is told with its first unit."
    assert "gptq rounds 79 layers and blocks, with about 5 passes a prompt in about " in said[0]
    assert "gptq rounds 79 layers and blocks (5 of them done)" in said[1]
    assert said[0].endswith(told) and said[1].endswith(told) and "done" not in said[0]
    assert said[2].startswith("12 passes through the denoiser, 6 of them done: about ")
    assert "(79 of them done)" in said[2] and not said[2].endswith(told)


def test_layer_that_is_never_called_is_named():
    pipeline = tiny_sd()
    pipeline.unet.idle = torch.nn.Linear(4, 4)
    with pytest.raises(CalibrationError, match=r"idle is never called .* exclude list"):
        _quantize("gptq", pipeline=pipeline)


def test_layer_that_is_never_called_is_named_before_the_trajectory_where_it_is_announced():
    pipeline, passes = tiny_sd(), []
    pipeline.unet.idle = torch.nn.Linear(4, 4)
    with pytest.raises(CalibrationError, match=r"idle is never called .* exclude list"):
        _quantize("gptq", pipeline=pipeline, announce=lambda said: None, progress=lambda *done: passes.append(done))
    assert not passes


def test_the_pipeline_is_left_as_it_was():
    pipeline = tiny_sd()
    before = {name: tensor.clone() for name, tensor in pipeline.unet.state_dict().items()}
    pipeline.unet.train()
    rounded = _rounded(pipeline, _recipe("adaround"))
    assert pipeline.unet.training and rounded.integers
    assert all(torch.equal(before[name], tensor) for name, tensor in pipeline.unet.state_dict().items())
    assert not any(module._forward_hooks for module in pipeline.unet.modules())


def test_scale_by_search_goes_with_every_rounding():
    for rounding in ("nearest", "gptq"):
        options = SHORT.get(rounding, {})
        scheme = {"num_bits": 4, "scale": "mse", "rounding": rounding, "rounding_options": options}
        result = _quantize(rounding, recipe=halftone.Recipe.from_dict({"weights": scheme}))
        original, clipped = tiny_sd().unet, 0
        for name, layer in quantized_layers(result.pipeline.unet):
            weight = original.get_submodule(name).weight
            scale = halftone.rounding.weight_scale(weight, 4, "mse")
            assert torch.equal(layer.weight_scale, scale)
            if rounding == "nearest":
                assert torch.equal(layer.weight, quantize_weight(weight, 4, scale)[0])
            clipped += bool((scale < quantize_weight(weight, 4)[1]).any())
        assert clipped


def test_bfloat16_pipelines_are_rounded_in_float32():
    pipeline = tiny_sd().to(torch.bfloat16)
    for rounding in SHORT:
        rounded = _rounded(pipeline, _recipe(rounding))
        assert all(
            scale.dtype == torch.float32 and value.dtype == torch.int8 for value, scale in rounded.integers.values()
        )
