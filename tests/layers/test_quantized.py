"""Quantized layers: numbers, modes, copies, casts, meta construction, and LoRA on top."""

import copy
import math

import pytest
import torch
from oracles import fake_quantize
from torch import nn

from halftone.errors import CalibrationError, InputError, NonFiniteError
from halftone.layers import (
    ExecutionMode,
    QuantizedConv2d,
    QuantizedLinear,
    is_quantizable,
    quantize_layer,
    quantized_layers,
    set_clock,
    set_mode,
)
from halftone.numerics import range_to_qparams
from halftone.timesteps import SlotClock, TimestepSlots

torch.manual_seed(0)
LINEAR = nn.Linear(20, 6)
CONVS = [
    nn.Conv2d(4, 6, 3, padding=1),
    nn.Conv2d(4, 6, (3, 2), stride=2, padding=(2, 1), dilation=(1, 2), groups=2, bias=False),
    nn.Conv2d(4, 6, 1),
    nn.Conv2d(4, 6, (4, 3), padding="same"),
]
FLOATS = [(LINEAR, torch.randn(2, 5, 20)), *((conv, torch.randn(2, 4, 8, 7)) for conv in CONVS)]


def _calibrated(module: nn.Module, x: torch.Tensor, num_bits: int = 8) -> nn.Module:
    layer = quantize_layer(module, 8, 1, "layer")
    layer.set_row(0, range_to_qparams(x.min(), x.max(), num_bits))
    return layer


def _float_with(module: nn.Module, layer: nn.Module) -> nn.Module:
    """The float module with the quantized layer's weights."""
    simulated = copy.deepcopy(module)
    with torch.no_grad():
        simulated.weight.copy_(layer.dequantized_weight())
    return simulated


@pytest.mark.parametrize("module, x", FLOATS)
@pytest.mark.parametrize("num_bits", [6, 8, 10, 16])
def test_integer_mode_equals_simulated_quantization(module, x, num_bits):
    layer = _calibrated(module, x, num_bits)
    simulated = _float_with(module, layer)(fake_quantize(x, range_to_qparams(x.min(), x.max(), num_bits)))
    torch.testing.assert_close(layer(x), simulated, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("module, x", FLOATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_only_mode_needs_no_calibration(module, x, dtype):
    layer = quantize_layer(module, 8, 3, "layer")
    layer.mode = ExecutionMode.WEIGHT_ONLY
    y = layer(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(
        y.float(), _float_with(module, layer)(x), rtol=0.05, atol=0.05 if dtype != x.dtype else 1e-5
    )


@pytest.mark.parametrize("module, x", FLOATS)
def test_attributes_and_types_are_the_float_layers(module, x):
    layer = quantize_layer(module, 8, 1)
    assert isinstance(layer, type(module)) and layer.weight.dtype == torch.int8
    assert not layer.weight.requires_grad and layer.weight.shape == module.weight.shape
    for name in module.__constants__:
        assert getattr(layer, name) == getattr(module, name)
    assert (layer.bias is None) == (module.bias is None)
    assert "weight_num_bits=8" in repr(layer)


def test_uncalibrated_layer_refuses_to_run_and_names_itself():
    layer = quantize_layer(LINEAR, 8, 1, "mid.proj")
    with pytest.raises(CalibrationError, match=r"mid\.proj"):
        layer(torch.randn(1, 20))


@pytest.mark.parametrize("module, x", FLOATS)
@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double()])
def test_scales_stay_float32_when_the_model_is_cast(module, x, cast):
    layer = _calibrated(module, x)
    scales = layer.weight_scale.clone(), layer.input_scale.clone()
    layer(x)
    layer = cast(layer)
    assert layer.weight_scale.equal(scales[0]) and layer.input_scale.equal(scales[1])
    assert layer.weight_scale.dtype == torch.float32 and layer.weight.dtype == torch.int8
    fresh = copy.deepcopy(layer)
    assert layer(x).equal(fresh(x))


@pytest.mark.parametrize("module, x", FLOATS)
def test_state_dict_and_deepcopy_round_trip(module, x):
    layer = _calibrated(module, x)
    expected = layer(x)
    assert copy.deepcopy(layer)(x).equal(expected)
    other = type(layer).empty_like(module, 8, 1)
    other.load_state_dict(layer.state_dict())
    assert other(x).equal(expected)
    names = {"weight", "weight_scale", "input_scale", "input_zero_point", "input_num_bits"}
    assert set(layer.state_dict()) == names | ({"bias"} if module.bias is not None else set())


def test_copies_of_a_model_share_one_clock_of_their_own():
    model = nn.Sequential(*(quantize_layer(nn.Linear(4, 4), 8, 2, str(i)) for i in range(2)))
    set_clock(model, SlotClock(TimestepSlots((1.0, 0.0), (8, 8))))
    twin = copy.deepcopy(model)
    assert twin[0].clock is twin[1].clock is not model[0].clock


def test_replaced_or_loaded_weights_are_noticed():
    x = torch.randn(3, 20)
    layer, other = _calibrated(LINEAR, x), _calibrated(nn.Linear(20, 6), x)
    layer(x)
    layer.load_state_dict(other.state_dict())
    assert layer(x).equal(other(x))
    with torch.no_grad():
        layer.bias.zero_()
        other.bias = nn.Parameter(torch.zeros(6), requires_grad=False)
    assert layer(x).equal(other(x))


def test_weights_below_eight_bits_and_non_finite_ones():
    assert QuantizedLinear.from_float(LINEAR, 4, 1).weight.abs().max() == 7
    broken = nn.Linear(2, 2)
    broken.weight.data[0, 0] = math.nan
    with pytest.raises(NonFiniteError):
        QuantizedLinear.from_float(broken, 8, 1)
    with pytest.raises(InputError, match="2 to 8"):
        QuantizedLinear(2, 2, num_bits=9)


def test_construction_on_meta_then_loading():
    source = nn.Sequential(_calibrated(LINEAR, torch.ones(1)), _calibrated(CONVS[0], torch.ones(1)))
    with torch.device("meta"):
        model = nn.Sequential(QuantizedLinear(20, 6, num_bits=8), QuantizedConv2d(4, 6, 3, padding=1, num_bits=8))
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    model.load_state_dict(source.state_dict(), assign=True)
    x = torch.randn(2, 20)
    assert model[0](x).equal(source[0](x))


def test_construction_under_accelerate_init_empty_weights():
    accelerate = pytest.importorskip("accelerate")
    with accelerate.init_empty_weights():
        layer = QuantizedLinear(20, 6, num_bits=8)
    assert layer.weight.is_meta and layer.weight.dtype == torch.int8 and layer.bias.is_meta


def test_cast_scales_are_caught_before_they_do_harm():
    layer = _calibrated(LINEAR, torch.ones(1))
    layer.weight_scale = layer.weight_scale.to(torch.bfloat16)
    with pytest.raises(InputError, match="something cast them"):
        layer(torch.randn(1, 20))


def test_is_quantizable_gives_a_reason():
    assert is_quantizable(LINEAR) is None and is_quantizable(CONVS[0]) is None
    assert "circular" in str(is_quantizable(nn.Conv2d(1, 1, 3, padding_mode="circular")))
    assert "ReLU" in str(is_quantizable(nn.ReLU()))
    assert "QuantizedLinear" in str(is_quantizable(quantize_layer(LINEAR, 8, 1)))
    with pytest.raises(InputError, match="'act' cannot be quantized"):
        quantize_layer(nn.ReLU(), 8, 1, "act")


def test_iteration_and_modes():
    model = nn.Sequential(nn.ReLU(), quantize_layer(LINEAR, 8, 1), quantize_layer(CONVS[0], 8, 1))
    set_mode(model, ExecutionMode.WEIGHT_ONLY)
    assert [name for name, _ in quantized_layers(model)] == ["1", "2"]
    assert all(layer.mode is ExecutionMode.WEIGHT_ONLY for _, layer in quantized_layers(model))


def test_convolution_called_as_a_float_one_is_a_float_one():
    assert type(QuantizedConv2d(4, 2, 3, padding=1)) is nn.Conv2d


def test_lora_adapters_attach_and_change_the_output():
    peft = pytest.importorskip("peft")

    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = _calibrated(LINEAR, torch.tensor([-3.0, 3.0]))
            self.conv = _calibrated(CONVS[0], torch.tensor([-3.0, 3.0]))

        def forward(self, x, image):
            return self.proj(x).sum() + self.conv(image).sum()

    model, inputs = Tiny(), (torch.randn(2, 20), torch.randn(1, 4, 8, 7))
    before = model(*inputs)
    config = peft.LoraConfig(r=2, target_modules=["proj", "conv"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, model)
    assert isinstance(model.proj.get_base_layer(), QuantizedLinear)
    assert not model(*inputs).equal(before)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    assert model(*inputs).equal(before)
