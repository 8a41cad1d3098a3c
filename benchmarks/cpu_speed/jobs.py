"""What a child process is asked to do, and where its files lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cpu_speed.models import ORDINARY, Model, model_named


@dataclass(frozen=True)
class Job:
    """What every child knows.

    Attributes:
        model: name of the model.
        threads: that a call may use.
        work: folder with everything that is made once.
    """

    model: str
    threads: int
    work: str

    @property
    def of(self) -> Model:
        """The model itself."""
        return model_named(self.model)

    def folder(self, stage: str, of_weights: bool = True) -> Path:
        """Where a stage puts what it makes."""
        return Path(self.work) / (self.of.weights if of_weights else self.model) / stage

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        return cls(**json.loads(text))


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Call:
    """What is timed.

    Attributes:
        run: the call; returns its output.
        timestep: of the input, and so which reference the output is compared with; None if with none.
        prepare: run before a series of calls, not timed.
        operations: multiplications and additions, for ceilings.
    """

    run: Callable[[], Any]
    timestep: int | None = ORDINARY
    prepare: Callable[[], None] = _nothing
    operations: int = 0


@dataclass(frozen=True)
class Built:
    """A peer that is ready to run.

    Attributes:
        calls: by the name of a variant; the main one's is empty.
        failures: variants that cannot run here, and why.
        notes: tells, after the first calls, what readers should know of how they ran, such as which kernels.
    """

    calls: dict[str, Call]
    failures: dict[str, str] = field(default_factory=dict)
    notes: Callable[[], dict[str, Any]] = dict
