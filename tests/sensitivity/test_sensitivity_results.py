"""The records of sensitivity.json and their schema."""

import json

import pytest

from halftone.errors import InputError
from halftone.sensitivity.results import SCHEMA_FILE, SensitivityResults

SUMMARY = {"mean": 31.5, "ci95": [31.0, 32.0], "median": 31.6, "worst_decile": 27.0, "n": 4}
SET = {"n": 4, "fid_to_fp": 1.5, "kid_to_fp": 0.1, "psnr": SUMMARY, "ssim": SUMMARY}
INTERVAL = {"first": 1, "last": 4, "first_timestep": 951.0, "last_timestep": 801.0}
EXAMPLE = {
    "schema": "halftone.sensitivity/1",
    "environment": {
        "versions": {"halftone": "0.1.0"},
        "platform": "Linux x86_64",
        "processor": "some CPU",
        "threads": 2,
        "created": "2026-01-01T00:00:00+00:00",
    },
    "settings": {
        "width": 64,
        "height": 64,
        "prompt_sets": {"scenes": {"source": "bundled:scenes", "sha256": "0" * 64, "n": 4}},
        "features": "clip:bundled:mini-clip@sha256:00",
    },
    "reference": {"name": "fp32", "source": "bundled:mini-sd"},
    "experiments": [
        {
            "name": "float",
            "quantized_model": {
                "recipe": "per-step-w8a8",
                "weight_bits": 8,
                "average_activation_bits": 8.0,
                "layers": 129,
                "calibration_prompts": 64,
            },
            "intervals": [{"interval": INTERVAL, "result": SET}],
            "all_quantized": SET,
            "none_quantized": SET,
            "sides": [{"measure": "fidelity", "metric": "psnr", "side": "end", "sentence": "The end."}],
        },
        {"name": "perturb", "noise": 0.05, "intervals": [{"interval": INTERVAL, "result": SET}]},
    ],
    "warnings": ["4 images are few."],
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
    message = "run python -m halftone.sensitivity.results"
    assert SCHEMA_FILE.read_text(encoding="utf-8") == SensitivityResults.schema_text(), message


def test_results_survive_json():
    results = SensitivityResults.from_json(json.dumps(EXAMPLE))
    assert SensitivityResults.from_json(results.to_json()) == results
    written = json.loads(results.to_json())
    assert written["schema"] == "halftone.sensitivity/1"
    assert written["experiments"][0]["intervals"][0]["interval"] == INTERVAL
    assert "noise" not in written["experiments"][0] and "sides" in written["experiments"][1]


@pytest.mark.parametrize(
    "path, value",
    [
        (["schema"], "halftone.qdiffbench/1"),
        (["surprise"], 1),
        (["experiments"], []),
        (["experiments", 0, "name"], "other"),
        (["experiments", 1, "noise"], 0.0),
        (["experiments", 1, "intervals"], []),
        (["experiments", 0, "intervals", 0, "interval", "first"], 0),
        (["experiments", 0, "sides", 0, "side"], "middle"),
        (["experiments", 0, "quantized_model", "weight_bits"], 8.5),
    ],
)
def test_what_is_wrong_is_refused_in_a_sentence(path, value):
    with pytest.raises(InputError, match=r"no results of halftone.sensitivity/1") as caught:
        SensitivityResults.from_json(_spoilt(path, value))
    assert "\n" not in str(caught.value)


def test_every_field_is_described():
    for name, record in json.loads(SensitivityResults.schema_text())["$defs"].items():
        assert record.get("description"), name
        for field, facts in record["properties"].items():
            assert facts.get("description"), f"{name}.{field}"
