"""The page of a study: every number, its plots, nothing from outside."""

import re

import pytest
from made_up_study import row, study_of, table_of
from test_page import ADDRESS_ATTRIBUTES, Page

from halftone.report.metrics import METRICS
from halftone.report.study_page import boards_of, cost_cells, headlines, render_study_page, write_study_page
from halftone.report.study_plots import bars_svg, cost_svg, curve_svg

PSNR = next(metric for metric in METRICS if metric.name == "psnr")
FID = next(metric for metric in METRICS if metric.name == "fid_to_fp")


@pytest.fixture(scope="module")
def results():
    return study_of()


@pytest.fixture(scope="module")
def page(results):
    return Page(render_study_page(results))


def test_every_row_appears_with_its_numbers_and_costs(page, results):
    for table in results.tables:
        assert table.title in page.text and table.sentence in page.text
        for one in table.rows:
            assert one.name in page.text and one.recipe in page.text
            for result in one.sets.values():
                low, high = result.psnr.ci95
                assert f"{result.psnr.mean:.1f}" in page.text and f"{low:.1f} to {high:.1f}" in page.text
            for text in cost_cells(one):
                assert text in page.text
    for words in (
        *("W8 A8.4, 1.2 products", "75 s", "11.4 MB", "noise floor, 40 prompts", "Not measured yet: sides."),
        *("made-up", "halftone.study/1", "PNDMScheduler", "0123abc", "40 images are <few>."),
    ):
        assert words in page.text, words
    assert not re.search(r"\b(None|nan|inf|Undefined)\b", page.text)


def test_each_kind_of_table_has_its_plots_in_the_colours_of_the_page(page):
    drawings = re.findall(r"<svg.*?</svg>", page.source, flags=re.DOTALL)
    # main: two sets, two metrics, two costs; ablation: two metrics; two curves of two metrics
    assert len(drawings) == 8 + 2 + 2 + 2
    for drawing in drawings:
        assert "var(--c0)" in drawing and not re.search(r"#01[0-9a-f]{4}", drawing)
        assert "mathdefault" not in drawing and "$" not in drawing
    assert len([one for one in drawings if "executed 8-bit products" in one]) == 4
    assert len([one for one in drawings if "over share of relaxed steps" in one]) == 2
    assert len(page.ids) == len(set(page.ids))


def test_words_from_outside_are_text_and_nothing_is_asked_for(page):
    for words in ("drift <1>", "The table main & <b>", "halftone study <a>"):
        assert words in page.text, words
    assert not page.named("b") and not page.named("script")
    assert not re.search(r"https?:|//[a-z]|@import|@font-face", page.source)
    for _, attributes in page.tags:
        for name in ADDRESS_ATTRIBUTES & attributes.keys():
            assert attributes[name].startswith("#")


def test_bold_is_the_best_of_its_group_and_what_is_not_told_apart(results):
    main = results.tables[0]
    board = boards_of(main)[0]
    place = [metric.name for metric in board.metrics].index("psnr")
    best = {one.name: one.cells[place].best for rows in board.groups.values() for one in rows}
    assert best["pcr"] and best["drift <1>"] and not best["minmax"]
    assert not best["only w4"], "nothing to compare it with"
    assert [*board.groups] == ["w8a8", "w4a8", ""]


def test_the_headline_names_the_nearest_and_those_beside_it(results):
    found = headlines(results)
    assert found[0].startswith("The table main & <b>, w8a8: pcr has the lowest FID to full precision, ")
    assert found[0].endswith("not told apart from drift <1>.") and "minmax" not in found[0]
    assert not any(", w4a8:" in sentence for sentence in found), "one row is no comparison"


def test_curves_go_by_what_varies(results):
    _, _, share, prompts = results.tables
    drawing = curve_svg(prompts, "in-domain", PSNR)
    assert re.findall(r">(\d+)</text>", drawing)[:3] == ["8", "16", "256"]
    assert 'aria-label="PSNR, dB over share of relaxed steps: w8a6 at 0 ' in curve_svg(share, "in-domain", PSNR)


def test_what_was_not_measured_is_not_drawn():
    bare = table_of("bare", [row("a", "w8a8", 30.0, optional=False)], floors=False)
    assert cost_svg(bare, "nowhere", PSNR, "bits") is None
    assert bars_svg(bare, "w8a8", "nowhere", PSNR) is None
    lpips = next(metric for metric in METRICS if metric.name == "lpips")
    assert bars_svg(bare, "w8a8", "in-domain", lpips) is None
    page = Page(render_study_page(study_of([bare], missing=())))
    assert "Not measured yet" not in page.text and not re.search(r"\bNone\b", page.text)


def test_values_of_very_different_size_are_drawn_by_decades():
    wide = table_of("wide", [row("a", "w8a8", 70.0), row("b", "w8a8", 12.0)])
    drawing = cost_svg(wide, "in-domain", FID, "bits")
    assert "mathdefault" not in drawing and re.search(r">0\.1<|>1<|>0\.01<", drawing)


def test_the_page_is_reproducible_and_written_whole(results, tmp_path):
    path = write_study_page(results, tmp_path / "new")
    assert path == tmp_path / "new" / "report.html"
    assert path.read_text(encoding="utf-8") == render_study_page(results)
    assert [*path.parent.iterdir()] == [path]
