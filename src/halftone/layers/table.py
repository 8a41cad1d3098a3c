"""The activation parameters of one layer, a row per timestep slot, and a cache that notices tensor changes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from halftone.errors import CalibrationError, InputError
from halftone.numerics import QParams
from halftone.timesteps import SlotClock

__all__ = ["DerivedCache", "SlotRow", "SlotTable"]

_Value = TypeVar("_Value")


class DerivedCache(Generic[_Value]):
    """Values computed from tensors, computed again once a tensor is replaced or written to.

    It holds the tensors weakly, is not copied with the layer, and never compares tensor contents.
    """

    def __init__(self) -> None:
        self._sources: tuple[tuple[weakref.ref[Tensor], int | None, int], ...] = ()
        self._values: dict[str, _Value] = {}

    def get(self, key: str, sources: Sequence[Tensor], build: Callable[[], _Value]) -> _Value:
        """The value under ``key``, from ``build`` if it is not there or a source changed since."""
        if not self._is_current(sources):
            self._values.clear()
            self._sources = tuple((weakref.ref(tensor), _version(tensor), tensor.data_ptr()) for tensor in sources)
        value = self._values.get(key)
        if value is None:
            value = self._values[key] = build()
        return value

    def clear(self) -> None:
        """Forgets everything."""
        self._sources, self._values = (), {}

    def _is_current(self, sources: Sequence[Tensor]) -> bool:
        """A plain loop, and no call that can be spared: it runs at every call of every layer.

        A version changes when a tensor is written to in place, an address when its ``.data`` is replaced.
        """
        if len(sources) != len(self._sources):
            return False
        for tensor, (reference, version, address) in zip(sources, self._sources):  # noqa: B905 (strict takes time)
            if reference() is not tensor or tensor.data_ptr() != address:
                return False
            if version is not None and tensor._version != version:
                return False
        return True

    def __reduce__(self) -> tuple[type[DerivedCache[_Value]], tuple[()]]:
        return type(self), ()


def _version(tensor: Tensor) -> int | None:
    """How often a tensor was written to in place; None for inference tensors, which do not count it."""
    return None if tensor.is_inference() else tensor._version


class SlotRow(NamedTuple):
    """Activation parameters of one slot as plain numbers."""

    scale: float
    zero_point: int
    num_bits: int


class SlotTable(nn.Module):
    """Part of a quantized layer that holds its activation parameters; a mix-in for an `nn.Module`.

    Buffers (all ``[num_slots]``; one row serves all slots when granularity is 'tensor'):
        input_scale: float32.
        input_zero_point: int32.
        input_num_bits: int32; 0 means the row is not calibrated.

    Attributes:
        layer_name: dotted name in the denoiser, for messages.
        clock: tells the current slot; shared by the denoiser's layers, not part of the state dict.
    """

    input_scale: Tensor
    input_zero_point: Tensor
    input_num_bits: Tensor

    def _init_table(self, num_slots: int, layer_name: str, device: torch.device | str | None) -> None:
        """Creates an uncalibrated table."""
        if num_slots < 1:
            raise InputError(f"layer {layer_name!r} needs at least one slot, not {num_slots}")
        self.register_buffer("input_scale", torch.ones(num_slots, dtype=torch.float32, device=device))
        self.register_buffer("input_zero_point", torch.zeros(num_slots, dtype=torch.int32, device=device))
        self.register_buffer("input_num_bits", torch.zeros(num_slots, dtype=torch.int32, device=device))
        self.layer_name = layer_name
        self.clock: SlotClock | None = None
        self._rows: DerivedCache[list[SlotRow]] = DerivedCache()

    @property
    def num_slots(self) -> int:
        """Rows of the table."""
        return len(self.input_num_bits)

    def set_row(self, slot: int, qparams: QParams) -> None:
        """Fixes the activation parameters of a slot.

        Args:
            slot: row of the table.
            qparams: scalar scale and zero point, and the bits.

        Raises:
            InputError: there is no such row.
        """
        if not 0 <= slot < self.num_slots:
            raise InputError(f"layer {self.layer_name!r} has {self.num_slots} slots, none with index {slot}")
        with torch.no_grad():
            self.input_scale[slot] = qparams.scale.to(self.input_scale.device)
            self.input_zero_point[slot] = qparams.zero_point.to(self.input_zero_point.device)
            self.input_num_bits[slot] = qparams.num_bits
        self._rows.clear()

    def is_calibrated(self, slot: int) -> bool:
        """Whether a slot's parameters were set."""
        return self._all_rows()[slot].num_bits != 0

    def current_row(self) -> SlotRow:
        """Parameters of the slot that the clock shows.

        Raises:
            CalibrationError: that slot was never calibrated, or the table has several rows and no clock.
        """
        rows = self._all_rows()
        slot = 0 if len(rows) == 1 else self._clock_slot()
        if slot >= len(rows):
            raise CalibrationError(f"layer {self.layer_name!r} has {len(rows)} slots, but slot {slot} is due")
        row = rows[slot]
        if row.num_bits == 0:
            raise CalibrationError(
                f"layer {self.layer_name!r} was never calibrated for slot {slot}; calibrate or load it first"
            )
        return row

    def _clock_slot(self) -> int:
        if self.clock is None:
            raise CalibrationError(f"layer {self.layer_name!r} has {self.num_slots} slots but no clock")
        return self.clock.current

    def _all_rows(self) -> list[SlotRow]:
        """The table as plain numbers, read from the device once per change."""
        buffers = self._buffers  # not by attribute: nn.Module searches for those, at every call of every layer
        sources = buffers["input_scale"], buffers["input_zero_point"], buffers["input_num_bits"]
        return self._rows.get("rows", cast("tuple[Tensor, ...]", sources), self._read)

    def _read(self) -> list[SlotRow]:
        columns = self.input_scale, self.input_zero_point, self.input_num_bits
        return [SlotRow(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
