"""Which units share a walk: by hand, and the same before the start as when it comes to it."""

import pytest
from pipelines import BUILDERS, tiny_sd
from test_weights import PROMPTS, _parts, _recipe
from torch import nn

import halftone
from halftone.calibration import weights
from halftone.calibration.checkpoint import Checkpoint
from halftone.calibration.rounding_cost import RoundingEstimate, _walks, estimate_rounding
from halftone.calibration.walks import UnitSize, Walks
from halftone.calibration.weights import round_weights
from halftone.denoiser import choose_layers
from halftone.rounding import Unit, UnitCost


class _Rule:
    """Keeps all rows of a unit's calls."""

    def memory_bytes(self, unit, bytes_per_row, rows):
        return bytes_per_row * rows


def _made(*needs, budget=100, rows=10):
    """Units by (bytes of a row, peak)."""
    layer = nn.Linear(1, 1)
    units = [Unit(f"unit{number}", layer, {}) for number in range(len(needs))]
    sizes = {unit.name: UnitSize(row, UnitCost(peak, 1.0)) for unit, (row, peak) in zip(units, needs, strict=True)}
    return units, Walks(units, sizes, _Rule(), rows, budget)


def test_collectors_together_and_the_largest_rounding_fit():
    _, walks = _made((3, 40), (3, 40), (3, 10), (1, 10), (1, 80))
    assert walks.groups == [[0, 1], [2, 3], [4]]
    assert (walks.peak_bytes, walks.largest) == (60 + 40, "unit4")


def test_a_block_keeps_what_there_is_room_for_and_never_less_than_half():
    units, walks = _made((8, 0), (8, 30), (8, 90), (8, 400), (500, 0))
    assert [walks.kept_rows(unit) for unit in units] == [10, 8, 6, 6, 1]
    assert walks.groups == [[0], [1], [2], [3], [4]]
    assert (walks.peak_bytes, walks.largest) == (500, "unit4")


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("rounding", ["gptq", "adaround"])
def test_walks_are_known_before_the_start(name, rounding, monkeypatch):
    made = []

    def stop(self, *_):
        made.append(self.walks)
        return iter(())

    monkeypatch.setattr(weights._Rounding, "run", stop)
    pipeline, denoiser, recipe, settings, trace, clock = _parts(
        BUILDERS[name](), _recipe(rounding), steps=2, memory_budget=50_000
    )
    names = tuple(choose_layers(denoiser.module, recipe.exclude).chosen)
    round_weights(pipeline, denoiser, names, recipe, settings, trace, clock, Checkpoint(None, {}))
    early = _walks(denoiser.module, names, recipe, settings, trace, 6 * max(1, trace.rows))
    assert early is not None and early.groups == made[0].groups and len(early.groups) > 1
    assert (early.peak_bytes, early.largest) == (made[0].peak_bytes, made[0].largest)


def test_a_model_that_needs_data_gets_no_time_and_no_error(monkeypatch):
    _, denoiser, recipe, settings, trace, _ = _parts(tiny_sd(), _recipe("gptq"), steps=2)
    monkeypatch.setattr(type(denoiser.module), "forward", lambda self, sample, *_, **__: float(sample.sum()))
    names = tuple(choose_layers(denoiser.module, recipe.exclude).chosen)
    found = estimate_rounding(denoiser.module, names, recipe, settings, trace, Checkpoint(None, {}), 1.0)
    assert (found.units, found.seconds, found.peak_bytes) == (79, None, None)
    assert found.sentence("Before it").startswith("Before it, gptq rounds 79 layers and blocks, with about 5 passes a")


def test_a_unit_beyond_the_budget_is_told_at_once():
    estimate = RoundingEstimate("gptq", 282, 0, 51.5, 7200.0, 4_400_000_000, 2_000_000_000, "up.conv1")
    assert estimate.sentence("Before it") == (
        "Before it, gptq rounds 282 layers and blocks, with about 51.5 passes a prompt in about 2.0 h and up to 4.4 GB"
        " beside the model: more than the memory budget of 2.0 GB, since up.conv1 takes no less. How long the rounding"
        " itself takes is told with its first unit."
    )
    said = []
    halftone.quantize(
        tiny_sd(), _recipe("gptq"), PROMPTS, num_inference_steps=2, announce=said.append, memory_budget=100_000
    )
    assert "more than the memory budget of 0 MB, since up_blocks." in said[0]
