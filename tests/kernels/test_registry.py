"""Dispatch: priority, availability, force by environment, and a log that tells why."""

import logging

import pytest
import torch

from halftone.errors import InputError
from halftone.kernels import registry
from halftone.kernels.registry import LayerWeights, check_device, kernel_report, register_kernel, select


@pytest.fixture
def kernels(monkeypatch):
    """An empty registry with a slow kernel for all devices and a fast one that may be unavailable."""
    monkeypatch.delenv(registry.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(registry, "_KERNELS", [])
    monkeypatch.setattr(registry, "_choices", {})
    reason = {"fast": None}
    register_kernel("linear", "slow", (), priority=0)(_prepare)
    register_kernel("linear", "fast", ("cpu",), priority=10, available=lambda: reason["fast"], max_num_bits=8)(_prepare)
    return reason


def _prepare(weights: LayerWeights):
    return lambda x, scale, zero_point, num_bits: x @ weights.weight.to(x.dtype).T


def test_highest_priority_wins_and_prepares(kernels):
    kernel = select("linear", "cpu")
    assert kernel.name == "fast"
    weights = LayerWeights(torch.ones(2, 3, dtype=torch.int8), torch.ones(2))
    assert kernel.prepare(weights)(torch.ones(1, 3), 1.0, 0, 8).tolist() == [[3.0, 3.0]]


def test_other_device_or_width_falls_to_the_slower(kernels):
    assert select("linear", "cuda").name == "slow"
    assert select("linear", "cpu", 10).name == "slow"


def test_features_decide_and_are_told(kernels):
    needs = frozenset({"row scales", "groups"})
    with pytest.raises(
        InputError, match=r"linear on cpu, 8 bits, groups, row scales \(fast: no groups; slow: no groups"
    ):
        select("linear", "cpu", 8, needs)
    features = {"row scales": None, "groups": "a channel has one scale"}
    register_kernel("linear", "half", ("cpu",), priority=5, features=features)(_prepare)
    register_kernel("linear", "all", (), priority=1, features={"row scales": None, "groups": None})(_prepare)
    assert select("linear", "cpu", 8, needs).name == "all"
    assert select("linear", "cpu", 8, frozenset({"row scales"})).name == "half"
    assert select("linear", "cpu").name == "fast"
    passed_over = kernel_report()["linear on cpu, 8 bits, groups, row scales"]["passed_over"]
    assert passed_over == {"fast": "no groups", "half": "a channel has one scale"}


def test_reasons_are_logged_once_and_reported(kernels, caplog):
    kernels["fast"] = "no AVX-512"
    with caplog.at_level(logging.INFO, logger="halftone.kernels"):
        select("linear", "cpu")
        select("linear", "cpu")
    assert len(caplog.records) == 1 and "fast: no AVX-512" in caplog.text
    expected = {"kernel": "slow", "with": [], "passed_over": {"fast": "no AVX-512"}}
    assert kernel_report() == {"linear on cpu, 8 bits": expected}


def test_what_makes_a_kernel_faster_is_reported_whether_there_or_not(kernels, caplog):
    accelerators = {"native codes": lambda: None, "native sums": lambda: "not built"}
    register_kernel("linear", "faster", ("cpu",), priority=20, accelerators=accelerators)(_prepare)
    with caplog.at_level(logging.INFO, logger="halftone.kernels"):
        select("linear", "cpu")
    assert "faster with native codes kernel; native sums: not built" in caplog.text
    report = kernel_report()["linear on cpu, 8 bits"]
    assert report == {"kernel": "faster", "with": ["native codes"], "passed_over": {"native sums": "not built"}}


def test_environment_forces_a_kernel(kernels, monkeypatch):
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, "slow")
    assert select("linear", "cpu").name == "slow"


def test_unknown_forced_kernel_is_an_error(kernels, monkeypatch):
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, "fastt")
    with pytest.raises(InputError, match="did you mean 'fast'"):
        select("linear", "cpu")


def test_forced_kernel_that_cannot_run_is_an_error(kernels, monkeypatch):
    kernels["fast"] = "no AVX-512"
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, "fast")
    with pytest.raises(InputError, match="no AVX-512"):
        select("linear", "cpu")


def test_a_device_without_float64_is_refused_although_a_kernel_is_for_all(kernels):
    for refuse in (check_device, lambda device: select("linear", device)):
        with pytest.raises(InputError, match="does not run on 'mps': it has no float64"):
            refuse("mps")
    check_device("cuda")


def test_no_kernel_is_an_error(kernels):
    with pytest.raises(InputError, match="none is registered"):
        select("conv2d", "cpu")
    with pytest.raises(InputError, match="no operation 'liner'"):
        register_kernel("liner", "x", (), priority=0)
