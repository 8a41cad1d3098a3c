"""The estimate before a calibration: counted by hand, never in the way, and without a pass through the denoiser."""

import types

import pytest
import torch
from pipelines import BUILDERS, denoiser_of, tiny_sd
from torch import nn

import halftone
from halftone.calibration import CalibrationSettings, cost
from halftone.calibration.cost import CostEstimate, estimate_cost
from halftone.calibration.trace import Trace, trace_calls
from halftone.denoiser import find_denoiser


class _TwoLayers(nn.Module):
    """A convolution and a linear layer on 4 x 4 pixels, with a wide value in between."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.linear = nn.Linear(6 * 16, 5)

    def forward(self, sample, timestep):
        return self.linear(self.conv(sample).flatten(1))


def _trace(rows=2, calls=3):
    return Trace(tuple(float(i) for i in range(calls)), rows, (torch.zeros(rows, 2, 4, 4), torch.tensor(7)), {})


def _settings(prompts=5, batch_size=2):
    return CalibrationSettings(tuple(f"prompt {i}" for i in range(prompts)), batch_size=batch_size)


def _pipeline(module):
    return types.SimpleNamespace(components={"unet": module, "scheduler": object()})


@pytest.fixture
def rates(monkeypatch):
    """A machine of 1000 floating-point and 10 integer operations a second, and no cost of an operation itself."""
    monkeypatch.setattr(cost, "_rates", lambda device: (1000.0, 10.0))
    monkeypatch.setattr(cost, "_SECONDS_PER_OPERATION", 0.0)


@pytest.mark.parametrize("passes_per_call", [1, 2])
def test_time_by_hand(passes_per_call, rates):
    """5 prompts in twos are 3 micro-batches of 2 prompts, 2 rows each; 3 calls."""
    module = _TwoLayers()
    found = estimate_cost(_pipeline(module), module, _settings(), _trace(), passes_per_call)
    rows = 4
    flops = 2 * rows * 16 * 6 * (2 * 9) + 2 * rows * 5 * 96  # of the convolution and of the linear layer
    seconds = 3 * 3 * flops / 1000 + (3 * 3 * flops / 10 if passes_per_call == 2 else 0)
    assert found.passes == 5 * 3 * passes_per_call
    assert found.seconds == pytest.approx(seconds)


def test_memory_by_hand(rates):
    module = _TwoLayers()
    found = estimate_cost(_pipeline(module), module, _settings(), _trace(), 2)
    weights = 4 * (6 * 2 * 9 + 6 + 96 * 5 + 5)
    kept = 5 * 2 * (4 * 2 * 2 * 16 + 8)  # of each prompt the arguments, and as much again for what comes out
    working = 4 * 4 * (6 * 16)  # the convolution's result of 4 rows, the widest value
    assert weights + kept + working <= found.memory_bytes
    # besides it the linear layer's small result, and views and copies of the linear layer's weight
    assert found.memory_bytes <= weights + kept + working + 4 * (4 * 5 + 2 * 96 * 5) + 4 * 4 * 6 * 16


def test_peak_is_not_the_sum():
    """Ten results of 1 MB one after the other, of which two are alive at a time."""

    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, sample, timestep):
            for _ in range(10):
                sample = sample + 1.0
            return sample

    trace = Trace((0.0,), 1, (torch.zeros(1, 250_000), torch.tensor(0)), {})
    traced = cost._run_on_fakes(Chain(), trace, 1)
    assert traced.operations == 10 and 1_000_000 <= traced.peak_bytes <= 2_000_000


def test_a_model_that_needs_data_gets_no_time_and_no_error(rates):
    class Curious(_TwoLayers):
        def forward(self, sample, timestep):
            if float(sample.sum()) > 0:
                raise RuntimeError
            return super().forward(sample, timestep)

    module = Curious()
    found = estimate_cost(_pipeline(module), module, _settings(), _trace(), 2)
    assert found.seconds is None and found.memory_bytes > 0
    assert found.sentence() == f"30 passes through the denoiser; at least {found.memory_bytes / 1e6:.0f} MB of memory."


@pytest.mark.parametrize("kind", BUILDERS)
def test_every_kind_of_pipeline_is_traced_without_a_pass(kind):
    """No layer computes: each would have to be called with data."""
    pipeline = BUILDERS[kind]()
    module = denoiser_of(pipeline)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    seen = []
    for layer in list(module.modules())[1:]:  # the denoiser itself is called, and answers zeros
        layer.register_forward_pre_hook(
            lambda layer, args: seen.extend(
                type(value) for value in args if isinstance(value, torch.Tensor) and type(value) is torch.Tensor
            )
        )
    settings = CalibrationSettings(("a", "b", "c"), num_inference_steps=2, batch_size=2)
    trace = trace_calls(pipeline, find_denoiser(pipeline), settings)
    found = estimate_cost(pipeline, module, settings, trace, 2)
    assert seen == [], "a layer got real data"
    assert found.seconds > 0 and found.passes == 3 * 2 * 2
    parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    weights = sum(4 * tensor.numel() for part in parts for tensor in part.parameters())
    assert weights < found.memory_bytes < 3 * weights + 50e6
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


def test_a_larger_micro_batch_needs_more_memory():
    pipeline = tiny_sd()
    settings = [CalibrationSettings(("a",) * 8, num_inference_steps=2, batch_size=size) for size in (1, 2, 4, 8)]
    trace = trace_calls(pipeline, find_denoiser(pipeline), settings[0])
    peaks = [cost._run_on_fakes(pipeline.unet, trace, 2 * one.batch_size).peak_bytes for one in settings]
    assert peaks == sorted(set(peaks)) and peaks[3] == pytest.approx(8 * peaks[0], rel=0.3)


def test_announced_once_and_before_the_first_pass():
    said, passes = [], []
    pipeline = tiny_sd()

    def announce(text):
        said.append((text, len(passes)))

    pipeline.unet.conv_in.register_forward_pre_hook(
        lambda module, args: passes.append(1) if type(args[0]) is torch.Tensor else None
    )
    halftone.quantize(pipeline, "pcr-w8a8", ["a", "b"], num_inference_steps=2, announce=announce)
    ((text, before),) = said
    assert before == 0 and text.startswith("8 passes through the denoiser: about ") and len(passes) == 4


@pytest.mark.parametrize(
    "estimate, expected",
    [
        (CostEstimate(8, 1.4, 999_000_000), "8 passes through the denoiser: about 1 s and 999 MB of memory."),
        (CostEstimate(8, 119, 1_500_000_000), "8 passes through the denoiser: about 119 s and 1.5 GB of memory."),
        (CostEstimate(8, 120, 2e9), "8 passes through the denoiser: about 2 min and 2.0 GB of memory."),
    ],
)
def test_sentence(estimate, expected):
    assert estimate.sentence() == expected
