"""Slicing and joining batches."""

from collections import namedtuple

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from halftone.microbatch import batch_size, in_micro_batches, join, micro_batches, replaced_forward, take

Pair = namedtuple("Pair", "first second")
TOTAL = st.integers(1, 9)


def _numbered(rows, *width):
    return torch.arange(rows * max(1, *width, 1)).reshape(rows, *width) if width else torch.arange(rows)


def _values(total):
    """Nested containers whose tensors all have `total` rows, as denoisers get and give them."""
    tensors = st.lists(st.integers(1, 3), max_size=1).map(lambda width: _numbered(total, *width))
    leaves = tensors | st.none()
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.tuples(inner, inner).map(lambda items: Pair(*items))
            | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
        ),
        max_leaves=6,
    )


def _same(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


@given(st.data(), TOTAL, st.integers(1, 10))
def test_join_undoes_take(data, total, rows):
    value = data.draw(_values(total))
    parts = [take(value, start, start + rows, total) for start in range(0, total, rows)]
    assert _same(join(parts), value)


@given(TOTAL, st.integers(1, 10))
def test_micro_batches_are_every_row_once_in_order(total, rows):
    parts = list(micro_batches((torch.arange(total),), {"nested": {"x": [torch.arange(total) + 100]}}, rows))
    assert [row for (first,), _ in parts for row in first.tolist()] == list(range(total))
    assert [row for _, named in parts for row in named["nested"]["x"][0].tolist()] == list(range(100, 100 + total))
    assert all(1 <= len(first) <= rows for (first,), _ in parts)


def test_what_is_not_the_batch_stays_whole():
    scalar, other = torch.tensor(3.0), torch.zeros(5, 2)
    taken = take({"t": scalar, "other": other, "text": "abcd", "none": None, "x": torch.arange(4)}, 1, 3, 4)
    assert taken["t"] is scalar and taken["other"] is other and taken["text"] == "abcd" and taken["none"] is None
    assert taken["x"].tolist() == [1, 2]


def test_positions_of_tokens_stay_whole_even_if_they_count_as_many_as_the_batch():
    """FLUX: four image tokens and a batch of four; their ids have no batch dimension."""
    ids = torch.zeros(4, 3)
    seen = []

    def forward(hidden_states, img_ids, txt_ids, image_rotary_emb):
        seen.append((len(hidden_states), img_ids is ids, txt_ids is ids, image_rotary_emb[0] is ids))
        return (hidden_states,)

    walked = in_micro_batches(forward, 2)
    walked(hidden_states=torch.zeros(4, 4, 8), img_ids=ids, txt_ids=ids, image_rotary_emb=(ids, ids))
    assert seen == [(2, True, True, True)] * 2


def test_batch_size_is_that_of_the_first_tensor_with_dimensions():
    assert batch_size((torch.tensor(1.0), torch.zeros(3, 2)), {"x": torch.zeros(7)}) == 3
    assert batch_size((), {"t": torch.tensor(1.0), "x": torch.zeros(7)}) == 7
    assert batch_size((2,), {}) == 1


@pytest.mark.parametrize("rows, calls", [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (9, [5])])
def test_forward_walks_in_slices_and_gives_its_own_kind_of_output(rows, calls):
    seen = []

    def forward(x, scale, *, extra):
        seen.append(len(x))
        states = (x * scale, x + extra["y"])
        return BaseModelOutputWithPooling(last_hidden_state=x * scale, pooler_output=x.sum(1), hidden_states=states)

    x, y = torch.randn(5, 3), torch.randn(5, 3)
    output = in_micro_batches(forward, rows)(x, 2.0, extra={"y": y})
    assert seen == calls and isinstance(output, BaseModelOutputWithPooling)
    assert torch.equal(output.last_hidden_state, x * 2) and torch.equal(output.hidden_states[1], x + y)
    assert torch.allclose(output.pooler_output, x.sum(1))


def test_outputs_of_diffusers_are_joined():
    joined = join(
        [Transformer2DModelOutput(sample=torch.zeros(2, 1)), Transformer2DModelOutput(sample=torch.ones(1, 1))]
    )
    assert isinstance(joined, Transformer2DModelOutput) and joined.sample.flatten().tolist() == [0, 0, 1]


def test_forward_is_replaced_only_within_the_context():
    module = nn.Linear(2, 2)
    own = module.forward
    with pytest.raises(RuntimeError), replaced_forward(module, lambda x: "replaced"):
        assert module(torch.zeros(1, 2)) == "replaced"
        raise RuntimeError
    assert "forward" not in module.__dict__ and module.forward == own
    module.forward = wrapped = lambda x: "accelerate's"
    with replaced_forward(module, lambda x: "replaced"):
        pass
    assert module.forward is wrapped
