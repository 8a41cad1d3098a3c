"""Bits in a stream: bytes by hand, an independent packer in plain Python, and what does not fit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from halftone.errors import InputError
from halftone.packing import pack_bits, packed_bytes, unpack_bits


def test_two_nibbles_a_byte_by_hand():
    """1 -> 0001, -1 -> 1111, 7 -> 0111, -7 -> 1001; the earlier value is the lower nibble."""
    packed = pack_bits(torch.tensor([1, -1, 7, -7, 3], dtype=torch.int8), 4)
    assert packed.dtype == torch.uint8 and packed.tolist() == [0xF1, 0x97, 0x03]


def test_three_and_two_bits_by_hand():
    """3 bits, 1 then -1 then 3: 001, 111, 011 from the lowest bit: 1 | 7 << 3 | 3 << 6 = 0b011111001 over two bytes."""
    assert pack_bits(torch.tensor([1, -1, 3], dtype=torch.int8), 3).tolist() == [0b11111001, 0]
    assert pack_bits(torch.tensor([1, -1, 0, 1, -1], dtype=torch.int8), 2).tolist() == [0b01001101, 0b11]


def _by_text(values, num_bits):
    """The same stream, written as a text of zeros and ones."""
    text = "".join(format(value % 2**num_bits, f"0{num_bits}b")[::-1] for value in values)
    text += "0" * (-len(text) % 8)
    return [int(text[start : start + 8][::-1], 2) for start in range(0, len(text), 8)]


@given(st.integers(2, 7), st.integers(0, 70), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_equals_an_independent_packer_and_round_trips(num_bits, count, seed):
    half = 2 ** (num_bits - 1)
    values = torch.randint(-half, half, (count,), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    packed = pack_bits(values, num_bits)
    assert packed.tolist() == _by_text(values.tolist(), num_bits)
    assert len(packed) == packed_bytes(count, num_bits)
    unpacked = unpack_bits(packed, num_bits, (count,))
    assert unpacked.dtype == torch.int8 and torch.equal(unpacked, values)


def test_shapes_and_chunks(monkeypatch):
    monkeypatch.setattr("halftone.packing._CHUNK", 2)
    values = torch.randint(-7, 8, (5, 3, 3, 3), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    packed = pack_bits(values, 4)
    assert packed.shape == (68,)  # 135 values: 67 full bytes and a half
    assert torch.equal(unpack_bits(packed, 4, values.shape), values)


class _Largest(TorchDispatchMode):
    """Notes the most bytes that a result has."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.bytes = max(self.bytes, result.nbytes if isinstance(result, torch.Tensor) else 0)
        return result


@pytest.mark.parametrize("num_bits", [2, 4, 7])
def test_loose_bits_take_a_byte_each(num_bits):
    values = torch.zeros(8000, dtype=torch.int8)
    with _Largest() as packing:
        packed = pack_bits(values, num_bits)
    with _Largest() as unpacking:
        unpack_bits(packed, num_bits, values.shape)
    assert packing.bytes == unpacking.bytes == 8000 * num_bits


def test_what_cannot_be_packed():
    with pytest.raises(InputError, match="from -9 to 3 do not fit in 4 bits"):
        pack_bits(torch.tensor([3, -9], dtype=torch.int8), 4)
    with pytest.raises(InputError, match="only int8"):
        pack_bits(torch.tensor([3]), 4)
    for num_bits in (1, 8):
        with pytest.raises(InputError, match="packed are 2 to 7"):
            pack_bits(torch.zeros(1, dtype=torch.int8), num_bits)
    with pytest.raises(InputError, match=r"in 3 bytes of uint8, not in torch.uint8 \(2,\)"):
        unpack_bits(torch.zeros(2, dtype=torch.uint8), 4, (5,))
    with pytest.raises(InputError, match=r"not in torch\.int8"):
        unpack_bits(torch.zeros(3, dtype=torch.int8), 4, (5,))
