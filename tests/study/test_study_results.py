"""The records of study.json and their schema."""

import json

import pytest

from halftone.errors import InputError
from halftone.study.results import SCHEMA_FILE, StudyResults

SUMMARY = {"mean": 31.5, "ci95": [31.0, 32.0], "median": 31.6, "worst_decile": 27.0, "n": 4}
SET = {"n": 4, "fid_to_fp": 1.5, "kid_to_fp": 0.1, "psnr": SUMMARY, "ssim": SUMMARY}
ROW = {
    "name": "pcr",
    "group": "w8a8",
    "recipe": "pcr-w8a8",
    "artifact": "pcr-w8a8-20-steps-64-prompts-00000000",
    "layers": 129,
    "weight_bits": 8,
    "average_activation_bits": 8.4,
    "relaxed_share": 0.2,
    "products": 1.2,
    "artifact_bytes": 100,
    "denoiser_bytes": 50,
    "calibration": {"prompts": 64, "denoiser_passes_per_prompt": 40, "seconds": 12.5},
    "sets": {"scenes": SET},
}
EXAMPLE = {
    "schema": "halftone.study/1",
    "environment": {
        "versions": {"halftone": "0.1.0"},
        "platform": "Linux x86_64",
        "processor": "some CPU",
        "threads": 2,
        "created": "2026-01-01T00:00:00+00:00",
    },
    "plan": "paper",
    "plan_sha256": "0" * 64,
    "reference": {"name": "fp32", "source": "bundled:mini-sd"},
    "tables": [
        {
            "name": "main",
            "title": "Main",
            "sentence": "Which?",
            "kind": "comparison",
            "settings": {
                "width": 64,
                "height": 64,
                "prompt_sets": {"scenes": {"source": "bundled:scenes", "sha256": "0" * 64, "n": 4}},
                "features": "clip:bundled:mini-clip@sha256:00",
            },
            "rows": [ROW],
            "warnings": ["4 images are few."],
        }
    ],
    "missing": ["sides"],
}


def _spoilt(path, value):
    data = json.loads(json.dumps(EXAMPLE))
    *parents, last = path
    place = data
    for name in parents:
        place = place[name]
    place[last] = value
    return json.dumps(data)


def test_the_schema_file_is_up_to_date():
    assert SCHEMA_FILE.read_text(encoding="utf-8") == StudyResults.schema_text(), "run python -m halftone.study.results"


def test_results_survive_json():
    results = StudyResults.from_json(json.dumps(EXAMPLE))
    assert StudyResults.from_json(results.to_json()) == results
    assert json.loads(results.to_json())["tables"][0]["rows"][0]["products"] == 1.2


@pytest.mark.parametrize(
    "path, value",
    [
        (["schema"], "halftone.sensitivity/1"),
        (["surprise"], 1),
        (["tables"], []),
        (["plan_sha256"], "x"),
        (["tables", 0, "kind"], "bars"),
        (["tables", 0, "rows"], []),
        (["tables", 0, "rows", 0, "products"], 0.5),
        (["tables", 0, "rows", 0, "relaxed_share"], 1.5),
        (["tables", 0, "rows", 0, "calibration", "seconds"], -1.0),
    ],
)
def test_what_is_wrong_is_refused_in_a_sentence(path, value):
    with pytest.raises(InputError, match=r"no results of halftone.study/1") as caught:
        StudyResults.from_json(_spoilt(path, value))
    assert "\n" not in str(caught.value)


def test_every_field_is_described():
    for name, record in json.loads(StudyResults.schema_text())["$defs"].items():
        assert record.get("description"), name
        for field, facts in record["properties"].items():
            assert facts.get("description"), f"{name}.{field}"
