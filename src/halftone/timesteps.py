"""Timestep slots: which row of a layer's activation parameters holds at which diffusion timestep.

A slot is found from the *value* of the timestep, never from a count of calls, so a model calibrated
with 50 steps runs with 20, image-to-image may start in the middle, and split guidance calls share a slot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from halftone.errors import ArtifactError, CalibrationError, InputError

__all__ = ["SlotClock", "TimestepSlots"]


@dataclass(frozen=True)
class TimestepSlots:
    """The calibrated timesteps in the order in which the sampler visits them, one slot each.

    Attributes:
        timesteps: distinct finite values, as the denoiser gets them (FLUX-like models: in 0 to 1).
        num_bits: activation bits of each slot, 2 to 16.

    Raises:
        InputError: no timestep, repeated or non-finite ones, or ``num_bits`` of another length or out of range.
    """

    timesteps: tuple[float, ...]
    num_bits: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.timesteps:
            raise InputError("timestep slots need at least one timestep")
        if not all(math.isfinite(value) for value in self.timesteps):
            raise InputError(f"timesteps must be finite numbers, not {self.timesteps}")
        if len(set(self.timesteps)) != len(self.timesteps):
            raise InputError(f"timesteps must be distinct (equal ones share a slot): {self.timesteps}")
        if len(self.num_bits) != len(self.timesteps):
            raise InputError(f"{len(self.timesteps)} timesteps have {len(self.num_bits)} numbers of bits")
        if not all(2 <= bits <= 16 for bits in self.num_bits):
            raise InputError(f"the bits of a slot must be 2 to 16, not {self.num_bits}")

    def __len__(self) -> int:
        return len(self.timesteps)

    def slot_of(self, value: float) -> int:
        """Index of the slot whose timestep is nearest to ``value``; the earlier slot in a tie.

        Raises:
            InputError: ``value`` is NaN or infinite.
        """
        if not math.isfinite(value):
            raise InputError(f"the denoiser was called with timestep {value}, which is not a finite number")
        return min(range(len(self.timesteps)), key=lambda slot: abs(self.timesteps[slot] - value))

    def to_dict(self) -> dict[str, list[float] | list[int]]:
        """JSON-ready form; `from_dict` reads it back."""
        return {"timesteps": list(self.timesteps), "num_bits": list(self.num_bits)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TimestepSlots:
        """Reads what `to_dict` wrote, strictly.

        Raises:
            ArtifactError: keys are missing or unknown, or the values are not what they should be.
        """
        if not isinstance(data, Mapping) or set(data) != {"timesteps", "num_bits"}:
            keys = sorted(data) if isinstance(data, Mapping) else type(data).__name__
            raise ArtifactError(f"stored slots must have exactly the keys timesteps and num_bits, not {keys}")
        timesteps, num_bits = data["timesteps"], data["num_bits"]
        if not _all_numbers(timesteps, (int, float)) or not _all_numbers(num_bits, (int,)):
            raise ArtifactError("stored slots: timesteps must be a list of numbers and num_bits of integers")
        try:
            return cls(tuple(float(value) for value in timesteps), tuple(num_bits))
        except InputError as error:
            raise ArtifactError(f"stored slots are damaged: {error}") from error


def _all_numbers(values: object, kinds: tuple[type, ...]) -> bool:
    """Whether ``values`` is a list or tuple of numbers of these kinds (booleans are no numbers)."""
    if not isinstance(values, (list, tuple)):
        return False
    return all(isinstance(value, kinds) and not isinstance(value, bool) for value in values)


class SlotClock:
    """The current slot, shared by all quantized layers of one denoiser.

    The denoiser's wrapper calls `set_timestep` once a call; the layers read `current`.

    Args:
        slots: the calibrated slots.
    """

    def __init__(self, slots: TimestepSlots) -> None:
        self.slots = slots
        self._current: int | None = None

    def set_timestep(self, timestep: Tensor | float) -> int:
        """Moves the clock to the slot of ``timestep`` and returns that slot.

        Args:
            timestep: a number, or a tensor with one element or several equal ones (one per batch item).
                A tensor on an accelerator costs one synchronization.

        Raises:
            InputError: the batch mixes timesteps, the tensor is empty, or the value is not finite.
        """
        self._current = self.slots.slot_of(_single_value(timestep))
        return self._current

    def set_slot(self, slot: int) -> None:
        """Moves the clock to a slot directly (calibration knows it).

        Raises:
            InputError: there is no such slot.
        """
        if not 0 <= slot < len(self.slots):
            raise InputError(f"slot {slot} does not exist; there are {len(self.slots)}")
        self._current = slot

    @property
    def current(self) -> int:
        """Index of the current slot.

        Raises:
            CalibrationError: no timestep was set yet.
        """
        if self._current is None:
            raise CalibrationError(
                "a quantized layer ran before any timestep was set; call the denoiser, not its layers, "
                "or call set_timestep on its clock first"
            )
        return self._current


def _single_value(timestep: Tensor | float) -> float:
    """The one value of a timestep argument, as a float."""
    if not isinstance(timestep, Tensor):
        return float(timestep)
    values = set(timestep.detach().flatten().tolist())
    if len(values) == 1:
        return float(values.pop())
    if not values:
        raise InputError("the denoiser was called with an empty timestep tensor")
    finite = ", ".join(f"{value:g}" for value in sorted(values)[:4])
    raise InputError(
        f"the batch mixes timesteps ({finite}, ...): a quantized denoiser runs one timestep a call; split the batch"
    )
