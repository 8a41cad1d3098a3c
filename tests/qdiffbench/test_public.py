"""The room's front door."""

import subprocess
import sys
from types import ModuleType

import pytest

from halftone import qdiffbench


def test_importing_loads_nothing_heavy():
    code = "import sys, halftone.qdiffbench; print({'torch', 'numpy', 'pydantic', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_records_need_no_torch():
    code = "import sys, halftone.qdiffbench.results; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", qdiffbench.__all__)
def test_public_names_are_no_modules(name):
    assert not isinstance(getattr(qdiffbench, name), ModuleType)


def test_unknown_names():
    with pytest.raises(AttributeError, match="no attribute 'fid'"):
        qdiffbench.fid  # noqa: B018
    assert dir(qdiffbench) == sorted(qdiffbench.__all__)
