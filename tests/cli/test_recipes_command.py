"""`halftone recipes`: every preset with its sentence, for people and for machines."""

from halftone.recipe import Recipe


def test_lists_every_preset_with_its_sentence(halftone):
    ran = halftone("recipes")
    assert (ran.code, ran.err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in ran.out.splitlines())
    assert lines == {name: Recipe.load(name).description for name in Recipe.presets()}
    assert all(sentence.endswith(".") and sentence.count(".") == 1 for sentence in lines.values())


def test_json_holds_the_whole_recipes(halftone):
    ran = halftone("recipes", "--json")
    assert (ran.code, ran.err) == (0, "")
    found = {data["name"]: Recipe.from_dict(data) for data in ran.json["recipes"]}
    assert found == {name: Recipe.load(name) for name in Recipe.presets()}
