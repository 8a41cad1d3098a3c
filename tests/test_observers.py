"""Observers: exact, order-free, mergeable, and clipping where they should."""

import math

import pytest
import torch
from oracles import fake_quantize

from halftone.errors import CalibrationError, NonFiniteError, RecipeError
from halftone.numerics import range_to_qparams
from halftone.observers import MinMaxObserver, build_observer, observer_names, register_observer

NAMES = ("minmax", "mse", "percentile")


def _values(seed: int = 0, count: int = 4000) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def _range_of(name: str, *batches: torch.Tensor, num_bits: int = 8) -> tuple[float, float]:
    observer = build_observer(name)
    for batch in batches:
        observer.observe(batch)
    return observer.range(num_bits)


@pytest.mark.parametrize("name", NAMES)
def test_order_and_merging_do_not_matter(name):
    parts = _values().split([1, 999, 1700, 1300])
    expected = _range_of(name, *parts)
    assert _range_of(name, *parts[::-1]) == expected
    left, right = build_observer(name), build_observer(name)
    left.observe(parts[2])
    for part in (parts[3], parts[0], parts[1]):
        right.observe(part)
    left.merge(right)
    assert left.range(8) == expected


@pytest.mark.parametrize("name", NAMES)
def test_state_round_trip_and_shape_independence(name):
    observer, copy = build_observer(name), build_observer(name)
    observer.observe(_values().view(10, 20, 20).transpose(0, 2))
    copy.load_state(observer.state_dict())
    assert copy.range(8) == observer.range(8) == _range_of(name, _values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_values_are_refused(name, bad):
    with pytest.raises(NonFiniteError, match="1 NaN or infinite"):
        build_observer(name).observe(torch.tensor([1.0, bad]))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_observed_is_an_error_even_after_an_empty_batch(name):
    observer = build_observer(name)
    observer.observe(torch.empty(0, 4))
    with pytest.raises(CalibrationError, match="seen no values"):
        observer.range(8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_observed(name, dtype):
    lo, hi = _range_of(name, _values().to(dtype))
    assert -5 < lo < -2 and 2 < hi < 5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e30, 1e-30])
def test_constant_input_stays_within_its_value_and_zero(name, value):
    lo, hi = _range_of(name, torch.full((10,), value))
    slack = abs(value) * 1e-6
    assert min(value, 0.0) - slack <= lo <= hi <= max(value, 0.0) + slack


def test_minmax_is_exact():
    assert _range_of("minmax", _values()) == (_values().min().item(), _values().max().item())


def test_percentile_clips_the_given_part_on_each_side():
    values = torch.linspace(-1.0, 1.0, 100_001)
    observer = build_observer("percentile", percentile=99.0)
    observer.observe(values)
    lo, hi = observer.range(8)
    assert lo == pytest.approx(-0.98, rel=0.01) and hi == pytest.approx(0.98, rel=0.01)


def test_percentile_of_100_is_minmax():
    observer = build_observer("percentile", percentile=100)
    observer.observe(_values())
    assert observer.range(8) == pytest.approx(_range_of("minmax", _values()), rel=1e-6)


@pytest.mark.parametrize("num_bits, ratio", [(3, 0.7), (4, 0.7), (6, 1.0)])
def test_mse_beats_minmax_by_its_own_measure(num_bits, ratio):
    values = torch.cat([_values(), torch.tensor([12.0])])

    def error(name: str) -> float:
        lo, hi = _range_of(name, values, num_bits=num_bits)
        quantized = fake_quantize(values, range_to_qparams(lo, hi, num_bits))
        return float((quantized - values).pow(2).mean())

    assert error("mse") < ratio * error("minmax")


def test_mse_is_near_the_best_of_a_brute_force_search():
    values, num_bits = _values(), 4

    def error(lo: float, hi: float) -> float:
        return float((fake_quantize(values, range_to_qparams(lo, hi, num_bits)) - values).pow(2).mean())

    best = min(error(-a, b) for a in torch.linspace(1, 4, 31) for b in torch.linspace(1, 4, 31))
    assert error(*_range_of("mse", values, num_bits=num_bits)) < 1.05 * best


def test_mse_knows_the_symmetric_grid():
    observer = build_observer("mse")
    observer.observe(_values().abs())
    lo, hi = observer.range(4, symmetric=True)
    assert lo == 0.0 and 1.5 < hi < 4


def test_unknown_observer_and_option_are_suggested():
    with pytest.raises(RecipeError, match="did you mean 'minmax'"):
        build_observer("minmx")
    with pytest.raises(RecipeError, match="did you mean 'percentile'"):
        build_observer("percentile", percentil=99)
    with pytest.raises(RecipeError, match="over 50"):
        build_observer("percentile", percentile=150)


def test_an_observer_registers_in_one_line(monkeypatch):
    monkeypatch.setattr("halftone.observers._OBSERVERS", {})
    register_observer("mine")(MinMaxObserver)
    assert observer_names() == ("mine",)
