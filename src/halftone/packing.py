"""Integers of fewer than 8 bits as a stream of bits, the form in which weights lie in a file.

Value ``i`` takes the bits ``i * num_bits`` to ``(i + 1) * num_bits - 1`` of the stream, in two's complement, its
lowest bit first; bit ``j`` of the stream is bit ``j % 8`` of byte ``j // 8``. Four bits are thus two nibbles a byte,
the earlier value in the lower one. What is left of the last byte is zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from halftone.errors import InputError

__all__ = ["pack_bits", "packed_bytes", "unpack_bits"]

_BYTE_BITS = 8
_CHUNK = 1 << 20  # groups of eight values at a time: the loose bits take as many bytes as there are bits


def packed_bytes(count: int, num_bits: int) -> int:
    """Bytes that ``count`` values of ``num_bits`` bits take."""
    return -(-count * num_bits // _BYTE_BITS)


def pack_bits(values: Tensor, num_bits: int) -> Tensor:
    """A tensor's values as a stream of bits, in the order of the flattened tensor.

    Args:
        values: int8, any shape, each within ``[-2**(num_bits - 1), 2**(num_bits - 1) - 1]``.
        num_bits: 2 to 7.

    Returns:
        uint8 ``[packed_bytes(values.numel(), num_bits)]``.

    Raises:
        InputError: the tensor is not int8, ``num_bits`` is out of range or a value does not fit.
    """
    _check(num_bits)
    if values.dtype != torch.int8:
        raise InputError(f"only int8 is packed, not {values.dtype}")
    half = 2 ** (num_bits - 1)
    if values.numel() and not (-half <= int(values.min()) and int(values.max()) < half):
        raise InputError(f"values from {int(values.min())} to {int(values.max())} do not fit in {num_bits} bits")
    flat = values.detach().reshape(-1)
    groups = torch.nn.functional.pad(flat, (0, -len(flat) % _BYTE_BITS)).view(torch.uint8).view(-1, _BYTE_BITS)
    packed = torch.cat([_regroup(part, num_bits, _BYTE_BITS) for part in groups.split(_CHUNK)])
    return packed.reshape(-1)[: packed_bytes(len(flat), num_bits)].clone()


def unpack_bits(packed: Tensor, num_bits: int, shape: Sequence[int]) -> Tensor:
    """Undoes `pack_bits`.

    Args:
        packed: uint8 ``[packed_bytes(product of shape, num_bits)]``.

    Returns:
        int8 of the given shape.

    Raises:
        InputError: ``packed`` has another dtype or length, or ``num_bits`` is out of range.
    """
    _check(num_bits)
    count = math.prod(shape)
    if packed.dtype != torch.uint8 or tuple(packed.shape) != (packed_bytes(count, num_bits),):
        raise InputError(
            f"{count} values of {num_bits} bits are packed in {packed_bytes(count, num_bits)} bytes of uint8, not in"
            f" {packed.dtype} {tuple(packed.shape)}"
        )
    groups = torch.nn.functional.pad(packed, (0, -len(packed) % num_bits)).view(-1, num_bits)
    codes = torch.cat([_regroup(part, _BYTE_BITS, num_bits) for part in groups.split(_CHUNK)])
    sign = 2 ** (num_bits - 1)
    signed = (codes.reshape(-1)[:count] ^ sign).to(torch.int8) - sign
    return signed.reshape(tuple(shape))


def _regroup(values: Tensor, before: int, after: int) -> Tensor:
    """The lowest ``before`` bits of uint8 ``[n, after]`` as uint8 ``[n, before]`` of ``after`` bits each: packing makes
    ``num_bits`` bytes of eight values, unpacking eight values of ``num_bits`` bytes."""
    # Shifts of another dtype would make int64 of it, eight times the memory; the bits of a byte add up to a byte.
    places = torch.arange(_BYTE_BITS, dtype=torch.uint8, device=values.device)
    bits = (values[:, :, None] >> places[:before]).bitwise_and_(1).view(len(values), before, after)
    return bits.bitwise_left_shift_(places[:after]).sum(dim=2, dtype=torch.uint8)


def _check(num_bits: int) -> None:
    if not 2 <= num_bits < _BYTE_BITS:
        raise InputError(f"{num_bits} bits are asked for; packed are 2 to 7")
