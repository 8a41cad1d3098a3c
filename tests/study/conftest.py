"""A request for a small study of `tiny_sd`."""

import json

import pytest

from halftone.study import Plan, StudyRequest

LETTERS = "abcdefgh"


@pytest.fixture(scope="session")
def study_prompts(tmp_path_factory):
    """Prompts with alternatives to paint, and four to calibrate on."""
    folder = tmp_path_factory.mktemp("study-prompts")
    for name in ("one", "two"):
        rows = [{"prompt": f"a red cube {name} {i}", "alternatives": [f"a blue ball {i}"]} for i in LETTERS]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "calibration.txt").write_text("a red cube\na blue ball\na ball\na cube\n")
    return folder


@pytest.fixture
def tables(study_prompts):
    """Two tables that share models and images, as plain data."""
    first = {"name": "one", "prompts": str(study_prompts / "one.jsonl"), "num_images": 5}
    second = {"name": "two", "prompts": str(study_prompts / "two.jsonl"), "num_images": 4}
    main = {
        "name": "main",
        "title": "Main",
        "sentence": "Which is nearer?",
        "steps": 4,
        "num_calibration_prompts": 2,
        "sets": [first, second],
        "rows": [
            {"name": "minmax", "recipe": "minmax-w8a6", "group": "w8a6"},
            {"name": "pcr", "recipe": "pcr-w8a6", "group": "w8a6"},
            {"name": "pcr w4", "recipe": {"base": "pcr-w4a8", "weights": {"rounding": "nearest"}}, "group": "w4a8"},
        ],
    }
    curve = {
        "name": "curve",
        "sentence": "How many?",
        "kind": "relaxed share",
        "steps": 4,
        "num_calibration_prompts": 2,
        "sets": [{**first, "num_images": 6}],
        "rows": [
            {"name": "none", "recipe": "pcr-no-relax-w8a6", "group": "w8a6"},
            {"name": "a quarter", "recipe": {"base": "pcr-w8a6", "relax": {"fraction": 0.2}}, "group": "w8a6"},
            {"name": "half", "recipe": {"base": "pcr-w8a6", "relax": {"fraction": 0.5}}, "group": "w8a6"},
        ],
    }
    return [main, curve]


@pytest.fixture
def request_of(sd_folder, clip_folder, study_prompts, tables, tmp_path):
    """A request with defaults for what is not given."""

    def make(**changes):
        plan = {"name": "small", "calibration_prompts": str(study_prompts / "calibration.txt"), "tables": tables}
        fields = {
            "source": str(sd_folder),
            "out": tmp_path / "out",
            "plan": Plan.from_dict(plan | changes.pop("plan", {})),
            "seed": 5,
            "features": (f"clip:{clip_folder}",),
            "clip": str(clip_folder),
        }
        return StudyRequest(**{**fields, **changes})

    return make
