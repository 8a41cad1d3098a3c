"""The scan for protected layers: errors against closed forms, the budget, what is told, resuming, its limits."""

import math
import re
import weakref

import numpy as np
import pytest
import torch
from pipelines import denoiser_of, tiny_sd, tiny_sd3, tiny_sdxl
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import halftone
from halftone.artifact.inspection import inspect_artifact
from halftone.calibration import CalibrationSettings, protection_scan
from halftone.calibration.checkpoint import Checkpoint
from halftone.calibration.protection_scan import ProtectionPlan, counting, find_protected_layers
from halftone.calibration.trace import trace_calls
from halftone.cli.inspect import _lines
from halftone.denoiser import choose_layers, find_denoiser
from halftone.errors import NonFiniteError
from halftone.recipe import DEFAULT_EXCLUDE
from halftone.weight_grid import WeightGrid

PROMPTS = ("a red cube", "a blue ball", "red red", "blue", "cube ball")
STEPS = 4
FEW = [*DEFAULT_EXCLUDE, "down_blocks", "up_blocks", "transformer_blocks.0"]  # so few layers are left that it is quick
TOKEN = {"activations": {"granularity": "token"}, "calibration": "none"}


def _recipe(operations=0.3, **data):
    protect = {"layers": "auto", "operations": operations}
    return halftone.Recipe.from_dict({"exclude": FEW, **data, "protect": protect})


def _quantize(recipe, pipeline=None, folder=None, **arguments):
    return halftone.quantize(
        pipeline or tiny_sd(), recipe, PROMPTS, num_inference_steps=STEPS, checkpoint_folder=folder, **arguments
    )


def _paint(pipeline):
    generator = torch.Generator().manual_seed(7)
    return pipeline(prompt="a red cube", num_inference_steps=3, generator=generator, output_type="np").images


def _identity():
    layer = nn.Linear(8, 8, bias=False)
    layer.weight.data = torch.eye(8)
    return layer


def _sum_sd(terms, seen=None):
    """A pipeline whose denoiser predicts a sum of layers of the latents, each with a factor.

    Args:
        terms: name -> (factor, layer).
        seen: gets the latents of every call.
    """
    pipeline = tiny_sd()
    for name, (_, layer) in terms.items():
        pipeline.unet.add_module(name, layer)

    def forward(sample, *_, **__):
        if seen is not None:
            seen.append(sample.clone())
        return (sum(factor * layer(sample) for factor, layer in terms.values()),)

    pipeline.unet.forward = forward
    return pipeline


def _identities_sd(**factors):
    """All layers are the identity, which is on every grid: they make errors of their inputs alone."""
    return _sum_sd({name: (factor, _identity()) for name, factor in factors.items()})


def _scan(pipeline, names, recipe, steps=STEPS):
    settings = CalibrationSettings(PROMPTS, steps, guidance_scale=1.0)
    denoiser = find_denoiser(pipeline)
    trace = trace_calls(pipeline, denoiser, settings)
    return find_protected_layers(pipeline, denoiser, names, recipe, settings, trace, Checkpoint(None, {}))


def test_the_layer_of_the_largest_error_is_found():
    """The same error, times a factor for each layer: alone the squares of the factors tell, together their sums."""
    found = _scan(_identities_sd(a=0.1, b=0.5, c=0.1, d=0.1), "abcd", _recipe(0.25))
    assert list(found.layers) == ["b"] == list(found.tried)
    assert found.layers["b"].error == pytest.approx(0.25 / 0.28, rel=1e-3)
    assert found.layers["b"].operations == 0.25
    assert found.protected / found.all_quantized == pytest.approx(0.3 / 0.8, rel=1e-3)
    told = "protected: alone it makes 89 % of the layers' squared error with 25 % of their multiplications"
    assert found.reasons() == {"b": told}
    assert (found.prompts, found.calls, found.passes) == (2, (0, 1, 2, 3), 4 + 4 * (4 + 2))


def test_what_gains_nothing_is_not_protected():
    """Two errors that cancel: without one of them the other is left."""
    found = _scan(_identities_sd(a=0.5, b=-0.5, c=0.2), "abc", _recipe(0.34))
    assert not found.layers and len(found.tried) == 1 and not found.reasons()
    assert found.protected > 1.4 * found.all_quantized
    assert found.to_dict()["tried"] == list(found.tried)


def _through_codes(x, dims, bits):
    """Rounded to the range over some dimensions, written down once more."""
    lo, hi = x.amin(dims, keepdim=True).clamp(max=0), x.amax(dims, keepdim=True).clamp(min=0)
    scale = (hi - lo) / (2**bits - 1)
    zero = torch.round(-lo / scale)
    return ((torch.round(x / scale) + zero).clamp(0, 2**bits - 1) - zero) * scale


def _convolution():
    layer = nn.Conv2d(4, 4, 1, bias=False)
    layer.weight.data = torch.eye(4)[:, :, None, None]
    return layer


@pytest.mark.parametrize(
    "layer, data, dims",
    [
        (_identity, {}, (0, 1, 2, 3)),
        (_identity, {"activations": {"granularity": "tensor"}, "calibration": "full_precision"}, (0, 1, 2, 3)),
        (_identity, TOKEN, (3,)),
        (_convolution, TOKEN, (1, 2, 3)),
    ],
)
def test_inputs_are_rounded_at_the_range_of_the_call(layer, data, dims):
    """Of a row, or an image, of its own for granularity 'token'."""
    data = {**data, "activations": {**data.get("activations", {}), "num_bits": 5}}
    seen = []
    found = _scan(_sum_sd({"only": (0.8, layer())}, seen), ["only"], _recipe(**data))
    inputs = seen[:STEPS]
    errors = sum(float((_through_codes(x, dims, 5) - x).square().sum()) for x in inputs)
    expected = math.sqrt(errors / sum(float(x.square().sum()) for x in inputs))
    assert found.all_quantized == pytest.approx(expected, rel=2e-3)
    assert found.protected == found.all_quantized and not found.tried  # an only layer has just its fair share


def test_weights_are_rounded_on_the_grid_of_the_recipe():
    generator = torch.Generator().manual_seed(0)
    layers = {name: nn.Linear(8, 8, bias=False) for name in "abc"}
    for layer, size in zip(layers.values(), (1.0, 0.3, 0.1), strict=True):
        layer.weight.data = size * torch.randn(8, 8, generator=generator)
    seen = []
    pipeline = _sum_sd({name: (0.2, layer) for name, layer in layers.items()}, seen)
    found = _scan(pipeline, "abc", _recipe(0.4, weights={"num_bits": 3}, activations={"num_bits": 16}))
    squares = {}
    for name, layer in layers.items():
        scale = layer.weight.abs().amax(1, keepdim=True) / 3
        change = (torch.round(layer.weight / scale) * scale - layer.weight).detach()
        squares[name] = sum(float((x @ change.T).square().sum()) for x in seen[:STEPS])
    assert list(found.layers) == ["a"]
    assert found.layers["a"].error == pytest.approx(squares["a"] / sum(squares.values()), rel=1e-3)


def test_multiplications_are_those_of_the_products():
    unet = tiny_sd().unet
    layers = {name: one for name, one in unet.named_modules() if isinstance(one, nn.Linear | nn.Conv2d)}
    counts, flops = dict.fromkeys(layers, 0), FlopCounterMode(display=False)
    with torch.no_grad(), counting(layers, counts), flops:
        unet(torch.randn(2, 4, 8, 8), 5, torch.randn(2, 77, 16))
    aten, found = torch.ops.aten, flops.get_flop_counts()["Global"]
    products = sum(found.get(kind, 0) for kind in (aten.convolution, aten.addmm, aten.mm))
    assert all(counts.values()) and 2 * sum(counts.values()) == products


def test_a_grouped_convolution_multiplies_less():
    layers = {"one": nn.Conv2d(4, 8, 3, groups=2)}
    counts = {"one": 0}
    with torch.no_grad(), counting(layers, counts):
        layers["one"](torch.randn(5, 4, 6, 6))
    assert counts["one"] == 5 * 8 * 4 * 4 * (2 * 9)


@pytest.mark.parametrize("steps, calls", [(1, (0,)), (2, (0, 1)), (7, (0, 2, 4, 6))])
def test_calls_are_spread_over_the_trajectory(steps, calls):
    found = _scan(_identities_sd(a=0.5, b=0.1), "ab", _recipe(0.5), steps)
    assert found.calls == calls and found.passes == steps + len(calls) * (2 + 2) and list(found.layers) == ["a"]


def test_the_model_is_left_as_it_was_and_one_layers_weights_are_copied_at_a_time(monkeypatch):
    values, alive = WeightGrid.values, []

    def watched(grid, codes):
        assert not [one for one in alive if one() is not None]
        alive[:] = [weakref.ref(found := values(grid, codes))]
        return found

    monkeypatch.setattr(WeightGrid, "values", watched)
    pipeline = tiny_sd()
    unet = pipeline.unet
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    names = [name for name, one in unet.mid_block.named_modules(prefix="mid_block") if isinstance(one, nn.Linear)]
    _scan(pipeline, names, _recipe())
    assert alive and all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    for module in unet.modules():
        assert "forward" not in module.__dict__
        assert not (module._forward_hooks or module._forward_pre_hooks)


@pytest.mark.parametrize("build", [tiny_sd, tiny_sdxl, tiny_sd3])
def test_the_choice_is_what_runs_and_what_is_told(build, tmp_path):
    result = _quantize(_recipe(), build())
    protected, config = result.protected, result.config
    assert protected.layers and not set(protected.layers) & set(config.layers)
    assert sum(shares.operations for shares in protected.layers.values()) <= 0.3 + 1e-5
    layers = len(config.layers) + len(protected.layers)
    assert all(shares.error > 1 / layers for shares in protected.layers.values())
    assert protected.protected < protected.all_quantized
    for name in protected.layers:
        assert type(denoiser_of(result.pipeline).get_submodule(name)) in (nn.Linear, nn.Conv2d)
        assert config.left_out[name].startswith("protected: alone it makes ")
    assert config.to_dict()["format_version"] == 4  # an older release knows no such key of a recipe
    folder = result.save(tmp_path / "out")
    facts = inspect_artifact(folder)
    told = facts["calibration"]
    assert told["protected"]["layers"].keys() == protected.layers.keys()
    assert told["protected"]["prediction_error"]["protected"] == protected.protected
    # 2 passes of each of 5 prompts at 4 calls; of 2 prompts: the trajectory, each layer and twice all of them at 4
    assert told["denoiser_passes_per_prompt"] == 2 * STEPS + (STEPS + STEPS * (layers + 2)) * 2 / 5
    text = "\n".join(_lines(facts))
    assert re.search(r"\nprotected    \d+ layers? in floating point, with [\d.]+ % of the multiplications; error", text)
    assert all(f"  {name}: {reason}" in text for name, reason in protected.reasons().items())
    assert np.array_equal(_paint(halftone.load(folder)), _paint(result.pipeline))


def test_a_budget_too_small_for_any_layer_protects_none(tmp_path):
    result = _quantize(_recipe(1e-6))
    plain = _quantize({"exclude": FEW})
    assert not result.protected.layers and result.protected.passes == STEPS + STEPS * (len(result.config.layers) + 1)
    assert result.config.layers == plain.config.layers and result.config.digest == plain.config.digest
    text = "\n".join(_lines(inspect_artifact(result.save(tmp_path / "out"))))
    assert "protected    nothing: no layer within the budget makes more than its fair share of the error" in text


def test_what_gained_nothing_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(protection_scan._Scan, "_together", lambda self, spared, known=None: 1.0 + (known is not None))
    result = _quantize(_recipe())
    assert not result.protected.layers and result.protected.tried
    facts = inspect_artifact(result.save(tmp_path / "out"))
    assert facts["calibration"]["protected"]["tried"] == list(result.protected.tried)
    assert re.search(r"\nprotected    nothing: with \d+ layers? in floating point the error", "\n".join(_lines(facts)))


def test_without_it_nothing_changes():
    result = _quantize({"exclude": FEW})
    assert result.protected is None and "protected" not in result.config.calibration
    stored = result.config.to_dict()
    assert stored["format_version"] == 3 and "protect" not in stored["recipe"]


@pytest.mark.parametrize(
    "data",
    [
        TOKEN,
        {"activations": {"granularity": "tensor"}, "calibration": "full_precision"},
        {"correction": {"kind": "bias"}},
        {"correction": {"kind": "drift", "gain": "least_squares"}},
        {"relax": {"fraction": 0.25, "side": "auto", "bits": 12}},
        {"weights": {"num_bits": 4, "rounding": "gptq", "rounding_options": {"num_samples": 4}}},
        {"weights": {"num_bits": 4, "granularity": "group", "group_size": 32, "symmetric": False, "scale": "mse"}},
        {"activations": {"num_bits": 6, "symmetric": True, "observer": {"name": "percentile"}}},
    ],
)
def test_it_goes_with_everything_else_that_a_recipe_asks_for(data, tmp_path):
    counts = []
    result = _quantize(_recipe(**data), progress=lambda done, total: counts.append((done, total)))
    assert result.protected.layers and counts[-1][0] == counts[-1][1] == len(counts)
    assert not set(result.protected.layers) & set(result.config.layers)
    folder = result.save(tmp_path / "out")
    assert np.array_equal(_paint(halftone.load(folder)), _paint(result.pipeline))


def test_half_of_a_split_convolution_may_be_protected(monkeypatch, tmp_path):
    half = "up_blocks.1.resnets.0.conv1.skip"
    monkeypatch.setattr(protection_scan, "most_harmful", lambda errors, operations: (half,))
    others = [name for name in choose_layers(tiny_sd().unet, DEFAULT_EXCLUDE).chosen if not half.startswith(f"{name}.")]
    exclude = [*DEFAULT_EXCLUDE, *others]  # so that this half lowers the error for certain
    result = _quantize(_recipe(exclude=exclude, split_shortcuts=True))
    assert list(result.protected.layers) == [half] and half.replace("skip", "hidden") in result.config.layers
    folder = result.save(tmp_path / "out")
    assert np.array_equal(_paint(halftone.load(folder)), _paint(result.pipeline))


class _Interrupt(Exception):
    pass


@pytest.mark.parametrize("data", [{}, TOKEN, {"weights": {"num_bits": 4, "symmetric": False}}])
def test_an_interrupted_scan_goes_on(data, tmp_path):
    whole = _quantize(_recipe(**data))
    layers = len(whole.config.layers) + len(whole.protected.layers)
    pieces = len(ProtectionPlan(STEPS, 2, (0, 1, 2, 3), layers).works)
    assert pieces == STEPS + layers + 2
    calls = 0 if data == TOKEN else STEPS
    for stop in (1, STEPS, STEPS + 1, STEPS + layers, pieces - 1, pieces, pieces + 1):
        if stop > pieces + calls:
            continue

        def progress(done, total, stop=stop):
            assert total == pieces + calls
            if done == stop:
                raise _Interrupt

        folder = tmp_path / str(stop)
        with pytest.raises(_Interrupt):
            _quantize(_recipe(**data), folder=folder, progress=progress)
        resumed = _quantize(_recipe(**data), folder=folder)
        assert resumed.config == whole.config
        assert resumed.protected.resumed_pieces == min(stop, pieces)
    resumed.save(tmp_path / "out")
    assert not folder.exists()


def test_infinite_activations_are_told_with_layer_and_step():
    with pytest.raises(NonFiniteError, match=r"layer only .* in step 2 of 4|The output of the denoiser has .* in step"):
        _scan(_identities_sd(only=1e38), ["only"], _recipe())


def test_a_layer_whose_rounding_overflows_is_told():
    """5.2 * 6e37 in full precision; with 2 bits all weights become 1, and 8 * 6e37 is no float32."""
    layer = nn.Linear(8, 8, bias=False)
    layer.weight.data = torch.full((8, 8), 0.6)
    layer.weight.data[:, 0] = 1.0
    pipeline = tiny_sd()
    pipeline.unet.add_module("fine", _identity())
    pipeline.unet.add_module("over", layer)
    pipeline.unet.forward = lambda sample, *_, **__: (
        0.1 * pipeline.unet.get_submodule("fine")(sample) + layer(torch.full_like(sample, 6e37)) / 1e38,
    )
    with pytest.raises(NonFiniteError, match=r"in step 1 of 4 \(timestep \d+\), with layer over rounded"):
        _scan(pipeline, ["fine", "over"], _recipe(weights={"num_bits": 2}))


def test_weights_that_are_not_finite_are_told():
    pipeline = _identities_sd(only=0.5)
    pipeline.unet.get_submodule("only").weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="weight of layer only has 1 NaN"):
        _scan(pipeline, ["only"], _recipe())


@pytest.mark.parametrize("data", [{}, TOKEN])
def test_it_is_announced(data, tmp_path):
    said = []
    result = _quantize(_recipe(**data), folder=tmp_path / "steps", announce=said.append)
    passes = result.protected.passes
    assert f"First, the protected layers are chosen with {passes} passes of 2 prompts in about" in said[0]
    _quantize(_recipe(**data), folder=tmp_path / "steps", announce=said.append)
    assert f"with {passes} passes of 2 prompts, {passes} of them done, in about 0 s." in said[1]
