"""The finished pieces of a scan, in order: each from disk, or made, kept there and told."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from halftone.calibration.checkpoint import Checkpoint
from halftone.calibration.stages import Advance, Stages

__all__ = ["Pieces"]

Tensors = dict[str, Tensor]


class Pieces:
    """What a scan consists of.

    Args:
        stage: what is told of; see `halftone.calibration.stages`.
        works: of the pieces, in order, as they are told.
        finished: where they are kept.
        stages: is told of every piece.

    Attributes:
        resumed: pieces that were found on disk.
    """

    def __init__(self, stage: str, works: Sequence[float], finished: Checkpoint, stages: Stages):
        self.stage, self.works, self.finished, self.stages = stage, works, finished, stages
        self.resumed = 0
        self._done = 0

    def next(self, key: str, make: Callable[[], Tensors]) -> Tensors:
        """The next piece, on the CPU.

        Args:
            key: digest of what it is made from.
            make: makes it, if it is not there.
        """
        number = self._done
        tensors = self.finished.load(number, key)
        replayed = tensors is not None
        if tensors is None:
            tensors = {name: tensor.cpu() for name, tensor in make().items()}
            self.finished.save(number, key, tensors)
        self.resumed += replayed
        self._done += 1
        left = sum(self.works[self._done :])
        self.stages.tell(Advance(self.stage, self._done, len(self.works), self.works[number], left, replayed))
        return tensors
