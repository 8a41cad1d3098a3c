"""Tables that an earlier run has measured, told by a hash of everything that determines them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from halftone.errors import InputError
from halftone.files import output_errors, write_atomically
from halftone.qdiffbench.contestants import Contestant
from halftone.qdiffbench.environment import library_versions
from halftone.qdiffbench.request import sampled_prompts
from halftone.qdiffbench.results import Model
from halftone.study.models import Models
from halftone.study.plan import TablePlan
from halftone.study.request import StudyRequest
from halftone.study.results import TABLE_RESULTS, KeptTable, StudyTable

__all__ = ["KeptTables", "sha256_of"]


class KeptTables:
    """Reads and writes measured tables.

    Args:
        source: the full-precision model.
        models: of the same request.
    """

    def __init__(self, request: StudyRequest, source: Contestant, models: Models) -> None:
        self.request, self.source, self.models = request, source, models

    def read(self, table: TablePlan) -> KeptTable | None:
        """A table as it was measured from the very same; None if it was not."""
        try:
            kept = KeptTable.from_json(self._path(table).read_bytes())
        except (OSError, InputError):
            return None
        return kept if kept.made_from == self._made_from(table) else None

    def write(self, table: TablePlan, measured: StudyTable, reference: Model) -> None:
        """Keeps a table.

        Raises:
            OutputError: it cannot be written.
        """
        kept = KeptTable(made_from=self._made_from(table), reference=reference, table=measured)
        with output_errors(f"The table {self._path(table)}"):
            write_atomically(self._path(table), kept.to_json())

    def missing(self) -> tuple[TablePlan, ...]:
        """Those that the request asks for and that are not there."""
        return tuple(table for table in self.request.tables if self.read(table) is None)

    def _path(self, table: TablePlan) -> Path:
        return self.request.table_folder(table.name) / TABLE_RESULTS

    def _made_from(self, table: TablePlan) -> str:
        """Hash of everything that determines a table."""
        request = self.request
        asked = request.bench_request(table, ())
        return sha256_of(
            {
                "table": table.model_dump(mode="json"),
                "source": self.source.sha256(),
                "models": [self.models.plan_of(table, row).name for row in table.rows],
                "prompts": {name: one.sample.sha256 for name, one in sampled_prompts(asked).items()},
                "features": request.features,
                "clip": request.clip,
                "bootstrap_seed": request.bootstrap_seed,
                "threads": torch.get_num_threads(),
                "versions": library_versions(),
            }
        )


def sha256_of(data: Mapping[str, Any]) -> str:
    """Of JSON-ready data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
