"""Projections of a constant text: computed once, and never when they would not be what the layer gives."""

import gc

import pytest
import torch
from torch import nn

import halftone
from halftone.attention import use_attention
from halftone.attention.constant_input import ConstantInput
from halftone.layers import ExecutionMode, QuantizedLinear
from halftone.numerics import QParams
from halftone.timesteps import SlotClock, TimestepSlots


def _qparams(scale=0.05, num_bits=8):
    return QParams(torch.tensor(scale), torch.tensor(100), num_bits)


def _layer(monkeypatch, slots=4):
    """A quantized layer, its clock, and the list of inputs that it computed."""
    torch.manual_seed(0)
    layer = QuantizedLinear.from_float(nn.Linear(8, 6), 8, slots)
    for slot in range(slots):
        layer.set_row(slot, _qparams())
    layer.clock = SlotClock(TimestepSlots(tuple(float(10 * i) for i in range(slots)), (8,) * slots))
    layer.clock.set_timestep(0.0)
    computed = []
    run = QuantizedLinear.run_integer
    monkeypatch.setattr(QuantizedLinear, "run_integer", lambda self, x: computed.append(x) or run(self, x))
    return layer, computed


@pytest.fixture
def layer(monkeypatch):
    return _layer(monkeypatch)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_is_computed_once_for_slots_of_equal_rows(layer, mode):
    layer, computed = layer
    constant = ConstantInput()
    with mode():
        x = torch.randn(2, 7, 8)
        expected = layer(x)
        computed.clear()
        for timestep in (0.0, 10.0, 20.0):
            layer.clock.set_timestep(timestep)
            assert torch.equal(constant.apply(layer, x), expected)
    assert len(computed) == 1


def test_a_slot_with_another_row_has_its_own_result(layer):
    layer, computed = layer
    layer.set_row(1, _qparams(num_bits=10, scale=0.0125))
    layer.set_row(2, _qparams(scale=0.1))
    constant, x = ConstantInput(), torch.randn(2, 7, 8)
    with torch.no_grad():
        for timestep in (0.0, 10.0, 20.0, 30.0, 20.0, 10.0):
            layer.clock.set_timestep(timestep)
            expected = layer(x)
            assert torch.equal(constant.apply(layer, x), expected)
        computed.clear()
        constant.apply(layer, x)
    assert not computed


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_notices_that_the_input_was_written_to(layer, mode):
    layer, _ = layer
    constant = ConstantInput()
    with mode():
        x = torch.randn(2, 7, 8)
        constant.apply(layer, x)
        x[0, 0] += 1
        assert torch.equal(constant.apply(layer, x), layer(x))


def test_another_input_is_another_result(layer):
    layer, _ = layer
    constant, x, y = ConstantInput(), torch.randn(2, 7, 8), torch.randn(2, 7, 8)
    with torch.no_grad():
        for each in (x, y, x, x.clone()):
            assert torch.equal(constant.apply(layer, each), layer(each))


def test_notices_changes_of_the_layer(layer):
    layer, _ = layer
    constant, x = ConstantInput(), torch.randn(2, 7, 8)

    def is_current():
        return torch.equal(constant.apply(layer, x), layer(x))

    with torch.no_grad():
        assert is_current()
        layer.bias += 1
        assert is_current()
        layer.weight_scale.mul_(2)
        assert is_current()
        layer.weight.copy_(layer.weight.roll(1, 0))
        assert is_current()
        layer.set_row(0, _qparams(scale=0.2))
        assert is_current()
        layer.mode = ExecutionMode.WEIGHT_ONLY
        assert is_current()
        layer.mode = ExecutionMode.INTEGER
        seen = []
        layer.register_forward_hook(lambda *call: seen.append(call))
        constant.apply(layer, x)
    assert len(seen) == 1, "a hook wants to see every call"


def test_other_layers_are_just_called():
    constant, layer, x = ConstantInput(), nn.Linear(8, 6), torch.randn(3, 8)
    assert torch.equal(constant.apply(layer, x), layer(x))


def test_results_go_with_the_input(layer):
    layer, computed = layer
    constant, x = ConstantInput(), torch.randn(2, 7, 8)
    with torch.no_grad():
        constant.apply(layer, x)
    assert len(constant._results) == 1
    computed.clear()
    del x
    gc.collect()
    assert len(constant._results) == 0 and constant._copy is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_pipeline_projects_its_text_once_an_image(sd_artifact, mode):
    """And paints bit for bit what it painted before."""
    pipeline = halftone.load(sd_artifact)
    pipeline.set_progress_bar_config(disable=True)
    layer = next(m for name, m in pipeline.unet.named_modules() if name.endswith("attn2.to_k"))
    calls = []
    run = type(layer).run_integer
    layer.run_integer = lambda x: calls.append(x) or run(layer, x)

    def paint():
        with mode():
            return pipeline(
                "a red cube",
                num_inference_steps=4,
                output_type="latent",
                generator=torch.Generator().manual_seed(0),
            ).images.clone()

    remembered = paint()
    rows = {(*row,) for row in layer._all_rows()}
    assert len(calls) == len(rows) < 4
    for attn in pipeline.unet.attn_processors.values():
        attn._text = _Forgetful()
    assert torch.equal(paint(), remembered)
    use_attention(pipeline.unet, "auto")
    assert torch.equal(paint(), remembered)


class _Forgetful:
    """Computes every time."""

    def apply(self, layer, x):
        return layer(x)
