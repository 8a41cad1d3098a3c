"""The page of the sensitivity experiments: every number, its plots, the sentence on top, nothing from outside."""

import re

import pytest
from made_up_sensitivity import interval_results, sensitivity_of
from test_page import ADDRESS_ATTRIBUTES, Page

from halftone.report.metrics import METRICS
from halftone.report.sensitivity_page import headline, render_sensitivity_page, write_sensitivity_page
from halftone.report.sensitivity_plots import intervals_svg

PLOTTED = ("psnr", "ssim", "fid_to_fp", "clip_score", "attribute_accuracy")


@pytest.fixture(scope="module")
def results():
    return sensitivity_of()


@pytest.fixture(scope="module")
def page(results):
    return Page(render_sensitivity_page(results))


def test_every_interval_and_both_ends_appear_with_their_numbers(page, results):
    for experiment in results.experiments:
        for one in experiment.intervals:
            low, high = one.result.psnr.ci95
            assert one.interval.words in page.text
            assert f"{one.result.psnr.mean:.1f}" in page.text and f"{low:.1f} to {high:.1f}" in page.text
            assert f"{one.result.ssim.mean:.3f}" in page.text
        for side in experiment.sides:
            assert side.sentence in page.text
    for words in (
        *("all steps quantized", "no step quantized", "Text-image matching", "CLIP score change", "Attributes right"),
        *("Noise on the prediction, one interval at a time", "All steps quantized, one interval in floating point"),
        *("PNDMScheduler", "0123abc", "halftone.sensitivity/1", "0.05 of the prediction", "129 layers"),
    ):
        assert words in page.text, words
    assert not re.search(r"\b(None|nan|inf|Undefined)\b", page.text)


def test_each_metric_is_drawn_for_each_experiment_in_the_colours_of_the_page(page):
    drawings = re.findall(r"<svg.*?</svg>", page.source, flags=re.DOTALL)
    assert len(drawings) == 2 * len(PLOTTED)
    for drawing in drawings:
        assert "var(--accent)" in drawing and not re.search(r"#01[0-9a-f]{4}", drawing)
        assert re.search(r'aria-label="[^"]*by steps: steps 1 to 4 [^"]*steps 17 to 20 ', drawing)
    dashed = [drawing for drawing in drawings if "var(--relaxed)" in drawing]
    assert len(dashed) == len(PLOTTED), "the level of all steps quantized, in the one experiment that has it"
    assert len(page.ids) == len(set(page.ids))


def test_words_from_outside_are_text_and_nothing_is_asked_for(page):
    for words in ("per <step>", "40 images are <few>.", "halftone sensitivity <a>", "Some CPU <fast>"):
        assert words in page.text, words
    assert page.text.count("40 images are <few>.") == 1
    assert not page.named("step") and not page.named("script")
    assert not re.search(r"https?:|//[a-z]|@import|@font-face", page.source)
    for _, attributes in page.tags:
        for name in ADDRESS_ATTRIBUTES & attributes.keys():
            assert attributes[name].startswith("#")


@pytest.mark.parametrize(
    "perturb, mixed, expected",
    [
        # CLIP scores change with the PSNR here, by -4 points times the error, with intervals of half of that
        ((40.0, 26.0), (), "Fidelity suffers more from the last steps than from the first ones and"),
        ((26.0, 40.0), (), "Fidelity suffers more from the first steps than from the last ones and"),
        ((40.0, 26.0), (26.0, 40.0), "Fidelity suffers more from the last steps than from the first ones and"),
        ((40.0, 26.0), (40.0, 26.0), "The experiments disagree on fidelity and the experiments disagree on matching."),
        ((30.0, 30.0), (), "No side is told apart for fidelity and no side is told apart for matching."),
        ((30.0,), (), "One interval has no sides to compare."),
    ],
)
def test_the_headline_says_which_side_is_sensitive(perturb, mixed, expected):
    results = sensitivity_of(perturb, mixed)
    assert headline(results).startswith(expected)
    assert headline(results) in Page(render_sensitivity_page(results)).text


def test_without_matching_there_is_none_in_the_page():
    bare = interval_results((36.0, 30.0), optional=False)
    bare = tuple(
        one.model_copy(
            update={"result": one.result.model_copy(update={"clip_score": None, "clip_score_reference": None})}
        )
        for one in bare
    )
    whole = sensitivity_of(mixed=())
    experiment = whole.experiments[0].model_copy(update={"intervals": bare, "sides": ()})
    page = Page(render_sensitivity_page(whole.model_copy(update={"experiments": (experiment,)})))
    assert "Text-image matching" not in page.text and "dotted" not in page.text
    assert not re.search(r"\bNone\b", page.text)
    assert intervals_svg(experiment, next(metric for metric in METRICS if metric.name == "clip_score")) is None


def test_many_intervals_are_labelled_sparsely():
    (experiment,) = sensitivity_of(perturb=[30.0 + i for i in range(25)], mixed=()).experiments
    drawing = intervals_svg(experiment, METRICS[0])
    labels = re.findall(r">(\d+–\d+)<", drawing)
    assert labels == [f"{4 * i + 1}–{4 * i + 4}" for i in range(0, 25, 4)]


def test_the_page_is_reproducible_and_written_whole(results, tmp_path):
    path = write_sensitivity_page(results, tmp_path / "new")
    assert path == tmp_path / "new" / "report.html"
    assert path.read_text(encoding="utf-8") == render_sensitivity_page(results)
    assert [*path.parent.iterdir()] == [path]
