"""Prompt files and what prompts may hold."""

import pytest

from halftone.errors import InputError
from halftone.prompts import MAX_CHARACTERS, check_prompts, prompt_sets, read_prompts


def _file(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "prompts.txt"
    path.write_bytes(text.encode(encoding))
    return path


def test_one_prompt_a_line_blank_lines_skipped(tmp_path):
    path = _file(tmp_path, "\ufeff a cat \r\n\r\n\t\n\"a/b\" 'c' 😀\n\u2028x\u0085y")
    assert read_prompts(path) == ("a cat", "\"a/b\" 'c' 😀", "x\u0085y")


def test_limit_and_skip(tmp_path):
    path = _file(tmp_path, "a\nb\nc\nd")
    assert read_prompts(str(path), limit=2) == ("a", "b")
    assert read_prompts(path, limit=2, skip=2) == ("c", "d") and read_prompts(path, skip=3) == ("d",)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"limit": 3}, "has 2 prompts, and 3 are asked for"),
        ({"limit": 2, "skip": 1}, "has 2 prompts, and 3 are asked for"),
        ({"skip": 2}, "has 2 prompts"),
        ({"limit": 0}, "take at least 1"),
        ({"limit": -1}, "take at least 1"),
        ({"skip": -1}, "skip 0 or more"),
    ],
)
def test_more_than_there_are_is_refused(arguments, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_prompts(_file(tmp_path, "a\nb"), **arguments)


@pytest.mark.parametrize("name, text", [("p.jsonl", "[" * 200_000), ("p.csv", "prompt,alternatives\nx,{deep}\n")])
def test_nesting_too_deep_is_one_sentence(name, text, tmp_path):
    (tmp_path / name).write_text(text.format(deep="[" * 100_000))
    with pytest.raises(InputError, match=r"p\.(jsonl|csv), line \d.*(nested too deeply|must be a JSON list)"):
        read_prompts(tmp_path / name)


def test_any_iterable_of_texts_will_do():
    assert check_prompts(text for text in ("a", "b")) == ("a", "b")
    assert check_prompts({"a": 1}) == ("a",)
    with pytest.raises(InputError, match="There are no prompts"):
        check_prompts(text for text in ())
    for wrong in (None, 5):
        with pytest.raises(InputError, match="Prompts must be a list of texts, not"):
            check_prompts(wrong)


@pytest.mark.parametrize("text", ["", "\n\n", " \t\r\n"])
def test_empty_file_is_refused(text, tmp_path):
    with pytest.raises(InputError, match="has no prompts"):
        read_prompts(_file(tmp_path, text))


def test_file_that_cannot_be_read_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_prompts(tmp_path / "nowhere.txt")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_prompts(tmp_path)
    with pytest.raises(InputError, match=r"not UTF-8 text \(byte 3\)"):
        read_prompts(_file(tmp_path, "caf\xe9 au lait", "latin1"))


def test_unknown_set_suggests_the_near_one(tmp_path, monkeypatch):
    monkeypatch.setattr("halftone.prompts._SETS", tmp_path)
    (tmp_path / "scenes.txt").write_text("a red cube\n")
    assert prompt_sets() == ("scenes",) and read_prompts("bundled:scenes") == ("a red cube",)
    with pytest.raises(InputError, match="did you mean 'scenes'"):
        read_prompts("bundled:scene")


@pytest.mark.parametrize("prompt", ["", "x" * MAX_CHARACTERS, "a/b\\c", "\"'`", "😀" * 10_000, "two\nlines", "é\u0301"])
def test_any_text_is_a_prompt(prompt):
    assert check_prompts(["a", prompt]) == ("a", prompt)


@pytest.mark.parametrize(
    "prompts, message",
    [
        ([], "There are no prompts"),
        ("a cat", "a list of texts, not one text"),
        (["a", "x" * 10_001], "Prompt 2 has 10001 characters; at most 10000"),
        (["a\0b"], "Prompt 1 contains a NUL character"),
        (["a", None], "Prompt 2 is of type NoneType"),
        (["a", "\udce9"], "Prompt 2 holds bytes that are no valid Unicode"),
    ],
)
def test_what_cannot_be_a_prompt_is_refused_by_number(prompts, message):
    with pytest.raises(InputError, match=message) as caught:
        check_prompts(prompts)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_too_long_or_nul_in_a_file_is_refused(tmp_path):
    for text in ("ok\n" + "x" * 10_001, "ok\na\0b"):
        with pytest.raises(InputError, match="Prompt 2"):
            read_prompts(_file(tmp_path, text))
