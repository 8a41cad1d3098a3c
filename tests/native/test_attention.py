"""The native attention against torch's in float64: errors, shapes, strides, odd numbers, threads, refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from halftone.errors import InputError
from halftone.native import attention as native

runs_here = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
PRECISIONS = ("bfloat16", "int8")


def _inputs(shape, dtype=torch.float32, seed=0):
    """Normally distributed queries, keys and values: shape is (batch, heads, queries, keys, head_dim)."""
    batch, heads, queries, keys, head_dim = shape
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(batch, heads, tokens, head_dim, generator=generator).to(dtype) for tokens in (queries, keys, keys)
    )


def _exact(query, key, value, **more):
    return scaled_dot_product_attention(query.double(), key.double(), value.double(), **more)


def _error(result, exact):
    """Relative, of the whole tensor."""
    return float((result.double() - exact).norm() / exact.norm())


def _with_outliers(query, key, value):
    """As in trained models: a few channels that are large in all tokens, and a few that vary more than the others."""
    key[..., 3] += 12
    key[..., 7] *= 6
    query[..., 7] /= 4
    query[..., 5] *= 4
    query[..., 9] += 6
    return query, key, value


SHAPES = {
    "self-attention": (2, 3, 256, 256, 40),
    "a text's 77 tokens": (1, 2, 100, 77, 40),
    "several rounds of keys": (1, 2, 130, 1000, 80),
    "heads of 64": (1, 2, 300, 300, 64),
    "the widest of SD 1.5": (1, 2, 64, 64, 160),
    "no multiple of anything": (1, 3, 97, 65, 33),
    "one of each": (1, 1, 1, 1, 1),
    "one query": (2, 1, 1, 600, 48),
    "one key": (1, 1, 20, 1, 8),
    "as wide as can be": (1, 1, 50, 333, 256),
}


@runs_here
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("precision", "most"), [("bfloat16", 0.005), ("int8", 0.01)])
def test_float32_is_within_a_percent_of_exact_attention(shape, precision, most):
    inputs = _inputs(shape)
    assert _error(native.attention(*inputs, precision), _exact(*inputs)) < most


@runs_here
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_bfloat16_is_as_exact_as_torch(shape):
    inputs = _inputs(shape, torch.bfloat16)
    exact = _exact(*inputs)
    ours, theirs = native.attention(*inputs), scaled_dot_product_attention(*inputs)
    assert ours.dtype == torch.bfloat16
    assert _error(ours, exact) < 1.1 * _error(theirs, exact) + 1e-4


@runs_here
@pytest.mark.parametrize(("precision", "most"), [("bfloat16", 0.01), ("int8", 0.025)])
@pytest.mark.parametrize("head_dim", [40, 64, 160])
def test_outlier_channels(precision, most, head_dim):
    inputs = _with_outliers(*_inputs((1, 2, 256, 512, head_dim)))
    assert _error(native.attention(*inputs, precision), _exact(*inputs)) < most


@runs_here
@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_all_tokens_share_changes_nothing(precision):
    """A large constant in the keys cancels in the softmax; it must not cost precision."""
    query, key, value = _inputs((1, 2, 64, 300, 40))
    shifted = key + torch.linspace(-50, 50, 40)
    close = native.attention(query, key, value, precision).double()
    assert _error(native.attention(query, shifted, value, precision), close) < 5e-3


@runs_here
@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, most) for most in (2, 3, 140, 300, 100))),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    precision=st.sampled_from(PRECISIONS),
    size=st.sampled_from([0.25, 1.0]),
    seed=st.integers(0, 1000),
)
def test_any_shape(shape, dtype, precision, size, seed):
    query, key, value = _inputs(shape, dtype, seed)
    query = query * size
    result = native.attention(query, key, value, precision)
    assert result.shape == query.shape and result.dtype == dtype
    exact = _exact(query, key, value)
    # Where values of both signs cancel, rounding counts beside their sizes, not beside the little that is left.
    summed = _exact(query, key, value.abs()).norm()
    assert (result.double() - exact).norm() < 0.02 * exact.norm() + 0.002 * summed


@runs_here
@pytest.mark.parametrize("precision", PRECISIONS)
def test_any_strides(precision):
    """Heads beside each other in memory, parts of larger tensors, repeated heads, channels that lie apart."""
    query, key, value = _inputs((2, 3, 50, 70, 24))
    expected = native.attention(query, key, value, precision)
    beside = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (query, key, value)]
    parts = [torch.nn.functional.pad(tensor, (3, 5, 2, 1))[:, :, 2:-1, 3:-5] for tensor in (query, key, value)]
    apart = [tensor.transpose(2, 3).contiguous().transpose(2, 3) for tensor in (query, key, value)]
    for inputs in (beside, parts, apart):
        assert torch.equal(native.attention(*inputs, precision), expected)
    one_head = key[:, :1].expand(-1, 3, -1, -1)
    same = native.attention(query, one_head.contiguous(), value, precision)
    assert torch.equal(native.attention(query, one_head, value, precision), same)


@runs_here
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", [(2, 3, 500, 300, 40), (1, 1, 2000, 77, 40)])
def test_the_number_of_threads_changes_no_bit(precision, shape):
    inputs = _inputs(shape)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(native.attention(*inputs, precision))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


@runs_here
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_head_depends_on_itself_alone(precision):
    query, key, value = _inputs((2, 2, 40, 50, 32))
    whole = native.attention(query, key, value, precision)
    alone = native.attention(query[1:, :1], key[1:, :1], value[1:, :1], precision)
    assert torch.equal(whole[1:, :1], alone)


@runs_here
@pytest.mark.parametrize("precision", PRECISIONS)
def test_large_scores_do_not_overflow(precision):
    """One key gets all the weight, which is its value; sums of exponentials would overflow."""
    key = 100 * torch.eye(32)[None, None]
    value = _inputs((1, 1, 1, 32, 32))[2]
    result = native.attention(key, key, value, precision)
    assert _error(result, value.double()) < 0.005


@runs_here
@pytest.mark.parametrize("precision", PRECISIONS)
def test_equal_keys_average_the_values(precision):
    """Nothing to scale by: all keys are zero."""
    query, key, value = _inputs((1, 2, 10, 30, 16))
    result = native.attention(query, torch.zeros_like(key), value, precision)
    torch.testing.assert_close(result, value.mean(2, keepdim=True).expand_as(result), atol=3e-3, rtol=0)


@runs_here
def test_a_scale_of_ones_own():
    inputs = _inputs((1, 2, 30, 40, 16))
    assert _error(native.attention(*inputs, scale=0.1), _exact(*inputs, scale=0.1)) < 0.005


@runs_here
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(precision, which, odd):
    inputs = _inputs((1, 1, 20, 30, 16))
    inputs[which][0, 0, 4, 5] = odd
    result = native.attention(*inputs, precision)
    if which == 2:
        assert not bool(torch.isfinite(result[..., 5]).any())
    else:
        assert not bool(torch.isfinite(result[0, 0, 4]).all())


@runs_here
def test_says_what_it_does_not_take():
    query, key, value = _inputs((1, 2, 10, 12, 16))
    odd = {
        "float16": (query.half(), key.half(), value.half()),
        "float64": (query, key.double(), value),
        "gradient": (query.clone().requires_grad_(), key, value),
        "empty": (query[:, :, :0], key, value),
        "four dimensions": (query[0], key[0], value[0]),
        "differ": (query, key[:, :1], value[:, :1]),
        "meta": tuple(tensor.to("meta") for tensor in (query, key, value)),
        "256": _inputs((1, 1, 2, 2, 257)),
    }
    for words, inputs in odd.items():
        if words != "float64":
            assert words in (native.reason_against(*inputs) or "")
        with pytest.raises(InputError, match="native attention cannot run"):
            native.attention(*inputs)


def test_refuses_where_there_is_no_library(monkeypatch):
    monkeypatch.setenv("HALFTONE_NATIVE", "0")
    assert native.unavailable() == "HALFTONE_NATIVE=0"
    with pytest.raises(InputError, match="HALFTONE_NATIVE=0"):
        native.attention(*_inputs((1, 1, 2, 2, 8)))


@runs_here
def test_is_an_operator_of_torchs():
    """torch.compile must know shape and strides of the result without running it."""
    inputs = _inputs((2, 3, 10, 12, 16))
    checks = torch.library.opcheck(torch.ops.halftone.attention.default, (*inputs, False, 0.25))
    assert set(checks.values()) == {"SUCCESS"}
