"""Recipes: presets, strictness, one-sentence errors."""

import json

import pytest

from halftone.errors import RecipeError
from halftone.recipe import Recipe

PRESETS = ("minmax-w8a8", "pcr-no-relax-w8a8", "pcr-start-w8a8", "pcr-w8a6", "pcr-w8a8", "per-step-w8a8")


def test_presets_are_there():
    assert set(PRESETS) <= set(Recipe.presets())


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_named_as_its_file_and_round_trips(name):
    recipe = Recipe.load(name)
    assert recipe.name == name and recipe.description
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert Recipe.load(recipe) is recipe


def test_files_are_read(tmp_path):
    (tmp_path / "mine.yaml").write_text("name: mine\nactivations: {num_bits: 6}\n")
    (tmp_path / "mine.json").write_text('{"name": "mine", "activations": {"num_bits": 6}}')
    assert Recipe.load(tmp_path / "mine.yaml") == Recipe.load(str(tmp_path / "mine.json"))


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "\x00"])
def test_broken_file_is_one_sentence(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path)
    assert "\n" not in str(caught.value) and "broken.yaml" in str(caught.value)


def test_unknown_preset_and_missing_file():
    with pytest.raises(RecipeError, match="did you mean 'pcr-w8a8'"):
        Recipe.load("pcr-w8a9")
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.load("nowhere.yaml")


RELAX = {"fraction": 0.2, "side": "end", "bits": 10}


@pytest.mark.parametrize(
    "data, message",
    [
        ({"activatons": {}}, "unknown key 'activatons'; did you mean 'activations'?"),
        ({"activations": {"num_bit": 8}}, "unknown key 'activations.num_bit'; did you mean 'num_bits'?"),
        ({"activations": {"num_bits": 0}}, "activations.num_bits is 0; it must be an integer from 2 to 16"),
        ({"activations": {"num_bits": 17}}, "activations.num_bits is 17; it must be an integer from 2 to 16"),
        ({"activations": {"num_bits": "8"}}, "activations.num_bits is '8'; it must be an integer"),
        ({"activations": {"num_bits": True}}, "activations.num_bits is True; it must be an integer"),
        ({"weights": {"num_bits": 9}}, "weights.num_bits is 9; it must be an integer from 2 to 8"),
        ({"weights": None}, "weights is None; it must be a mapping"),
        ({"relax": {**RELAX, "fraction": 1.5}}, "relax.fraction is 1.5; it must be a number from 0 to 1"),
        ({"relax": {**RELAX, "side": "last"}}, "relax.side is 'last'; it must be 'start'"),
        ({"relax": {"fraction": 0.5, "side": "end"}}, "key 'relax.bits' is missing; it must be an integer"),
        ({"calibration": "progresive"}, "calibration is 'progresive'; it must be 'progressive' or"),
        ({"version": 2}, "version is 2; it must be 1"),
        ({"exclude": "conv_in"}, "exclude is 'conv_in'; it must be a list"),
        ({"activations": {"observer": {"name": "minmx"}}}, "did you mean 'minmax'?"),
        ({"activations": {"observer": {"name": "mse", "options": {"gird": 3}}}}, "did you mean 'grid'?"),
        ({"activations": {"granularity": "tensor"}}, "calibration 'progressive' needs"),
        (
            {"activations": {"granularity": "tensor"}, "calibration": "full_precision", "relax": RELAX},
            "relax needs activations.granularity 'timestep'",
        ),
    ],
)
def test_errors_are_one_clear_sentence(data, message):
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(data)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("fraction, count", [(0.0, 0), (0.001, 1), (0.05, 3), (0.2, 10), (0.29, 15), (1.0, 50)])
def test_relaxed_slots_round_half_up(fraction, count):
    recipe = Recipe.from_dict({"relax": {**RELAX, "fraction": fraction}})
    assert recipe.relaxed_slots(50) == range(50 - count, 50)
    assert recipe.slot_bits(50) == (8,) * (50 - count) + (10,) * count


def test_relaxing_at_the_start_and_not_at_all():
    assert Recipe.load("pcr-start-w8a8").slot_bits(5) == (10, 8, 8, 8, 8)
    assert Recipe.load("pcr-no-relax-w8a8").slot_bits(3) == (8, 8, 8)


@pytest.mark.parametrize(
    "name", ["conv_in", "time_embedding.linear_1", "proj_out", "pos_embed.proj", "time_text_embed.a.b"]
)
def test_default_exclusions(name):
    assert Recipe().excludes(name)


@pytest.mark.parametrize(
    "name", ["mid_block.attentions.0.proj_out", "down_blocks.0.resnets.0.conv1", "conv_input", "pos_embed"]
)
def test_not_excluded(name):
    assert not Recipe().excludes(name)


def test_exclusion_patterns_are_globs_over_names_and_parents():
    recipe = Recipe.from_dict({"exclude": ["*.attn2", "mid_block"]})
    assert recipe.excludes("up.0.attn2.to_k") and recipe.excludes("mid_block.resnets.0.conv1")
    assert not recipe.excludes("up.0.attn1.to_k")
