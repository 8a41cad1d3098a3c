"""Plans: those of the package, recipes of rows, and every kind of mistake in one sentence."""

import copy

import pytest

from halftone.errors import InputError
from halftone.recipe import Recipe
from halftone.study.plan import Plan, RowPlan, plan_names


def _row(recipe):
    return RowPlan(name="row", recipe=recipe, group="g")


def test_the_packages_plans_can_be_read():
    assert plan_names() == ("paper", "quick")
    for name in plan_names():
        plan = Plan.load(name)
        assert plan.name == name and plan.tables


def test_the_paper_plan_holds_what_the_issue_asks_for():
    plan = Plan.load("paper")
    tables = {table.name: table for table in plan.tables}
    families = {row.recipe for row in tables["families"].rows}
    for width in ("w8a8", "w4a8", "w8a6", "w4a6"):
        for family in (
            *("minmax", "ptq4dm", "qdiffusion", "per-step", "pcr", "pcr-no-relax", "pcr-no-progressive", "dynamic"),
            *("pcr-auto", "pcr-bias", "pcr-drift"),
        ):
            assert f"{family}-{width}" in families
    main = tables["main"]
    assert main.steps == 20 and {one.name: one.num_images for one in main.sets}["in-domain"] >= 2048
    assert {"minmax-w8a8", "pcr-w8a8", "minmax-w4a8", "pcr-w4a8"} <= {row.name for row in main.rows}
    assert tables["fifty-steps"].steps == 50
    relaxed = [row.build().num_relaxed(20) / 20 for row in tables["relaxed-share"].rows if row.group == "w8a8"]
    assert relaxed == [0, 0.05, 0.1, 0.2, 0.3, 0.5]
    prompts = tables["calibration-prompts"]
    assert [prompts.calibration_prompts_of(row) for row in prompts.rows if row.group == "w8a8"] == [
        8,
        16,
        32,
        64,
        128,
        256,
    ]
    sides = [row.build().relax for row in tables["sides"].rows if row.group == "w8a8"]
    assert [one and one.side for one in sides] == [None, "start", "end", "auto"]
    for row in tables["equal-cost"].rows:
        recipe = row.build()
        share = recipe.num_relaxed(20) / 20
        relaxed_products = 2 if recipe.relax is not None and recipe.relax.bits > 8 else 1
        asked = float(row.group.split(" at ")[1].split()[0])
        assert 1 + share * (relaxed_products - 1) == pytest.approx(asked), row.name


def test_a_row_that_does_what_a_preset_does_is_that_preset():
    for recipe in ("pcr-w8a8", {"base": "pcr-w8a6", "activations": {"num_bits": 8}, "relax": {"bits": 10}}):
        assert _row(recipe).build() == Recipe.load("pcr-w8a8")
    whole = {**Recipe.load("pcr-w8a8").to_dict(), "name": "mine", "description": "other words"}
    assert _row(whole).build() == Recipe.load("pcr-w8a8")
    assert _row({"base": "pcr-w8a8", "relax": None}).build() == Recipe.load("pcr-no-relax-w8a8")


def test_equal_recipes_have_one_name_that_follows_from_their_contents():
    a = _row({"base": "pcr-w8a8", "relax": {"fraction": 0.3}}).build()
    b = _row(
        {**Recipe.load("pcr-w8a8").to_dict(), "name": "x", "relax": {"fraction": 0.3, "side": "end", "bits": 10}}
    ).build()
    c = _row({"base": "pcr-w8a8", "relax": {"fraction": 0.4}}).build()
    assert a == b and a.name == b.name != c.name and a.name.startswith("w8a8-")
    assert a.relax.fraction == 0.3 and a.relax.bits == 10 and a.calibration == "progressive"


def test_null_within_a_part_takes_a_key_away():
    recipe = _row({"base": "pcr-w8a8", "relax": {"fraction": None, "products": 1.25}}).build()
    assert recipe.relax.fraction is None and recipe.num_relaxed(20) == 5


def test_pairs_are_those_of_one_group(tables):
    plan = Plan.from_dict({"name": "x", "tables": tables})
    assert plan.tables[0].pairs == [("minmax", "pcr")]
    assert len(plan.tables[1].pairs) == 3
    assert plan.tables[0].heading == "Main" and plan.tables[1].heading == "curve"


def _spoilt(tables, path, value):
    data = {"name": "x", "tables": copy.deepcopy(tables)}
    place = data
    for part in path[:-1]:
        place = place[part]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


@pytest.mark.parametrize(
    "path, value, said",
    [
        (["tabels"], [], r"unknown key 'tabels'; did you mean 'tables'\?"),
        (["tables"], [], "tables is .*a list of tables"),
        (["name"], ..., "key 'name' is missing"),
        (["version"], 2, "version is 2; it must be 1"),
        (["tables", 0, "nam"], "x", r"unknown key 'tables.0.nam'; did you mean 'name'\?"),
        (["tables", 0, "name"], "Main Table", "tables.0.name is 'Main Table'; it must be small letters"),
        (["tables", 0, "steps"], 0, "tables.0.steps is 0; it must be an integer, at least 1"),
        (["tables", 0, "steps"], "20", "tables.0.steps is '20'"),
        (["tables", 0, "guidance"], float("nan"), "tables.0.guidance is nan; it must be a finite number"),
        (["tables", 0, "kind"], "bars", "tables.0.kind is 'bars'; it must be 'comparison'"),
        (["tables", 0, "noise_images"], 3, "noise_images of the table 'main' is 3; it must be 0 or at least 4"),
        (["tables", 0, "rows"], [], "tables.0.rows is .*a list of rows"),
        (["tables", 0, "rows", 1, "name"], "minmax", "two rows of the table 'main' are called 'minmax'"),
        (["tables", 0, "rows", 1, "name"], "a=b", "without '='"),
        (["tables", 0, "rows", 1, "group"], ..., "key 'tables.0.rows.1.group' is missing"),
        (["tables", 0, "rows", 1, "recipe"], 8, "tables.0.rows.1.recipe: 8 is neither a preset's name nor a mapping"),
        (
            ["tables", 0, "rows", 1, "recipe"],
            "pcr-w8a9",
            "table 'main', row 'pcr': unknown recipe 'pcr-w8a9'; did you mean",
        ),
        (["tables", 0, "rows", 1, "recipe"], {"base": "pcr-w8"}, "table 'main', row 'pcr': unknown recipe 'pcr-w8'"),
        (["tables", 0, "rows", 1, "recipe"], {"base": 8}, "row 'pcr': base is 8; it must be a preset's name"),
        (["tables", 0, "rows", 1, "recipe"], {"base": "pcr-w8a8", "relx": 1}, "row 'pcr': .*unknown key 'relx'"),
        (
            ["tables", 0, "rows", 1, "recipe"],
            {"base": "minmax-w8a8", "relax": {"fraction": 0.2, "side": "end", "bits": 10}},
            "relax needs",
        ),
        (["tables", 0, "rows", 1, "num_calibration_prompts"], 0, "num_calibration_prompts is 0"),
        (["tables", 0, "sets", 1, "name"], "one", "two prompt sets of the table 'main' are called 'one'"),
        (["tables", 0, "sets", 0, "num_images"], 3, "num_images is 3; it must be an integer, at least 4"),
        (["tables", 1, "name"], "main", "two tables are called 'main'"),
    ],
)
def test_mistakes_are_one_sentence(path, value, said, tables):
    with pytest.raises(InputError, match=said) as caught:
        Plan.from_dict(_spoilt(tables, path, value))
    assert "\n" not in str(caught.value) and str(caught.value).startswith("the plan")


def test_files_are_read_strictly(tmp_path):
    with pytest.raises(InputError, match=r"no plan 'papr' .*did you mean 'paper'\?"):
        Plan.load("papr")
    with pytest.raises(InputError, match=r"plan '.*none.yaml' cannot be read"):
        Plan.load(tmp_path / "none.yaml")
    path = tmp_path / "plan.yaml"
    path.write_text("name: a\nname: b\n")
    with pytest.raises(InputError, match="the key 'name' stands there twice"):
        Plan.load(path)
    path.write_text("- a\n")
    with pytest.raises(InputError, match="must be a mapping of keys to values, not list"):
        Plan.load(path)


def test_only_some_tables(tables):
    plan = Plan.from_dict({"name": "x", "tables": tables})
    assert [table.name for table in plan.chosen(())] == ["main", "curve"]
    assert [table.name for table in plan.chosen(("curve",))] == ["curve"]
    with pytest.raises(InputError, match=r"no table 'mian'; did you mean 'main'\?"):
        plan.chosen(("mian",))
