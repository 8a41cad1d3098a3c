import json
import re

import pytest
from pydantic import ValidationError

from halftone.errors import InputError
from halftone.qdiffbench.differences import paired_difference
from halftone.qdiffbench.intervals import bootstrap_mean, summarize
from halftone.qdiffbench.results import SCHEMA_FILE, Results, schema_text
from halftone.qdiffbench.set_results import Mean, SetResult, Summary

KINDS = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def complaints(value, schema, root, where="$"):
    """A small JSON-schema validator: the keywords that pydantic writes, and an error for any other."""
    known = {
        *("$ref", "$defs", "$schema", "title", "description", "default", "anyOf", "const", "enum", "type", "pattern"),
        *("properties", "required", "additionalProperties", "items", "prefixItems", "minItems", "maxItems"),
        *("minimum", "maximum", "exclusiveMinimum"),
    }
    assert not set(schema) - known, f"unknown keywords {set(schema) - known}"
    found = []
    if "$ref" in schema:
        found += complaints(value, root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root, where)
    if "anyOf" in schema and all(complaints(value, option, root, where) for option in schema["anyOf"]):
        found.append(f"{where}: none of the options fits")
    if "const" in schema and value != schema["const"]:
        found.append(f"{where}: not {schema['const']}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{where}: not in {schema['enum']}")
    if "type" in schema and (not isinstance(value, KINDS[schema["type"]]) or isinstance(value, bool)):
        return [*found, f"{where}: not of type {schema['type']}"]
    if isinstance(value, (int, float)):
        if value < schema.get("minimum", value) or value > schema.get("maximum", value):
            found.append(f"{where}: out of range")
        if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]:
            found.append(f"{where}: out of range")
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        found.append(f"{where}: does not match {schema['pattern']}")
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            found.append(f"{where}: {len(value)} items")
        kinds = schema.get("prefixItems", []) + [schema.get("items", {})] * len(value)
        for index, (item, kind) in enumerate(zip(value, kinds, strict=False)):
            found += complaints(item, kind, root, f"{where}[{index}]")
    if isinstance(value, dict):
        properties, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        found += [f"{where}: lacks {name}" for name in schema.get("required", []) if name not in value]
        for name, item in value.items():
            if name in properties:
                found += complaints(item, properties[name], root, f"{where}.{name}")
            elif more is False:
                found.append(f"{where}: unknown {name}")
            elif isinstance(more, dict):
                found += complaints(item, more, root, f"{where}.{name}")
    return found


SUMMARY = {"mean": 31.5, "ci95": [31.0, 32.0], "median": 31.6, "worst_decile": 27.0, "n": 3}
SMALL = {"mean": 0.01, "ci95": [0.0, 0.02], "median": 0.01, "worst_decile": 0.02, "n": 3}
SECONDS = {"median": 1.2, "low": 1.1, "high": 1.4, "n": 3}

SET = {
    "n": 3,
    "fid_to_fp": 1.5,
    "fid_to_fp_unbiased": 0.4,
    "fid_to_fp_ci95": [0.1, 0.8],
    "kid_to_fp": -0.0001,
    "kid_to_fp_ci95": [-0.001, 0.001],
    "kid_subsets": {"mean": 0.001, "std": 0.002, "subsets": 100, "size": 2},
    "clip_score": 31.0,
    "clip_score_reference": 31.2,
    "clip_score_difference": {"mean": -0.2, "ci95": [-0.3, -0.1], "n": 3},
    "attribute_accuracy": 0.7,
    "attribute_accuracy_reference": 0.8,
    "psnr": SUMMARY,
    "ssim": SMALL,
    "lpips": SMALL,
    "latent_error": SMALL,
    "drift": [{"step": 0, "latent_error": SMALL}, {"step": 1, "latent_error": SMALL}],
    "other_features": {"dinov2": {"fid_to_fp": 2.0, "kid_to_fp": 0.1}},
    "worst_pairs": [{"index": 2, "prompt": "a red cube", "seed": 2, "psnr": 21.0}],
}
EXAMPLE = {
    "schema": "halftone.qdiffbench/1",
    "environment": {
        "versions": {"halftone": "0.1.0", "torch": "2.13.0"},
        "platform": "Linux x86_64",
        "processor": "some CPU",
        "threads": 2,
        "created": "2026-01-01T00:00:00+00:00",
    },
    "settings": {
        "scheduler": "PNDMScheduler",
        "num_inference_steps": 20,
        "guidance_scale": 4,
        "seed": 0,
        "width": 64,
        "height": 64,
        "prompt_sets": {"in-domain": {"source": "bundled:scenes", "sha256": "0" * 64, "n": 3}},
        "features": "clip:bundled:mini-clip@sha256:00",
    },
    "reference": {"name": "fp32", "source": "bundled:mini-sd", "seconds_per_image": SECONDS, "size_bytes": 400},
    "candidates": [
        {
            "name": "w8a8",
            "source": "./w8a8",
            "size_bytes": 100,
            "avg_weight_bits": 8.0,
            "avg_activation_bits": 8.4,
            "seconds_per_image": SECONDS,
            "peak_memory_bytes": 123,
            "kernels": [
                {"timestep": 981.0, "activation_bits": 8, "kernel": "cpu", "execution": "integer", "layers": 129}
            ],
            "sets": {"in-domain": SET},
            "gaps": [{"metric": "psnr", "from_set": "in-domain", "to_set": "out-of-domain", "difference": -1.0}],
        }
    ],
    "noise_floor": [{"name": "float64", "kind": "dtype", "sets": {"in-domain": SET}}],
    "comparisons": [
        {
            "set": "in-domain",
            "metric": "psnr",
            "a": "w8a8",
            "b": "w4a8",
            "difference": 5.0,
            "ci95": [4.0, 6.0],
            "p_value": 0.0002,
            "n": 3,
            "verdict": "w8a8 better than w4a8, p < 0.001",
        }
    ],
    "warnings": ["3 images are few."],
}


def example():
    return json.loads(json.dumps(EXAMPLE))


def test_the_schema_file_is_up_to_date():
    message = "run python -m halftone.qdiffbench.results"
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text(), message


def test_results_survive_json_and_satisfy_the_schema():
    results = Results.from_json(json.dumps(EXAMPLE))
    assert json.loads(results.to_json()) | {} == json.loads(Results.from_json(results.to_json()).to_json())
    assert Results.from_json(results.to_json()) == results
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    assert complaints(EXAMPLE, schema, schema) == []
    assert complaints(json.loads(results.to_json()), schema, schema) == []


def test_what_was_given_is_what_is_written():
    written = json.loads(Results.from_json(json.dumps(EXAMPLE)).to_json())

    def contained(part, whole):
        if isinstance(part, dict):
            return all(name in whole and contained(item, whole[name]) for name, item in part.items())
        if isinstance(part, list):
            return len(part) == len(whole) and all(map(contained, part, whole))
        return part == whole

    assert contained(EXAMPLE, written)
    assert "ms_ssim" not in written["candidates"][0]["sets"]["in-domain"]


def spoil(path, value):
    results = example()
    *parents, last = path
    place = results
    for name in parents:
        place = place[name]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return results


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["schema"], "halftone.qdiffbench/2"),
        (["surprise"], 1),
        (["settings"], None),
        (["candidates", 0, "sets", "in-domain", "fid_to_fp"], -1.0),
        (["candidates", 0, "sets", "in-domain", "psnr", "ci95"], [1.0]),
        (["candidates", 0, "sets", "in-domain", "psnr", "mean"], "31"),
        (["candidates", 0, "kernels", 0, "execution"], "magic"),
        (["settings", "prompt_sets", "in-domain", "sha256"], "abc"),
        (["comparisons", 0, "p_value"], 0.0),
        (["environment", "threads"], 1.5),
    ],
)
def test_records_and_schema_refuse_the_same(path, value):
    results = spoil(path, value)
    with pytest.raises(InputError) as caught:
        Results.from_json(json.dumps(results))
    assert "\n" not in str(caught.value)
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    assert complaints(results, schema, schema)


def test_nan_and_reversed_intervals_are_refused():
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValidationError):
            Summary(mean=value, ci95=(0.0, 1.0), median=0.0, worst_decile=0.0, n=1)
    with pytest.raises(ValidationError, match="wrong way round"):
        Summary(mean=0.5, ci95=(1.0, 0.0), median=0.0, worst_decile=0.0, n=1)
    with pytest.raises(InputError):
        Results.from_json("not JSON")


def test_records_are_frozen():
    results = Results.from_json(json.dumps(EXAMPLE))
    with pytest.raises(ValidationError):
        results.warnings = ()


def test_records_of_what_was_computed():
    values = [1.0, 2.0, 4.0]
    computed = summarize(values, higher_is_better=True)
    summary = Summary.of(computed)
    assert (summary.mean, summary.ci95, summary.n) == (computed.mean, (computed.low, computed.high), 3)
    assert (summary.median, summary.worst_decile) == (2.0, computed.worst_decile)
    assert Mean.of(bootstrap_mean(values)).mean == computed.mean
    difference = paired_difference(values, [0.0, 1.0, 3.0])
    assert Mean.of(difference) == Mean(mean=1.0, ci95=(1.0, 1.0), n=3)


def test_every_field_is_described():
    schema = json.loads(schema_text())
    for name, record in schema["$defs"].items():
        assert record.get("description"), name
        for field, facts in record["properties"].items():
            assert facts.get("description"), f"{name}.{field}"
    assert "description" in SetResult.model_json_schema()["properties"]["psnr"]
