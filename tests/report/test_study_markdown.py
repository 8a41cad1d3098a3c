"""A study's tables between the markers of a page."""

import re
from pathlib import Path

import pytest
from made_up_study import study_of

from halftone.errors import InputError
from halftone.report.study_markdown import MEASURED_ON, check_target, study_markdown, table_markdown, write_tables
from halftone.study import Plan

NAMES = ("main", "ablation", "share", "prompts")
PAGE = """# Mine

Words before.

<!-- study: share -->
stale words
<!-- end of study: share -->

Words after, and <!-- study: measured-on -->stale words<!-- end of study: measured-on --> more.
"""


@pytest.fixture(scope="module")
def results():
    return study_of()


def test_tables_are_well_formed_and_hold_the_numbers(results):
    main = results.tables[0]
    text = table_markdown(main)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    widths = {line.replace("\\|", "").count("|") for line in lines}
    assert len(widths) == 2, "results on the sets have one number of columns, costs another"
    for one in main.rows:
        low, high = one.sets["in-domain"].psnr.ci95
        assert f"{one.sets['in-domain'].psnr.mean:.1f}" in text and f"({low:.1f} to {high:.1f})" in text
    assert "**in-domain**, 40 prompts:" in text and "**out-of-domain**, 40 prompts:" in text
    assert "drift \\<1\\>" in text and "What does main \\| ask?" in text and "- 40 images are \\<few\\>." in text
    assert re.search(r"\| pcr \|.*\*\*3\d\.\d\*\*", text) and "| 75 s |" in text and "| – |" in text


def test_only_what_stands_between_markers_changes(results, tmp_path):
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    check_target(path, NAMES)
    write_tables(results, path)
    text = path.read_text()
    assert "stale words" not in text and text.startswith("# Mine\n\nWords before.\n\n<!-- study: share -->\n")
    assert "Words after" in text and text.rstrip().endswith("more.") and "What does share" in text
    assert "What does main" not in text
    write_tables(results, path)
    assert path.read_text() == text, "written again it is the same"


def test_a_new_file_gets_all_of_them(results, tmp_path):
    path = tmp_path / "new" / "page.md"
    check_target(path, NAMES)
    write_tables(results, path)
    text = path.read_text()
    assert text == study_markdown(results)
    for name in (*NAMES, MEASURED_ON):
        assert f"<!-- study: {name} -->" in text and f"<!-- end of study: {name} -->" in text
    write_tables(results, path)
    assert path.read_text() == text


@pytest.mark.parametrize(
    "text, said",
    [
        ("# nothing\n", "has no place for a table; write <!-- study: main -->"),
        ("<!-- study: main -->\n", "only one of"),
        ("<!-- end of study: main -->\n<!-- study: main -->\n", "the wrong way round"),
    ],
)
def test_a_file_without_a_place_is_refused(text, said, tmp_path):
    path = tmp_path / "page.md"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        check_target(path, NAMES)
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="not UTF-8"):
        check_target(path, NAMES)
    with pytest.raises(InputError, match="cannot be read"):
        check_target(tmp_path, NAMES)


def test_the_projects_own_page_has_a_place_for_every_table():
    page = Path(__file__).parents[2] / "docs" / "results.md"
    names = [table.name for table in Plan.load("paper").tables]
    check_target(page, names)
    for name in (*names, MEASURED_ON):
        assert f"<!-- study: {name} -->" in page.read_text(encoding="utf-8")
