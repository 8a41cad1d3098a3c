import pytest
import yaml
from made_up_results import candidate, results_of

from halftone.report import markdown_table, model_card

ARTIFACT = {
    "artifact": "/some/where/mini-w8a8",
    "recipe": {
        "name": "pcr-w8a8",
        "description": "Progressive | calibration.",
        "weights": {"symmetric": True},
        "activations": {"granularity": "timestep"},
    },
    "weight_bits": 8,
    "average_activation_bits": 8.4,
    "slots": [{"timestep": t, "bits": b} for t, b in ((951.0, 8), (501.0, 8), (1.0, 10))],
    "layers": ["a", "b"],
    "left_out": {"conv_in": "first layer", "conv_out": "last layer"},
    "sizes": {
        "denoiser_bytes": 11_400_000,
        "denoiser_float32_bytes": 44_000_000,
        "denoiser_ratio": 0.26,
        "total_bytes": 2,
    },
    "calibration": {"pipeline": "StableDiffusionPipeline", "prompts": 64, "num_inference_steps": 20, "seed": 0},
    "kernels": {"linear on cpu, 8 bits": "reference (integer)"},
}


def cells(line):
    return [cell.strip() for cell in line.replace("\\|", "¦").strip().strip("|").split("|")]


def table_of(text):
    return [cells(line) for line in text.splitlines() if line.startswith("|")]


def test_table_has_a_column_for_what_was_measured(large):
    head, rule, *rows = table_of(markdown_table(large.results))
    assert head[:4] == ["model", "prompts", "PSNR, dB", "SSIM"]
    assert head[-3:] == ["mean bits", "size", "time an image"]
    assert all(len(row) == len(head) for row in (rule, *rows))
    assert len(rows) == (3 + 2) * 2
    assert [row[0] for row in rows[:3]] == ["pcr-w8a8", "minmax-w8a8", "w4a8"]
    assert {row[1] for row in rows} == {"in-domain", "out-of-domain"}
    assert rows[0][2].startswith("**") and "(" in rows[0][2]


def test_table_of_the_bare_minimum_and_its_notes():
    bare = candidate("b|a*r", (36.0, 0.97), 8, ["s"], optional=False)
    text = markdown_table(results_of([bare], ["s"], floors=False, warnings=["few | images", "slow"]))
    head, _, *rows = table_of(text)
    assert "prompts" not in head and "LPIPS" not in head and "size" not in head
    assert len(rows) == 1 and rows[0][0] == "b¦a\\*r"
    assert "> **Note:** few \\| images" in text and "40 prompts s" in text and "20 steps" not in text


def front_matter(card):
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def test_model_card_without_measurements():
    card = model_card(ARTIFACT)
    facts = front_matter(card)
    assert facts["library_name"] == "diffusers" and facts["pipeline_tag"] == "text-to-image"
    assert "halftone" in facts["tags"] and "base_model" not in facts and "license" not in facts
    for words in (
        *("# mini-w8a8", 'halftone.load("mini-w8a8")', "DiffusionPipeline.from_pretrained", "2 with 8 bits"),
        *("1 with 10 bits", "11.4 MB", "reference (integer)", "None yet.", "Progressive \\| calibration."),
    ):
        assert words in card, words


def test_model_card_of_ranges_that_are_measured_at_inference():
    recipe = {**ARTIFACT["recipe"], "activations": {"granularity": "token"}}
    card = model_card({**ARTIFACT, "recipe": recipe})
    assert "is measured at inference" in card and "calibrated on no kind of prompt" in card
    assert "2 with 8 bits" not in card and "calibrated on one kind" not in card


def test_model_card_with_measurements_and_a_base_model(large):
    source = large.results.reference.model_copy(update={"source": "owner/model"})
    card = model_card(ARTIFACT, large.results.model_copy(update={"reference": source}), license="apache-2.0")
    facts = front_matter(card)
    assert (facts["base_model"], facts["base_model_relation"]) == ("owner/model", "quantized")
    assert facts["license"] == "apache-2.0"
    assert markdown_table(large.results).splitlines()[2] in card
    assert "halftone bench a b" in card


@pytest.mark.parametrize("source", ["./folder", "bundled:mini-sd", "/a/b", "owner"])
def test_a_folder_is_no_base_model(source, large):
    reference = large.results.reference.model_copy(update={"source": source})
    card = model_card(ARTIFACT, large.results.model_copy(update={"reference": reference}))
    assert "base_model" not in front_matter(card)


def test_odd_names_do_not_break_the_front_matter():
    facts = front_matter(model_card(ARTIFACT, name="a: b", base_model="x/y: [z]", license="other"))
    assert facts["base_model"] == "x/y: [z]"
