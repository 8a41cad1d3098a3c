import base64
import dataclasses
import io
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from made_up_results import candidate, pictures_of, results_of
from PIL import Image

from halftone.errors import InputError
from halftone.qdiffbench.image_files import read_image
from halftone.report import PageInput, write_page
from halftone.report.gallery import GAIN
from halftone.report.html import render_page

VOID = {"meta", "img", "br", "input", "link", "hr"}
ADDRESS_ATTRIBUTES = {"src", "href", "srcset", "action", "data", "poster", "xlink:href"}


class Page(HTMLParser):
    """Collects tags, visible text and ids, and fails on tags that are closed in the wrong order."""

    def __init__(self, text):
        super().__init__()
        self.source = text
        self.open, self.tags, self.ids, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in {"style", "script"}:
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))

    @property
    def without_pixels(self):
        return re.sub(r"base64,[A-Za-z0-9+/=]+", "", self.source)

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def demo(small):
    return Page(render_page(small))


@pytest.fixture(scope="module")
def bench(large):
    return Page(render_page(large))


def with_results(page, **changes):
    return dataclasses.replace(page, results=page.results.model_copy(update=changes))


def test_words_from_outside_are_shown_and_never_executed(demo):
    assert len(demo.named("script")) == 1
    assert not demo.named("b") and not demo.named("convolution")
    for words in (
        'a "quoted" <script>alert(1)</script> & <b>bold</b>',
        "a 🦊 and it's snow",
        "{{ 7 * 7 }}",
        "plain $x^2$",
        'mid <"block">',
        "first <convolution>",
        "halftone demo --prompt 'a <b>'",
        "Shapes & <i>things</i>",
        "Some CPU <fast>",
    ):
        assert words in demo.text, words


def test_a_hostile_name_of_a_candidate_is_only_text(tmp_path):
    name = '<img src=x onerror=alert(1)> $\\frac{a}{b}$ "]]>'
    names = [name, "other"]
    candidates = [candidate(n, (36.0, 0.97), 8, ["s <1>"]) for n in names]
    page = Page(render_page(PageInput("t", results_of(candidates, ["s <1>"]))))
    assert not page.named("img")
    assert name in page.text and "s <1>" in page.text


def test_nothing_outside_the_file_is_asked_for(bench):
    assert not re.search(r"https?:|//[a-z]|@import|@font-face", bench.without_pixels)
    for _, attributes in bench.tags:
        for name in ADDRESS_ATTRIBUTES & attributes.keys():
            assert attributes[name].startswith(("data:image/png;base64,", "#"))
    for address in re.findall(r"url\(([^)]*)\)", bench.source):
        assert address.startswith("#")
    policy = next(m["content"] for m in bench.named("meta") if "default-src" in (m.get("content") or ""))
    assert policy.startswith("default-src 'none'")


def test_ids_are_unique_and_references_resolve(bench):
    assert len(bench.ids) == len(set(bench.ids))
    for target in re.findall(r"(?:url\(|href=\")#([^)\"]+)", bench.source):
        assert target in bench.ids


def test_every_candidate_set_metric_and_floor_appears(bench, large):
    for one in large.results.candidates:
        for result in one.sets.values():
            for value in (f"{result.psnr.mean:.1f}", f"{result.ssim.mean:.3f}", f"{result.lpips.mean:.3f}"):
                assert value in bench.text
            low, high = result.psnr.ci95
            assert f"{low:.1f} to {high:.1f}" in bench.text
        assert one.name in bench.text
    for words in (
        *("PSNR, dB", "SSIM", "LPIPS", "Latent error, %", "FID to full precision", "KID to full precision, ×1000"),
        *("CLIP score change", "Attributes right, %", "in-domain", "out-of-domain", "float64", "seed + 1000"),
        *("Does it hold on other prompts?", "out-of-domain minus in-domain", "plain", "PNDMScheduler", "0123abc"),
    ):
        assert words in bench.text, words


def test_candidates_stand_in_the_order_of_their_nearness(bench):
    board = bench.text[bench.text.index("Leaderboard") :]
    assert board.index("pcr-w8a8") < board.index("minmax-w8a8") < board.index("w4a8 ")
    assert "Of 3 candidates, only pcr-w8a8 still paints the same pictures." in bench.text


def test_comparisons_are_sentences(bench):
    expected = "pcr-w8a8 better than minmax-w8a8 in PSNR, p < 0.001, and in latent error, p < 0.01."
    assert expected in bench.text
    assert "pcr-w8a8 and minmax-w8a8 not distinguishable in CLIP score." in bench.text


def test_plots_of_everything_take_the_colours_of_the_page(bench, large):
    drawings = re.findall(r"<svg.*?</svg>", bench.source, flags=re.DOTALL)
    assert len(drawings) == 1 + 8 + 3 + 2 + 2 + 1  # ruler, metrics, scatters, histograms, drifts, bits
    for drawing in drawings:
        assert "var(--c0)" in drawing
        assert not re.search(r"#01[0-9a-f]{4}", drawing)
        label = re.search(r'aria-label="([^"]*)"', drawing).group(1)
        assert all(one.name in label for one in large.results.candidates) or "Histogram" in label


def test_every_image_has_words_and_every_control_a_name(bench):
    for attributes in bench.named("img"):
        assert attributes.get("alt")
    for attributes in bench.named("input"):
        assert attributes["type"] == "range" and attributes["aria-label"]
    assert all(b.get("type") == "button" for b in bench.named("button"))


def test_demo_page_has_the_facts_and_no_empty_parts(demo):
    for words in (
        *("pcr-w8a8 still paints the same pictures.", "3.9× smaller", "44 MB of weights became 11.4 MB."),
        *("W8 A8.4 bits", "integer products", "slower than full precision", "Why every step has its own scale"),
        *("layers quantized 12", "calibration time 12 s", "denoiser passes per calibration prompt 10"),
    ):
        assert words in demo.text, words
    for words in ("Leaderboard", "Fidelity against", "Does it hold", "really better", "Every metric with", "hollow"):
        assert words not in demo.text, words
    assert not re.search(r"<t(body|r)[^>]*>\s*</t(body|r)>", demo.source)
    assert not re.search(r"\b(None|nan|inf|Undefined)\b", demo.text)


def test_what_was_not_measured_leaves_no_hole(tmp_path):
    bare = candidate("bare", (36.0, 0.97), 8, ["only"], optional=False)
    results = results_of([bare], ["only"], floors=False, commands=())
    results = results.model_copy(update={"reference": results.reference.model_copy(update=dict.fromkeys(
        ("size_bytes", "seconds_per_image", "peak_memory_bytes")))})  # fmt: skip
    page = Page(render_page(PageInput("Bare", results)))
    for words in ("LPIPS", "Attributes right", "What it costs", "Run it again", "not measured", "What was quantized"):
        assert words not in page.text, words
    assert "No noise floor was measured" in page.text
    assert not page.named("img") and not page.named("dialog") and not page.named("aside")
    assert not re.search(r"\b(None|nan|inf)\b", page.text)


def test_one_candidate_may_lack_what_another_has(tmp_path):
    both = [candidate("full", (36.0, 0.97), 8, ["s"]), candidate("bare", (30.0, 0.9), 8, ["s"], optional=False)]
    page = Page(render_page(PageInput("Mixed", results_of(both, ["s"]))))
    assert "LPIPS" in page.text and "not measured" in page.text
    assert not re.search(r"\bNone\b", page.text)


def test_warnings_stand_at_the_top(demo):
    assert demo.named("aside")[0]["aria-label"] == "Warnings"
    assert demo.text.index("40 images are <few>.") < demo.text.index("The numbers")


def test_simulated_execution_is_said(small):
    only = small.results.candidates[0]
    kernels = tuple(use.model_copy(update={"execution": "simulated"}) for use in only.kernels)
    page = with_results(small, candidates=(only.model_copy(update={"kernels": kernels}),))
    assert "simulated in floating point" in Page(render_page(page)).text


def test_worst_pairs_come_first_with_their_pixels_and_difference(demo, small):
    shown = [int(n) for n in re.findall(r"#(\d+), seed", demo.text)]
    assert shown == [7, 5, 3, 0, 1, 2, 4, 6]
    worst = next(p for p in small.pictures if p.index == 7)
    sources = [a["src"] for a in demo.named("img")][2:5]
    decoded = [pixels_of(source).astype(int) for source in sources]
    reference, image = (read_image(path).astype(int) for path in (worst.reference, worst.image))
    assert (decoded[0] == reference).all() and (decoded[1] == image).all()
    assert (decoded[2] == np.minimum(255, GAIN * abs(reference - image))).all()


def pixels_of(source):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split("base64,")[1]))))


def test_candidates_stand_side_by_side(bench):
    strips = re.findall(r'class="pair strip".*?</figure>', bench.source, flags=re.DOTALL)
    assert len(strips) == 8 * 2
    names = [re.findall(r'class="when-candidate">([^<]*)<', strip) for strip in strips]
    assert names == [["pcr-w8a8", "minmax-w8a8", "w4a8"]] * 16


def test_the_hero_shows_the_first_pictures_and_no_selection(small, tmp_path):
    holes = [p for p in small.pictures if p.index not in (2,)]
    page = Page(render_page(dataclasses.replace(small, pictures=holes)))
    assert "These are the first 2 prompts" in page.text


def test_large_pictures_are_reduced_and_the_page_stays_small(small, tmp_path):
    pictures = pictures_of(tmp_path, ["pcr-w8a8"], ["in-domain"], indices=range(4), side=700)
    text = render_page(dataclasses.replace(small, pictures=pictures), budget=2_500_000)
    sizes = [pixels_of(a["src"]).shape for a in Page(text).named("img")]
    assert max(max(size) for size in sizes) <= 1024
    assert "Large pictures are shown reduced and slightly compressed" in text
    assert 'class="pill amplify' not in text  # would show the compression
    assert re.search(r"\d further pairs are left out", Page(text).text)
    assert len(re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)) < 1_000_000 and len(text) < 4_000_000


def test_relaxed_steps_are_shaded_for_an_only_candidate(demo):
    assert demo.text.count("relaxed steps") == 1
    assert "10 bits" in demo.text


def test_a_command_is_shown_once(small):
    facts = dataclasses.replace(small.quantization, commands=("halftone bench a b", "other"))
    page = Page(render_page(dataclasses.replace(small, quantization=facts)))
    assert page.text.count("halftone bench a b") == 1


def test_the_page_is_reproducible(bench, large):
    assert render_page(large) == bench.source


def test_write_page_makes_the_folder_and_one_whole_file(small, tmp_path):
    path = write_page(small, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "report.html"
    assert path.read_text(encoding="utf-8") == render_page(small)
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_page_leaves_the_old_one(small, tmp_path, monkeypatch):
    out = tmp_path / "out"
    before = write_page(small, out).read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="No space"):
            write_page(dataclasses.replace(small, title="another"), out)
    assert (out / "report.html").read_bytes() == before and len(list(out.iterdir())) == 1


def test_pictures_that_cannot_be_shown_are_named(small, tmp_path):
    page = dataclasses.replace(small, pictures=pictures_of(tmp_path, ["pcr-w8a8"], ["in-domain"]))
    first = page.pictures[0].image
    Image.new("RGB", (5, 5)).save(first)
    with pytest.raises(InputError, match=r"Pair 0 of in-domain has pictures of 16×16 and 5×5 pixels"):
        render_page(page)
    first.write_bytes(b"no picture")
    with pytest.raises(InputError, match=re.escape(str(first))):
        render_page(page)
