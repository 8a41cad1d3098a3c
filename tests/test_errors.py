"""Error kinds and the hint for misspelt names."""

import re
from pathlib import Path

import pytest

from halftone import errors


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name.endswith("Error")])
def test_every_kind_is_a_halftone_error(name):
    assert issubclass(getattr(errors, name), errors.HalftoneError)


def test_non_finite_is_a_calibration_error():
    assert issubclass(errors.NonFiniteError, errors.CalibrationError)


def test_suggest_names_the_nearest_whatever_its_case():
    assert errors.suggest("MinMx", ["minmax", "mse"]) == "did you mean 'minmax'?"


@pytest.mark.parametrize("asked, meant", [("DDMI", "DDIM"), ("ddpm", "DDPM"), ("DDPN", "DDPM")])
def test_suggest_thinks_of_swapped_letters_first(asked, meant):
    assert errors.suggest(asked, ["DDIM", "DDPM", "PNDM"]) == f"did you mean {meant!r}?"


def test_no_sentence_goes_on_after_a_suggestion():
    """It ends in a question mark, or in the last of the known names."""
    files = Path(errors.__file__).parent.rglob("*.py")
    assert not [path.name for path in files if re.search(r"suggest\([^{}]*\)\}\.", path.read_text(encoding="utf-8"))]


def test_suggest_lists_all_when_nothing_is_near():
    assert errors.suggest("zzz", ["b", "a"]) == "known: a, b"
    assert errors.suggest("zzz", []) == "none are known"
