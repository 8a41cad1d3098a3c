"""Several processes on one benchmark: torchrun or ``accelerate launch -m halftone bench …`` start the same command.

The ranks share the prompts and a file system; rank 0 measures and writes. As every image depends on its own prompt and
seed alone, the result is that of one process.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from halftone.errors import InputError

_PATIENCE = timedelta(days=7)  # a rank may wait for another one's slow images; a dead one is noticed at once


#: How MPI's launchers, which `accelerate launch` starts on CPUs, call what torch calls WORLD_SIZE, RANK, LOCAL_RANK.
_OF_MPI = (
    ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
)


def processes() -> int:
    """How many processes the launcher says there are; what MPI says is said again in torch's words."""
    if not os.environ.get("WORLD_SIZE"):
        for size, rank, local in _OF_MPI:
            if os.environ.get(size):
                os.environ |= {"WORLD_SIZE": os.environ[size], "RANK": os.environ.get(rank, "0")}
                os.environ.setdefault("LOCAL_RANK", os.environ.get(local, "0"))
                break
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
            try:
                dist.init_process_group("gloo", timeout=_PATIENCE)
            except ValueError as error:
                raise InputError(
                    f"The launcher started {processes()} processes and does not say how they find each other ({error});"
                    " use torchrun, or set MASTER_ADDR and MASTER_PORT."
                ) from error
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this process measures and writes."""
        return self.rank == 0

    def mine(self, count: int) -> range:
        """The images that this process paints."""
        return range(self.rank, count, self.world)

    def wait(self) -> None:
        """Until all processes have come here.

        Raises:
            InputError: another one has ended.
        """
        self.agree(None, "")

    def agree(self, value: Any, what: str) -> None:
        """Until all processes have come here, with the same JSON-ready value.

        Args:
            what: it is, for the message.

        Raises:
            InputError: they have not, or another one has ended.
        """
        if self.world == 1:
            return
        import torch.distributed as dist

        others: list[Any] = [None] * self.world
        try:
            dist.all_gather_object(others, value)
        except RuntimeError as error:
            raise InputError("Another process of this benchmark has ended; its own message says why.") from error
        for rank, other in enumerate(others):
            if other != others[0]:
                keys = sorted(key for key in {*other, *others[0]} if other.get(key) != others[0].get(key))
                raise InputError(
                    f"Process {rank} differs from the first one in {what}: {', '.join(keys)}; start all of them alike,"
                    " on machines that are alike."
                )
