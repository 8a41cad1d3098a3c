"""Error kinds and the hint for misspelt names."""

import pytest

from halftone import errors


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name.endswith("Error")])
def test_every_kind_is_a_halftone_error(name):
    assert issubclass(getattr(errors, name), errors.HalftoneError)


def test_non_finite_is_a_calibration_error():
    assert issubclass(errors.NonFiniteError, errors.CalibrationError)


def test_suggest_names_the_nearest_whatever_its_case():
    assert errors.suggest("MinMx", ["minmax", "mse"]) == "did you mean 'minmax'?"


def test_suggest_lists_all_when_nothing_is_near():
    assert errors.suggest("zzz", ["b", "a"]) == "known: a, b"
    assert errors.suggest("zzz", []) == "none are known"
