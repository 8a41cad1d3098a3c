"""Split convolutions: the same as a whole one in floating point, and two exact products in integers."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from halftone.errors import InputError
from halftone.layers import ExecutionMode, SplitConv2d, quantize_layer, split_convolutions
from halftone.numerics import quantize, range_to_qparams

torch.manual_seed(0)
CONVS = [nn.Conv2d(12, 6, 3, padding=1), nn.Conv2d(12, 6, 1, bias=False), nn.Conv2d(12, 6, 3, 2, (1, 0), 2)]
X = torch.randn(2, 12, 9, 8)
X[:, 5:] *= 30  # the skip connection's range is another one


def _quantized(conv, bits=(8, 8)):
    """Both halves quantized, each by the range of what it sees."""
    split = SplitConv2d.of(conv, 5)
    for name, values, num_bits in (("hidden", X[:, :5], bits[0]), ("skip", X[:, 5:], bits[1])):
        layer = quantize_layer(getattr(split, name), 4, 1, name)
        layer.set_row(0, range_to_qparams(values.min(), values.max(), num_bits))
        setattr(split, name, layer)
    return split


@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_in_floating_point_it_is_the_convolution(conv):
    split = SplitConv2d.of(conv, 5)
    torch.testing.assert_close(split(X), conv(X), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(split(X[0]), conv(X[0]), rtol=1e-5, atol=1e-5)
    assert torch.equal(torch.cat([split.hidden.weight, split.skip.weight], 1), conv.weight)
    assert split.channels == 5 and (split.hidden.bias is None) == (conv.bias is None) and split.skip.bias is None
    assert split.hidden.weight.untyped_storage().data_ptr() != conv.weight.untyped_storage().data_ptr()


def _exact(layer, values, conv):
    """``s * acc`` of a half in float64, its accumulators by an int64 convolution of the codes."""
    scale, zero_point = layer.input_scale.item(), layer.input_zero_point.item()
    codes = quantize(values, scale, zero_point, layer.input_num_bits.item()).long() - zero_point
    acc = functional.conv2d(codes.double(), layer.weight.double(), None, conv.stride, conv.padding, conv.dilation)
    return acc.round() * (layer.weight_scale * scale).double().view(-1, 1, 1)


@pytest.mark.parametrize("conv", CONVS, ids=str)
@pytest.mark.parametrize("bits", [(8, 8), (6, 10)])
def test_in_integers_it_is_the_sum_of_two_exact_products(conv, bits):
    split = _quantized(conv, bits)
    assert not split.hidden.weight_scale.equal(split.skip.weight_scale)
    first, second = _exact(split.hidden, X[:, :5], conv), _exact(split.skip, X[:, 5:], conv)
    bias = torch.zeros(6) if conv.bias is None else conv.bias.detach()
    expected = first + second + bias.double().view(-1, 1, 1)
    magnitude = first.abs() + second.abs() + bias.double().abs().view(-1, 1, 1)
    assert bool(((split(X).double() - expected).abs() <= 8 * 2.0**-24 * magnitude + 1e-30).all())


def test_ranges_of_their_own_lose_less():
    conv = CONVS[1]
    whole = quantize_layer(conv, 8, 1)
    whole.set_row(0, range_to_qparams(X.min(), X.max(), 6))
    split = SplitConv2d.of(conv, 5)
    split.hidden, split.skip = quantize_layer(split.hidden, 8, 1), quantize_layer(split.skip, 8, 1)
    split.hidden.set_row(0, range_to_qparams(X[:, :5].min(), X[:, :5].max(), 6))
    split.skip.set_row(0, range_to_qparams(X[:, 5:].min(), X[:, 5:].max(), 6))
    small = X.clone()
    small[:, 5:] = 0  # what the smaller half says
    errors = [float((layer(small) - conv(small)).detach().square().mean()) for layer in (split, whole)]
    assert errors[0] < 0.05 * errors[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_added_before_they_are_rounded_to_the_inputs_dtype(dtype):
    split = _quantized(CONVS[0]).to(dtype)
    y, exact = split(X.to(dtype)), split(X.to(dtype).float())
    assert y.dtype == dtype and y.equal(exact.to(dtype))
    for layer in (split.hidden, split.skip):
        layer.mode = ExecutionMode.WEIGHT_ONLY
    assert split(X.to(dtype)).dtype == dtype


@pytest.mark.parametrize("left_out", ["hidden", "skip"])
def test_one_half_may_stay_in_floating_point(left_out):
    """In bfloat16 too: the half in integers gives float32, the other one bfloat16, and the sum is rounded once."""
    split, plain = _quantized(CONVS[0]), SplitConv2d.of(CONVS[0], 5)
    setattr(split, left_out, getattr(plain, left_out))
    split, x = split.to(torch.bfloat16), X.to(torch.bfloat16)
    parts = {"hidden": split.hidden, "skip": split.skip}
    inputs = {"hidden": x[:, :5], "skip": x[:, 5:]}
    outputs = {name: part(inputs[name] if name == left_out else inputs[name].float()) for name, part in parts.items()}
    assert outputs[left_out].dtype == torch.bfloat16
    expected = (outputs["hidden"].float() + outputs["skip"].float()).to(torch.bfloat16)
    assert split(x).dtype == torch.bfloat16 and split(x).equal(expected)


def test_copies_states_and_iteration():
    split = _quantized(CONVS[0])
    assert copy.deepcopy(split)(X).equal(split(X))
    other = SplitConv2d.of(CONVS[0], 5)
    other.hidden, other.skip = quantize_layer(other.hidden, 4, 1), quantize_layer(other.skip, 4, 1)
    other.load_state_dict(split.state_dict())
    assert other(X).equal(split(X))
    model = nn.Sequential(nn.ReLU(), split)
    assert [(name, found is split) for name, found in split_convolutions(model)] == [("1", True)]
    with torch.device("meta"):
        conv = nn.Conv2d(12, 6, 3)
    assert SplitConv2d.of(conv, 5).skip.weight.is_meta


@pytest.mark.parametrize("conv, channels", [(CONVS[0], 0), (CONVS[0], 12), (nn.Conv2d(4, 4, 1, groups=2), 2)])
def test_what_cannot_be_split(conv, channels):
    with pytest.raises(InputError, match="cannot be split at"):
        SplitConv2d.of(conv, channels)
