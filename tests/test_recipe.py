"""Recipes: presets, strictness, one-sentence errors."""

import json
from pathlib import Path

import pytest
from torch import nn

import halftone.recipe
from halftone.denoiser import choose_layers
from halftone.errors import RecipeError
from halftone.recipe import Recipe


def left_out(*names, recipe=None):
    """Which of these layers a recipe leaves in floating point, and why."""
    root = nn.Module()
    for name in ("kept", *names):
        *parents, last = name.split(".")
        module = root
        for part in parents:
            module.add_module(part, module._modules.get(part) or nn.Module())
            module = module.get_submodule(part)
        module.add_module(last, nn.Linear(2, 2))
    return choose_layers(root, (recipe or Recipe()).exclude).left_out


FAMILIES = (
    *("minmax", "ptq4dm", "per-step", "dynamic", "qdiffusion"),
    *("pcr", "pcr-no-relax", "pcr-no-progressive", "pcr-auto"),
)
GRANULARITIES = {"minmax": "tensor", "ptq4dm": "tensor", "qdiffusion": "tensor", "dynamic": "token"}
OBSERVED = {"ptq4dm": "normal", "qdiffusion": "even"}
CALIBRATIONS = {"dynamic": "none"} | dict.fromkeys(("pcr", "pcr-no-relax", "pcr-auto"), "progressive")
WIDTHS = [(weights, activations) for weights in (8, 4) for activations in (8, 6)]
CORRECTED = tuple(f"pcr-{kind}-{widths}" for kind in ("bias", "drift") for widths in ("w8a8", "w8a6", "w4a8", "w4a6"))
PRESETS = (
    *(f"{family}-w{w}a{a}" for family in FAMILIES for w, a in WIDTHS),
    *CORRECTED,
    "pcr-start-w8a8",
    "pcr-gptq-w4a8",
)


def test_presets_are_there():
    assert set(Recipe.presets()) == set(PRESETS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weights, activations", WIDTHS)
def test_presets_are_what_their_names_say(family, weights, activations):
    recipe = Recipe.load(f"{family}-w{weights}a{activations}")
    assert (recipe.weights.num_bits, recipe.activations.num_bits) == (weights, activations)
    assert recipe.activations.granularity == GRANULARITIES.get(family, "timestep")
    assert recipe.calibration == CALIBRATIONS.get(family, "full_precision")
    assert recipe.observed_steps == OBSERVED.get(family, "all")
    assert recipe.split_shortcuts == (family == "qdiffusion")
    assert recipe.table_rows(10) == (10 if family not in GRANULARITIES else 1)
    relaxed = family in ("pcr", "pcr-no-progressive", "pcr-auto")
    assert recipe.finds_slots == (family == "pcr-auto")
    chosen = (8, 9) if recipe.finds_slots else None
    assert recipe.slot_bits(10, chosen) == (activations,) * 8 + (activations + 2 * relaxed,) * 2
    learned = weights == 4 and family not in ("minmax", "dynamic")
    assert recipe.weights.rounding == ("adaround" if learned else "nearest")
    assert recipe.weights.scale == ("mse" if learned else "range")


@pytest.mark.parametrize("name", CORRECTED)
def test_corrected_presets_are_pcr_and_a_correction(name):
    _, kind, widths = name.split("-")
    corrected, plain = Recipe.load(name), Recipe.load(f"pcr-{widths}")
    assert corrected.correction.kind == kind and plain.correction.kind == "none"
    assert kind == "bias" or corrected.correction.gain == "least_squares"
    data = {**plain.to_dict(), "name": name, "description": corrected.description}
    assert corrected.to_dict() == {**data, "correction": corrected.to_dict()["correction"]}


def test_recipe_without_correction_is_written_as_before():
    for data in ({}, {"correction": {}}, {"correction": {"kind": "none"}}):
        assert Recipe.from_dict(data) == Recipe() and "correction" not in Recipe.from_dict(data).to_dict()
    assert Recipe.from_dict({"correction": {"kind": "bias"}}).to_dict()["correction"] == {"kind": "bias"}
    drift = Recipe.from_dict({"correction": {"kind": "drift", "gain": "least_squares"}})
    assert drift.to_dict()["correction"] == {"kind": "drift", "gain": "least_squares", "max_gain": 2.0}
    assert Recipe.from_dict(drift.to_dict()) == drift


def test_recipe_that_protects_nothing_is_written_as_before():
    for data in ({}, {"protect": None}):
        assert Recipe.from_dict(data) == Recipe() and "protect" not in Recipe.from_dict(data).to_dict()
    recipe = Recipe.from_dict({"protect": {"layers": "auto", "operations": 1}})
    assert recipe.to_dict()["protect"] == {"layers": "auto", "operations": 1.0}
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize("name", PRESETS)
def test_preset_begins_with_a_sentence(name):
    first = (Path(halftone.recipe.__file__).parent / "recipes" / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ") and first.endswith(".")


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


def test_missing_file_is_told_without_error_numbers():
    with pytest.raises(RecipeError) as caught:
        Recipe.load("nowhere.yaml")
    assert str(caught.value) == "recipe file 'nowhere.yaml' cannot be read: No such file or directory"


@pytest.mark.parametrize("name", ["deep.yaml", "deep.json"])
def test_nesting_too_deep_is_one_sentence(name, tmp_path):
    (tmp_path / name).write_text("[" * 200_000)
    with pytest.raises(RecipeError, match="nested too deeply"):
        Recipe.load(tmp_path / name)


@pytest.mark.parametrize(
    "name, text",
    [
        ("r.yaml", "activations: {num_bits: 6}\nactivations: {num_bits: 8}\n"),
        ("r.yaml", "activations: {num_bits: 6, num_bits: 8}"),
        ("r.json", '{"activations": {"num_bits": 6, "num_bits": 8}}'),
    ],
)
def test_key_that_stands_there_twice_is_refused(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(RecipeError, match=r"the key '(activations|num_bits)' stands there twice") as caught:
        Recipe.load(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_yaml_may_override_what_it_merges(tmp_path):
    """That is no repetition."""
    (tmp_path / "r.yaml").write_text("weights: &a {num_bits: 4}\nactivations: {<<: *a, num_bits: 6}\n")
    recipe = Recipe.load(tmp_path / "r.yaml")
    assert (recipe.weights.num_bits, recipe.activations.num_bits) == (4, 6)


def test_mapping_is_a_recipe_and_other_things_are_none():
    data = {"name": "mine", "activations": {"num_bits": 6}}
    assert Recipe.load(data) == Recipe.from_dict(data)
    for wrong in (None, 5, ["pcr-w8a8"]):
        with pytest.raises(RecipeError, match="a recipe is a preset's name, a file or a mapping, not"):
            Recipe.load(wrong)


RELAX = {"fraction": 0.2, "side": "end", "bits": 10}
DYNAMIC = {"activations": {"granularity": "token"}, "calibration": "none"}


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
        ({"weights": {"scale": "max"}}, "weights.scale is 'max'; it must be 'range' or 'mse'"),
        ({"weights": {"rounding": "adarond"}}, "weights: unknown rounding 'adarond'; did you mean 'adaround'?"),
        ({"weights": {"rounding": 3}}, "weights.rounding is 3; it must be the name of a rounding rule"),
        (
            {"weights": {"rounding": "gptq", "rounding_options": {"dampng": 0.1}}},
            "rounding 'gptq' has no option 'dampng'; did you mean 'damping'?",
        ),
        ({"weights": {"rounding": "adaround", "rounding_options": {"iterations": 0}}}, "adaround's iterations is 0"),
        ({"weights": {"rounding_options": {"iterations": 5}}}, "rounding 'nearest' has no option 'iterations'"),
        ({"weights": {"rounding_options": {"iterations": "5"}}}, "weights.rounding_options.iterations"),
        ({"weights": None}, "weights is None; it must be a mapping"),
        ({"relax": {**RELAX, "fraction": 1.5}}, "relax.fraction is 1.5; it must be a number from 0 to 1"),
        ({"relax": {**RELAX, "side": "last"}}, "relax.side is 'last'; it must be 'start'"),
        ({"relax": {**RELAX, "products": 1.2}}, "exactly one of fraction, average_bits, products says how many steps"),
        ({"relax": {"side": "auto", "bits": 10}}, "average_bits, products says how many steps; none is given"),
        (
            {"relax": {"average_bits": 7, "side": "auto", "bits": 10}},
            "relax.average_bits 7 cannot be kept: it is 8 with",
        ),
        ({"relax": {"average_bits": 11.5, "side": "end", "bits": 10}}, "no relaxed step and 10 with all of them"),
        ({"relax": {"products": 2.5, "side": "end", "bits": 10}}, "relax.products is 2.5; it must be a number from 1"),
        (
            {"activations": {"num_bits": 9}, "relax": {"products": 1.5, "side": "end", "bits": 16}},
            "relax.products 1.5 cannot be kept: it is 2 with no relaxed step and 2 with all of them",
        ),
        ({"relax": {"fraction": 0.5, "side": "end"}}, "key 'relax.bits' is missing; it must be an integer"),
        ({"calibration": "progresive"}, "calibration is 'progresive'; it must be 'progressive',"),
        ({"version": 2}, "version is 2; it must be 1"),
        ({"exclude": "conv_in"}, "exclude is 'conv_in'; it must be a list"),
        ({"activations": {"observer": {"name": "minmx"}}}, "did you mean 'minmax'?"),
        ({"activations": {"observer": {"name": "mse", "options": {"gird": 3}}}}, "did you mean 'grid'?"),
        ({1: 2}, "unknown key '1'; known: activations"),
        ({"weights": {1: 2}}, "unknown key 'weights.1'; known: granularity"),
        ({"relax": {**RELAX, "bits": 7}}, "relax.bits is 7; relaxed steps get no fewer bits"),
        ({"activations": {"observer": {"name": "mse", "options": {"grid": 2.5}}}}, "grid is 2.5; allowed is"),
        ({"activations": {"observer": {"name": "mse", "options": {"grid": 10**9}}}}, "an integer from 2 to 1024"),
        ({"activations": {"granularity": "tensor"}}, "calibration 'progressive' needs"),
        ({"observed_steps": "normal"}, "observed_steps 'normal' leaves steps out and needs"),
        ({"calibration": "none"}, "calibration 'none' needs activations.granularity 'token', not 'timestep'"),
        ({"activations": {"granularity": "token"}}, "needs calibration 'none', not 'progressive'"),
        ({**DYNAMIC, "relax": RELAX}, "relax needs calibrated steps: with activations.granularity 'token'"),
        (
            {**DYNAMIC, "activations": {"granularity": "token", "observer": {"name": "mse"}}},
            "activations.observer has nothing to observe with activations.granularity 'token'",
        ),
        ({**DYNAMIC, "observed_steps": "normal"}, "observed_steps 'normal' leaves steps out and needs"),
        ({"observed_steps": "odd"}, "observed_steps is 'odd'; it must be 'all', 'normal' or 'even'"),
        ({"observed_steps": "even"}, "observed_steps 'even' leaves steps out and needs"),
        (
            {"weights": {"granularity": "group"}},
            "granularity 'group' with group_size None needs a group_size: 32, 64 or",
        ),
        ({"weights": {"group_size": 32}}, "granularity 'channel' with group_size 32 needs granularity 'group'"),
        ({"weights": {"granularity": "group", "group_size": 48}}, "weights.group_size is 48; it must be 32, 64 or 128"),
        ({"weights": {"symmetric": 0}}, "weights.symmetric is 0; it must be true or false"),
        (
            {"weights": {"symmetric": False, "rounding": "adaround"}},
            "rounding 'adaround' knows only symmetric weights with granularity 'channel'; take 'gptq' or 'nearest'",
        ),
        ({"split_shortcuts": 1}, "split_shortcuts is 1; it must be true or false"),
        ({"protect": "auto"}, "protect is 'auto'; it must be a mapping or null"),
        ({"protect": {"layers": "some", "operations": 0.1}}, "protect.layers is 'some'; it must be 'auto'"),
        ({"protect": {"layers": "auto"}}, "key 'protect.operations' is missing; it must be a number over 0, up to 1"),
        ({"protect": {"operations": 0.1}}, "key 'protect.layers' is missing; it must be 'auto'"),
        ({"protect": {"layers": "auto", "operations": 0}}, "protect.operations is 0; it must be a number over 0,"),
        ({"protect": {"layers": "auto", "operations": 1.01}}, "protect.operations is 1.01; it must be a number over 0"),
        ({"protect": {"layer": "auto", "operations": 0.1}}, "unknown key 'protect.layer'; did you mean 'layers'?"),
        (
            {"correction": {"kind": "drif"}},
            "correction.kind is 'drif'; it must be 'none', 'bias', 'gain_bias' or 'drift'",
        ),
        ({"correction": {"kin": "bias"}}, "unknown key 'correction.kin'; did you mean 'kind'?"),
        ({"correction": None}, "correction is None; it must be a mapping"),
        (
            {"correction": {"kind": "drift", "max_gain": 0.5}},
            "correction.max_gain is 0.5; it must be a number from 1 to",
        ),
        ({"correction": {"kind": "bias", "gain": "unbiased"}}, "correction: gain has no meaning for kind 'bias'"),
        ({"correction": {"max_gain": 1.5}}, "correction: max_gain has no meaning for kind 'none'"),
        ({**DYNAMIC, "correction": {"kind": "bias"}}, "correction.kind 'bias' needs calibration 'progressive'"),
        (
            {"calibration": "full_precision", "correction": {"kind": "drift"}},
            "correction.kind 'drift' needs calibration 'progressive', in which the quantized model's own steps",
        ),
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
    assert name in left_out(name)


@pytest.mark.parametrize(
    "name", ["mid_block.attentions.0.proj_out", "down_blocks.0.resnets.0.conv1", "conv_input", "pos_embed"]
)
def test_not_excluded(name):
    assert name not in left_out(name)


def test_exclusion_patterns_are_globs_over_names_and_parents():
    recipe = Recipe.from_dict({"exclude": ["*.attn2", "mid_block"]})
    names = ("up.0.attn2.to_k", "mid_block.resnets.0.conv1", "up.0.attn1.to_k")
    assert set(left_out(*names, recipe=recipe)) == set(names[:2])


@pytest.mark.parametrize(
    "base, bits, budget, count",
    [
        (8, 10, {"average_bits": 8.4}, 4),  # of 20 steps: 4 * 10 + 16 * 8 = 168 = 20 * 8.4
        (8, 10, {"average_bits": 8.39}, 3),
        (8, 16, {"average_bits": 8.4}, 1),
        (8, 16, {"average_bits": 8.0}, 0),
        (6, 8, {"average_bits": 8.0}, 20),
        (8, 16, {"products": 1.2}, 4),
        (8, 10, {"products": 1.29}, 5),
        (8, 10, {"products": 2}, 20),
        (6, 8, {"products": 1.0}, 20),  # 8 bits cost what 6 bits cost
        (9, 16, {"products": 2}, 20),
    ],
)
def test_budgets_of_relaxed_steps_are_kept_and_used_up(base, bits, budget, count):
    recipe = Recipe.from_dict({"activations": {"num_bits": base}, "relax": {**budget, "side": "end", "bits": bits}})
    assert recipe.slot_bits(20) == (base,) * (20 - count) + (bits,) * count
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_which_steps_a_scan_relaxes_is_not_known_before_it():
    recipe = Recipe.load("pcr-auto-w8a8")
    assert recipe.slot_bits(5, relaxed=(1,)) == (8, 10, 8, 8, 8)
    with pytest.raises(ValueError, match="not known before the scan"):
        recipe.slot_bits(5)
