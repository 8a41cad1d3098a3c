import hashlib
import itertools
import json

import pytest

from halftone import prompts
from halftone.errors import InputError
from halftone.prompts import prompt_sets, read_prompts
from halftone.qdiffbench.prompt_sets import PromptEntry, load_prompt_set

ENTRIES = (
    PromptEntry("a red cube", ("a blue cube", "a red cone")),
    PromptEntry('a "green" cone, left', ("a green cube, left",)),
    PromptEntry("日本", ("a", "b")),
)


@pytest.fixture
def files(tmp_path):
    """The same three prompts as JSONL, CSV and text."""
    rows = [{"id": i, "prompt": e.prompt, "alternatives": list(e.alternatives)} for i, e in enumerate(ENTRIES)]
    (tmp_path / "p.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")
    cell = lambda text: '"' + text.replace('"', '""') + '"'  # noqa: E731
    lines = [f"{cell(r['prompt'])},{r['id']},{cell(json.dumps(r['alternatives']))}" for r in rows]
    (tmp_path / "p.csv").write_text("prompt,id,alternatives\r\n" + "\r\n".join(lines) + "\r\n", encoding="utf-8")
    (tmp_path / "p.txt").write_text("\n".join(f"  {e.prompt} \r" for e in ENTRIES) + "\n\n", encoding="utf-8")
    return tmp_path


def test_all_kinds_of_file_hold_the_same(files):
    jsonl, table = load_prompt_set(files / "p.jsonl"), load_prompt_set(files / "p.csv")
    text = load_prompt_set(files / "p.txt")
    assert jsonl.entries == table.entries == ENTRIES
    assert text.prompts == jsonl.prompts
    assert jsonl.has_alternatives and not text.has_alternatives
    assert jsonl.name == "p"
    assert jsonl.sha256 == table.sha256 != text.sha256


def test_the_hash_by_hand(tmp_path):
    (tmp_path / "p.txt").write_text("a\nb\n")
    expected = hashlib.sha256(b'["a",[]]\n["b",[]]\n').hexdigest()
    assert load_prompt_set(tmp_path / "p.txt", name="x").sha256 == expected


def test_prompts_are_read_from_all_kinds(files):
    for name in ("p.jsonl", "p.csv", "p.txt"):
        assert read_prompts(files / name) == tuple(entry.prompt for entry in ENTRIES)
        assert read_prompts(str(files / name), limit=1, skip=1) == (ENTRIES[1].prompt,)


def test_a_column_is_named_with_the_file_or_apart(tmp_path):
    (tmp_path / "c.csv").write_text("id,caption\n1,a cat\n2,a dog\n")
    for arguments in ((f"{tmp_path}/c.csv:caption", None, None), (tmp_path / "c.csv", None, "caption")):
        assert load_prompt_set(*arguments).prompts == ("a cat", "a dog")
    assert read_prompts(f"{tmp_path}/c.csv:caption") == ("a cat", "a dog")
    with pytest.raises(InputError, match="'id' is asked for"):
        load_prompt_set(f"{tmp_path}/c.csv:caption", column="id")


def test_a_colon_in_a_files_name_is_no_column(tmp_path):
    (tmp_path / "a:b.txt").write_text("one\n")
    assert load_prompt_set(tmp_path / "a:b.txt").prompts == ("one",)


def test_sets_of_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "_SETS", tmp_path)
    (tmp_path / "scenes.txt").write_text("a red cube\n")
    assert load_prompt_set("bundled:scenes").prompts == ("a red cube",)
    (tmp_path / "scenes.jsonl").write_text('{"prompt": "a red cube", "alternatives": ["a blue cube"]}\n')
    (tmp_path / "calibration.txt").write_text("x\n")
    (tmp_path / "notes.md").write_text("x\n")
    found = load_prompt_set("bundled:scenes")
    assert (found.name, found.entries[0].alternatives) == ("scenes", ("a blue cube",))
    assert prompt_sets() == ("calibration", "scenes")
    with pytest.raises(InputError, match="did you mean 'scenes'"):
        load_prompt_set("bundled:scene")


def test_samples_are_nested_reproducible_and_depend_on_the_seed(tmp_path):
    (tmp_path / "p.txt").write_text("\n".join(f"prompt {i}" for i in range(50)))
    whole = load_prompt_set(tmp_path / "p.txt")
    samples = [whole.sample(n, seed=3) for n in (1, 7, 20, None)]
    for small, large in itertools.pairwise(samples):
        assert large.prompts[: len(small.prompts)] == small.prompts
    assert sorted(samples[-1].prompts) == sorted(whole.prompts)
    assert samples[-1].prompts != whole.prompts
    assert whole.sample(20, seed=3) == samples[2]
    assert whole.sample(20, seed=4).prompts != samples[2].prompts
    assert len({sample.sha256 for sample in samples}) == 4


def test_a_sample_is_what_the_definition_says(tmp_path):
    # the smallest SHA-256 of seed, position and text comes first
    (tmp_path / "p.txt").write_text("a\nb\nc\na\n")
    lots = {i: hashlib.sha256(f"9\0{i}\0{p}".encode()).hexdigest() for i, p in enumerate("abca")}
    expected = tuple("abca"[i] for i in sorted(lots, key=lots.get))
    assert load_prompt_set(tmp_path / "p.txt").sample(seed=9).prompts == expected


def test_more_images_than_prompts(files):
    for wanted, message in ((4, "3 prompts, and 4 images"), (0, "at least 1")):
        with pytest.raises(InputError, match=message):
            load_prompt_set(files / "p.txt").sample(wanted)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", '{"prompt": "a"}\n{oops\n', "line 2 is not JSON"),
        ("p.jsonl", '["a"]\n', "line 1 must be a JSON object"),
        ("p.jsonl", '{"caption": "a"}\n', r"no column 'prompt'.*FILE:COLUMN"),
        ("p.jsonl", '{"promt": "a"}\n', "did you mean 'promt'"),
        ("p.jsonl", '{"prompt": 3}\n', "must be a text that is not empty"),
        ("p.jsonl", '{"prompt": " "}\n', "must be a text that is not empty"),
        ("p.jsonl", '{"prompt": "a", "alternatives": "b"}\n', "must be a list of texts"),
        ("p.jsonl", '{"prompt": "a", "alternatives": ["b", 1]}\n', "must be a list of texts"),
        ("p.jsonl", '{"prompt": "a", "alternatives": ["b", " a"]}\n', "one of its own alternatives"),
        ("p.jsonl", '{"prompt": "a", "alternatives": ["\\u0000"]}\n', "NUL"),
        ("p.jsonl", "\n", "no prompts"),
        ("p.csv", "prompt\n", "no prompts"),
        ("p.csv", "", "no prompts"),
        ("p.csv", "prompt,id\na\n", "line 2 has another number of cells"),
        ("p.csv", "prompt,id\na,1,2\n", "line 2 has another number of cells"),
        ("p.csv", 'prompt\n"a\n', "not CSV"),
        ("p.csv", "prompt,alternatives\na,b\n", "must be a JSON list"),
        ("p.txt", "\n \n", "no prompts"),
        ("p.txt", "a\0b", "NUL"),
    ],
)
def test_malformed_files_get_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        load_prompt_set(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there_or_not_text(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        load_prompt_set(tmp_path / "p.txt")
    with pytest.raises(InputError, match="does not exist"):
        load_prompt_set(tmp_path / "none.csv:caption")
    with pytest.raises(InputError, match="cannot be read"):
        load_prompt_set(tmp_path)
    (tmp_path / "q.txt").write_text("a\n")
    with pytest.raises(InputError, match="it has no column 'x'"):
        load_prompt_set(f"{tmp_path}/q.txt:x")
