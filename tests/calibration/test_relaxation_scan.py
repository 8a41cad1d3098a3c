"""The scan for relaxed steps: gains against the closed form of a linear denoiser, budgets, resuming, its limits."""

import math

import pytest
import torch
from pipelines import tiny_sd, tiny_sd3, tiny_sdxl
from torch import nn

import halftone
from halftone.artifact.inspection import inspect_artifact
from halftone.calibration import CalibrationSettings, relaxation_scan
from halftone.calibration.checkpoint import Checkpoint
from halftone.calibration.relaxation_scan import ScanPlan, find_relaxed_steps
from halftone.calibration.trace import trace_calls
from halftone.denoiser import Denoiser, find_denoiser
from halftone.errors import NonFiniteError

PROMPTS = ("a red cube", "a blue ball", "red red", "blue", "cube ball")
STEPS = 4


def _recipe(**relax):
    data = {"side": "auto", "bits": 12, **(relax or {"fraction": 0.25})}
    return halftone.Recipe.from_dict({"relax": data})


def _quantize(recipe, pipeline=None, folder=None, steps=STEPS, **arguments):
    return halftone.quantize(
        pipeline or tiny_sd(), recipe, PROMPTS, num_inference_steps=steps, checkpoint_folder=folder, **arguments
    )


def _linear_sd(factor):
    """A pipeline whose denoiser predicts ``factor`` times the latents, which go through one layer."""
    pipeline = tiny_sd()
    layer = nn.Linear(8, 8, bias=False)
    layer.weight.data = torch.eye(8)
    pipeline.unet.add_module("only", layer)
    pipeline.unet.forward = lambda sample, *_, **__: (factor * layer(sample),)
    return pipeline


def _scan(pipeline, names, recipe, steps=STEPS):
    settings = CalibrationSettings(PROMPTS, steps, guidance_scale=1.0)
    denoiser = find_denoiser(pipeline)
    assert isinstance(denoiser, Denoiser)
    trace = trace_calls(pipeline, denoiser, settings)
    return find_relaxed_steps(pipeline, denoiser, names, recipe, settings, trace, Checkpoint(None, {}))


def _ddim(scheduler, steps):
    """(a, b) of x' = a x + b e for each step, from Song et al. (2021, arXiv 2010.02502), equation 12 with sigma 0."""
    scheduler.set_timesteps(steps)
    found = []
    for timestep in scheduler.timesteps.tolist():
        before = timestep - scheduler.config.num_train_timesteps // steps
        now = float(scheduler.alphas_cumprod[timestep])
        then = float(scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod)
        found.append((math.sqrt(then / now), math.sqrt(1 - then) - math.sqrt(then * (1 - now) / now)))
    return found


def test_gains_are_those_of_the_recursion():
    factor, recipe = 0.8, _recipe()
    found = _scan(_linear_sd(factor), ["only"], recipe)
    expected = []
    steps = _ddim(tiny_sd().scheduler, STEPS)
    for number, (_, b) in enumerate(steps):
        later = [a + b * factor for a, b in steps[number + 1 :]]
        expected.append(abs(b * math.prod(later)))
    assert found.errors.gains == pytest.approx(expected, rel=1e-4)


def test_errors_are_those_of_rounding():
    """Rounding noise is uniform: its norm is scale / sqrt(12) an element; 4 bits more make it 16 times smaller, and a
    prediction of ``factor`` times the input has ``factor`` times its error."""
    found = _scan(_linear_sd(0.8), ["only"], _recipe())
    assert found.prompts == 4
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    noise = torch.cat([torch.randn(1, 4, 8, 8, generator=generator) for generator in generators])
    scale = float(noise.max() - noise.min()) / 255
    assert found.errors.narrow[0] == pytest.approx(0.8 * scale / math.sqrt(12) * math.sqrt(noise.numel()), rel=0.05)
    for narrow, wide in zip(found.errors.narrow, found.errors.wide, strict=True):
        assert narrow / wide == pytest.approx(16, rel=0.1)


@pytest.mark.parametrize("build", [tiny_sd, tiny_sdxl, tiny_sd3])
def test_the_choice_is_what_runs_and_what_is_told(build, tmp_path):
    result = _quantize(_recipe(), build())
    relaxed = result.relaxed
    assert len(relaxed.slots) == 1
    bits = result.config.slots.num_bits
    assert bits == tuple(12 if slot in relaxed.slots else 8 for slot in range(STEPS))
    assert set(relaxed.final_error) == {"auto", "start", "end"}
    assert relaxed.final_error[relaxed.side] == min(relaxed.final_error.values())
    result.save(tmp_path / "out")
    told = inspect_artifact(tmp_path / "out")["calibration"]
    assert told["relaxed"]["slots"] == list(relaxed.slots) and told["relaxed"]["side"] == relaxed.side
    # 2 passes of each of 5 prompts at 4 calls; of 4 prompts: 3 at 4 calls, 3 + 2 + 1 after the probes, 3 times 4
    assert told["denoiser_passes_per_prompt"] == 2 * 4 + (3 * 4 + 6 + 3 * 4) * 4 / 5


def test_a_choice_that_does_not_keep_its_promise_is_not_taken(monkeypatch):
    plain = _quantize(_recipe()).relaxed
    worst = max((0, STEPS - 1), key=lambda slot: plain.final_error["start" if slot == 0 else "end"])
    monkeypatch.setattr(relaxation_scan, "most_helpful", lambda errors, count: (worst,))
    found = _quantize(_recipe()).relaxed
    assert found.side == {0: "end", STEPS - 1: "start"}[worst]
    assert found.slots == ((STEPS - 1,) if worst == 0 else (0,))


def test_a_timestep_that_is_visited_twice_is_one_choice():
    result = _quantize(_recipe(fraction=0.5), tiny_sd(scheduler="pndm"))
    assert len(result.relaxed.errors.gains) == STEPS + 1 and len(result.relaxed.slots) == 2
    assert sorted(result.config.slots.num_bits) == [8, 8, 12, 12]


@pytest.mark.parametrize("relax, bits", [({"products": 1.0}, 8), ({"products": 2.0}, 12), ({"fraction": 0.0}, 8)])
def test_without_a_choice_there_is_no_scan(relax, bits):
    result = _quantize(_recipe(**relax))
    assert result.relaxed is None and set(result.config.slots.num_bits) == {bits}
    assert result.config.calibration["denoiser_passes_per_prompt"] == 2 * STEPS


def test_more_steps_than_probes(monkeypatch):
    exact = _scan(_linear_sd(0.8), ["only"], _recipe(), steps=7)
    monkeypatch.setattr(relaxation_scan, "PROBES", 3)
    found = _scan(_linear_sd(0.8), ["only"], _recipe(), steps=7)
    assert found.passes < exact.passes
    for call in (0, 3, 6):
        assert found.errors.gains[call] == exact.errors.gains[call]


class _Interrupt(Exception):
    pass


def test_an_interrupted_scan_goes_on(tmp_path):
    whole = _quantize(_recipe())
    pieces = len(ScanPlan(STEPS, 4, (0, 1, 2, 3)).works)
    assert pieces == STEPS + STEPS + 3
    for stop in range(1, pieces + 2):

        def progress(done, total, stop=stop):
            assert total == pieces + STEPS
            if done == stop:
                raise _Interrupt

        folder = tmp_path / str(stop)
        with pytest.raises(_Interrupt):
            _quantize(_recipe(), folder=folder, progress=progress)
        resumed = _quantize(_recipe(), folder=folder)
        assert resumed.config == whole.config
        assert resumed.relaxed.resumed_pieces == min(stop, pieces)
    resumed.save(tmp_path / "out")
    assert not folder.exists()


def test_infinite_activations_are_told_with_layer_and_step():
    pipeline = _linear_sd(1e38)
    with pytest.raises(NonFiniteError, match=r"in step 2 of 4|The output of the denoiser has .* in step"):
        _scan(pipeline, ["only"], _recipe())


def test_it_is_announced():
    said = []
    _quantize(_recipe(), announce=said.append)
    assert "Before it, the relaxed steps are chosen with 30 passes of 4 prompts" in said[0]
