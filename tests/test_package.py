"""The package's front door: fast to import, explicit about its names."""

import subprocess
import sys

import pytest

import halftone


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_no_heavy_library():
    heavy = "{'torch', 'diffusers', 'transformers', 'numpy', 'pydantic'}"
    assert _run(f"import sys, halftone; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_import_is_quick():
    """What comes before the command's own handler stands is open to a Ctrl-C that ends in a traceback."""
    slow = "{'asyncio', 'ssl', 'inspect', 'importlib.metadata', 'wrapt'}"
    assert (
        _run(f"import sys; known = set(sys.modules); import halftone.cli; print({slow} & set(sys.modules) - known)")
        == "set()"
    )


def test_dir_lists_the_public_names():
    assert set(dir(halftone)) == set(halftone.__all__)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'qantize'"):
        halftone.qantize  # noqa: B018


@pytest.mark.parametrize("name", halftone.__all__)
def test_every_public_name_resolves(name):
    assert getattr(halftone, name) is not None


@pytest.mark.parametrize("first, second", [("halftone", "diffusers"), ("diffusers", "halftone")])
def test_diffusers_learns_the_format_in_either_import_order(first, second):
    code = (
        f"import {first}, {second}, diffusers.quantizers.auto as auto; "
        "print('halftone' in auto.AUTO_QUANTIZATION_CONFIG_MAPPING)"
    )
    assert _run(code) == "True"


def test_diffusers_table_is_the_real_module_still():
    code = (
        "import halftone, importlib.util, inspect, diffusers.quantizers.auto as auto; "
        "print(inspect.getsource(auto).count('AUTO_QUANTIZER_MAPPING') > 0, auto.__spec__.origin == auto.__file__)"
    )
    assert _run(code) == "True True"
