import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from halftone.errors import InputError
from halftone.report import html, images
from halftone.report.html import render_html, write_report

VOID = {"meta", "img", "br", "input", "link", "hr"}
ADDRESS_ATTRIBUTES = {"src", "href", "srcset", "action", "data", "poster", "xlink:href"}


class Page(HTMLParser):
    """Collects tags, visible text and ids, and fails on tags that are closed in the wrong order."""

    def __init__(self, text):
        super().__init__()
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
        return re.sub(r"\s+", " ", "".join(self.words))

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def page(report, tmp_path):
    return Page(render_html(report, tmp_path))


def test_prompts_are_shown_and_never_executed(page, report, tmp_path):
    assert len(page.named("script")) == 1
    assert 'a "quoted" <script>alert(1)</script> & <b>bold</b>' in page.text
    assert "a 🦊 and it's snow" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert not page.named("b")
    assert 'mid <"block">' in page.text
    assert "first <convolution>" in page.text
    assert "halftone demo --prompt 'a <b>'" in page.text
    assert "Shapes & <i>things</i>" in page.text


def test_nothing_outside_the_file_is_asked_for(page, report, tmp_path):
    text = render_html(report, tmp_path)
    without_pixels = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|//[a-z]|@import", without_pixels)
    for _, attributes in page.tags:
        for name in ADDRESS_ATTRIBUTES & attributes.keys():
            assert attributes[name].startswith(("data:image/png;base64,", "#"))
    for address in re.findall(r"url\(([^)]*)\)", text):
        assert address.startswith("#")
    policy = next(m["content"] for m in page.named("meta") if "content" in m and "default-src" in m["content"])
    assert policy.startswith("default-src 'none'")


def test_every_image_is_inlined_with_words_for_it(page, report):
    shown = page.named("img")
    assert len(shown) == 2 + 3 * len(report.pairs)
    for attributes in shown:
        assert attributes["alt"]
        png = base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"), validate=True)
        assert Image.open(io.BytesIO(png)).format == "PNG"


def test_inlined_pixels_are_the_files_pixels(page, report, tmp_path):
    worst = min(report.pairs, key=lambda p: p.psnr)
    sources = [a["src"] for a in page.named("img")][2:5]
    decoded = []
    for source in sources:
        png = base64.b64decode(source.removeprefix("data:image/png;base64,"))
        decoded.append(np.asarray(Image.open(io.BytesIO(png))).astype(int))
    reference = images.read_image(tmp_path / worst.reference).astype(int)
    candidate = images.read_image(tmp_path / worst.candidate).astype(int)
    assert (decoded[0] == reference).all()
    assert (decoded[1] == candidate).all()
    assert (decoded[2] == np.minimum(255, 8 * abs(reference - candidate))).all()


def test_ids_are_unique_and_references_resolve(page, report, tmp_path):
    assert len(page.ids) == len(set(page.ids))
    for target in re.findall(r"(?:url\(|href=\")#([^)\"]+)", render_html(report, tmp_path)):
        assert target in page.ids


def test_the_worst_pairs_come_first(page, report):
    shown = [int(n) for n in re.findall(r"#(\d+), seed", page.text)]
    ranked = [p.index for p in sorted(report.pairs, key=lambda p: p.psnr)]
    assert shown[: html.WORST_PAIRS] == ranked[: html.WORST_PAIRS]
    assert shown[html.WORST_PAIRS :] == sorted(ranked[html.WORST_PAIRS :])


def test_fewer_pairs_are_shown_on_request_and_the_page_says_so(report, tmp_path):
    page = Page(render_html(report, tmp_path, max_pairs=7, difference_gain=3))
    assert len(re.findall(r"#\d+, seed", page.text)) == 7
    assert "the numbers of the remaining 1 are in results.json" in page.text
    assert "difference ×3" in page.text


def test_plain_words_tell_slowness_too(page):
    assert "1.50× slower than full precision" in page.text
    assert "44 MB of float32 weights became 11 MB." in page.text


def test_plots_take_the_colours_of_the_page(page, report, tmp_path):
    drawings = re.findall(r"<svg.*?</svg>", render_html(report, tmp_path), flags=re.DOTALL)
    assert len(drawings) == 5
    for drawing in drawings:
        assert "var(--accent)" in drawing
        assert "#0102" not in drawing


def test_the_page_is_reproducible(report, tmp_path):
    assert render_html(report, tmp_path) == render_html(report, tmp_path)


def test_a_bare_report_without_optional_parts(report, tmp_path):
    bare = report.model_copy(
        update={
            "timings": (),
            "activation_ranges": {},
            "pairs": report.pairs[:1],
            "fidelity": report.fidelity.model_copy(update={"latent_error": ()}),
            "settings": report.settings.model_copy(update={"commands": ()}),
            "quantization": report.quantization.model_copy(update={"layers_left_out": ()}),
        }
    )
    page = Page(render_html(bare, tmp_path))
    assert "No layer of the denoiser was left out." in page.text
    assert "All other pairs" not in page.text


def test_write_report_leaves_two_whole_files(report, tmp_path):
    path = write_report(report, tmp_path)
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8") == render_html(report, tmp_path)
    assert type(report).from_json((tmp_path / "results.json").read_bytes()) == report
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*"))


def test_a_failed_report_leaves_the_old_one(report, tmp_path):
    write_report(report, tmp_path)
    before = (tmp_path / "report.html").read_bytes(), (tmp_path / "results.json").read_bytes()
    Image.new("RGB", (5, 5)).save(tmp_path / report.pairs[0].candidate)
    with pytest.raises(InputError, match="pair 0"):
        write_report(report, tmp_path)
    assert ((tmp_path / "report.html").read_bytes(), (tmp_path / "results.json").read_bytes()) == before


def test_no_pairs_is_refused(report, tmp_path):
    with pytest.raises(InputError, match="at least one pair"):
        render_html(report.model_copy(update={"pairs": ()}), tmp_path)
