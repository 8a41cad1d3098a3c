"""Several processes on one benchmark: ``accelerate launch -m halftone bench …`` or torchrun start the same command.

The ranks share the prompts and a file system; rank 0 measures and writes. As every image depends on its own prompt and
seed alone, the result is that of one process.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

_PATIENCE = timedelta(days=7)  # a rank may wait for another one's slow images; a dead one is noticed at once


def processes() -> int:
    """How many processes the launcher says there are."""
    return int(os.environ.get("WORLD_SIZE") or "1")


@dataclass(frozen=True)
class Ranks:
    """This process's number and how many there are."""

    rank: int = 0
    world: int = 1

    @classmethod
    def from_environment(cls) -> Ranks:
        """What the launcher says; joins the process group if there are others."""
        if processes() == 1:
            return cls()
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=_PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this process measures and writes."""
        return self.rank == 0

    def mine(self, count: int) -> range:
        """The images that this process paints."""
        return range(self.rank, count, self.world)

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.world > 1:
            import torch.distributed as dist

            dist.barrier()
