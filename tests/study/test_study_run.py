"""A whole study of a tiny model: numbers by independent computation, nothing made twice, resumed after kills."""

import dataclasses
import json
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from pipelines import save_folder, tiny_sd

import halftone
from halftone.errors import InputError
from halftone.generation import GenerationSettings, paint
from halftone.prompts import read_prompts
from halftone.recipe import Recipe
from halftone.sensitivity.request import CALIBRATION_SEED
from halftone.study import StudyResults, estimate_study, run_study


@contextmanager
def _quiet(label):
    yield lambda done, total: None


class _Killed(Exception):
    pass


def _times(root, pattern="*.png"):
    return {path: path.stat().st_mtime_ns for path in root.rglob(pattern)}


def _made(root):
    """Images and artifacts."""
    return _times(root) | _times(root / "artifacts", "halftone.json")


def _rows(results):
    return {(table.name, row.name): row for table in results.tables for row in table.rows}


def _stable(results):
    """Without what differs from run to run."""
    return [
        (one.name, one.settings, one.comparisons, one.warnings, *map(_timeless, one.rows)) for one in results.tables
    ]


def _timeless(row):
    return row.model_copy(update={"calibration": row.calibration.model_copy(update={"seconds": None})})


@pytest.fixture
def whole(request_of):
    request = request_of()
    return request, run_study(request)


def test_the_tables_are_what_the_plan_asks_for(whole):
    request, results = whole
    assert StudyResults.from_json((request.out / "study.json").read_text()) == results
    assert results.plan == "small" and results.missing == () and results.reference.source == request.source
    assert [table.name for table in results.tables] == ["main", "curve"]
    main, curve = results.tables
    assert main.title == "Main" and main.sentence == "Which is nearer?" and curve.kind == "relaxed share"
    assert main.settings.num_inference_steps == 4 and main.settings.seed == 5
    assert {name: facts.n for name, facts in main.settings.prompt_sets.items()} == {"one": 5, "two": 4}
    rows = _rows(results)
    assert [row.name for row in main.rows] == ["minmax", "pcr", "pcr w4"]
    assert {name: one.n for name, one in rows["main", "pcr"].sets.items()} == {"one": 5, "two": 4}
    assert rows["curve", "half"].sets["one"].n == 6
    assert {(one.a, one.b) for one in main.comparisons} == {("minmax", "pcr")}
    assert len({(one.a, one.b) for one in curve.comparisons}) == 3
    assert any("5 images are few" in text for text in main.warnings)


def test_costs_and_bits_by_hand(whole):
    rows = _rows(whole[1])
    expected = {
        # name: bits of weights, mean bits of activations, relaxed share, products, passes a prompt
        ("main", "minmax"): (8, 6, 0, 1, 4),
        ("main", "pcr"): (8, 6.5, 0.25, 1, 8),
        ("main", "pcr w4"): (4, 8.5, 0.25, 1.25, 8),
        ("curve", "none"): (8, 6, 0, 1, 8),
        ("curve", "half"): (8, 7, 0.5, 1, 8),
    }
    for key, (weights, bits, share, products, passes) in expected.items():
        row = rows[key]
        assert (row.weight_bits, row.average_activation_bits) == (weights, bits)
        assert (row.relaxed_share, row.products) == (share, products)
        assert (row.calibration.prompts, row.calibration.denoiser_passes_per_prompt) == (2, passes)
        assert row.calibration.seconds > 0
    request = whole[0]
    row = rows["main", "pcr w4"]
    folder = request.out / "artifacts" / row.artifact
    assert row.artifact_bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert row.denoiser_bytes == sum(path.stat().st_size for path in (folder / "unet").glob("*.safetensors"))
    assert row.recipe.startswith("w4a8-") and rows["main", "pcr"].recipe == "pcr-w8a6"


def test_images_and_psnr_by_independent_code(whole):
    """Quantized and painted by the library's own calls, compared with full precision's pictures by hand."""
    request, results = whole
    texts = read_prompts(request.plan.calibration_prompts, limit=2)
    seed = 5 + CALIBRATION_SEED
    pipeline = halftone.quantize(tiny_sd(), "pcr-w8a6", texts, num_inference_steps=4, seed=seed).pipeline
    plain, settings = tiny_sd(), GenerationSettings(4, None, 5)
    lines = next((request.out / "images").rglob("manifest.jsonl")).read_text().splitlines()
    found = []
    for line in map(json.loads, lines[:5]):
        a, b = (
            np.asarray(paint(one, line["prompt"], line["seed"], settings)).astype(float) for one in (pipeline, plain)
        )
        found.append(10 * np.log10(255**2 / ((a - b) ** 2).mean()))
    result = _rows(results)["main", "pcr"].sets
    assert any(one.psnr.mean == pytest.approx(np.mean(found[: one.n]), abs=0.05) for one in result.values())


def test_the_artifacts_are_those_of_quantize(whole, tmp_path):
    request, results = whole
    row = _rows(results)["main", "pcr"]
    texts = read_prompts(request.plan.calibration_prompts, limit=2)
    facts = {"num_inference_steps": 4, "seed": 5 + CALIBRATION_SEED}
    halftone.quantize(tiny_sd(), Recipe.load("pcr-w8a6"), texts, **facts).save(tmp_path / "by-hand")
    (ours,) = (request.out / "artifacts" / row.artifact / "unet").glob("*.safetensors")
    (theirs,) = (tmp_path / "by-hand" / "unet").glob("*.safetensors")
    assert ours.read_bytes() == theirs.read_bytes()


def test_equal_models_and_images_are_made_once(whole):
    request, results = whole
    rows = _rows(results)
    assert rows["main", "pcr"].artifact == rows["curve", "a quarter"].artifact
    assert len([*(request.out / "artifacts").glob("*/halftone.json")]) == 5
    # pcr: 6 and 4 images; minmax, pcr w4: 5 and 4; none, half: 6; full precision: 6 and 4
    assert len(_times(request.out / "images")) == 10 + 9 + 9 + 6 + 6
    assert len(_times(request.out / "reference")) == 10
    again = rows["main", "pcr"].sets["one"], rows["curve", "a quarter"].sets["one"]
    assert [one.n for one in again] == [5, 6]
    assert not [*request.out.rglob("*.part")] and not [*request.out.rglob("*.unfinished")]


def test_a_finished_study_is_only_read(whole, monkeypatch):
    request, results = whole
    before = _times(request.out, "*")
    monkeypatch.setattr("halftone.study.run.bench", None)
    monkeypatch.setattr("halftone.study.run.estimate_study", None)
    again = run_study(request)
    assert again.tables == results.tables
    changed = {path.name for path, time in _times(request.out, "*").items() if before.get(path) != time}
    assert changed <= {"study.json", "out"}


@pytest.mark.parametrize(
    "label, at",
    [("stage", 3), ("stage", 11), ("painting sd, one", 2), ("painting pcr, two", 3), ("measuring pcr, one", 1)],
)
def test_killed_it_goes_on_and_ends_as_an_undisturbed_one(label, at, whole, request_of, tmp_path):
    expected, request, count = whole[1], request_of(out=tmp_path / "killed"), [0]

    @contextmanager
    def striking(name):
        def advance(done, total):
            if name == label and done >= at:
                raise _Killed

        yield advance

    @contextmanager
    def striking_stages():
        def follow(one):
            count[0] += 1
            if label == "stage" and count[0] == at:
                raise _Killed

        yield follow

    with pytest.raises(_Killed):
        run_study(request, striking, striking_stages)
    before = _made(request.out)
    found = run_study(request)
    assert before.items() <= _made(request.out).items(), "something was made twice"
    assert _stable(found) == _stable(expected)
    for path in (whole[0].out / "images").rglob("*.png"):
        assert path.read_bytes() == (request.out / path.relative_to(whole[0].out)).read_bytes()
    assert not [*request.out.rglob("*.part")] and not [*request.out.rglob("*.unfinished")]


def test_one_table_after_the_other(request_of, whole, tmp_path):
    request = request_of(out=tmp_path / "parts", only=("curve",))
    results = run_study(request)
    assert [table.name for table in results.tables] == ["curve"] and results.missing == ("main",)
    before = _made(request.out)
    results = run_study(dataclasses.replace(request, only=("main",)))
    assert [table.name for table in results.tables] == ["main", "curve"] and results.missing == ()
    assert before.items() <= _made(request.out).items()
    assert _stable(results) == _stable(whole[1])


def test_more_images_and_another_row_go_on_where_fewer_ended(whole, request_of, tables):
    before = _made(whole[0].out)
    tables[0]["sets"][0]["num_images"] = 7
    tables[1]["rows"].append(
        {"name": "start", "recipe": {"base": "pcr-w8a6", "relax": {"side": "start"}}, "group": "w8a6"}
    )
    results = run_study(request_of())
    assert before.items() <= _made(whole[0].out).items()
    assert _rows(results)["main", "pcr"].sets["one"].n == 7
    assert (
        len(_times(whole[0].out / "images")) == len([one for one in before if "/images/" in str(one)]) + 3 * 2 - 1 + 6
    )


def test_prompts_of_ones_own(request_of, study_prompts):
    request = request_of(
        prompts={"one": str(study_prompts / "two.jsonl")},
        calibration_prompts=str(study_prompts / "one.jsonl"),
        guidance=3.0,
        only=("curve",),
    )
    (table,) = run_study(request).tables
    assert table.settings.prompt_sets["one"].source.endswith("two.jsonl") and table.settings.guidance_scale == 3.0
    facts = json.loads((request.out / "artifacts" / table.rows[0].artifact / "halftone.json").read_text())
    assert facts["calibration"]["guidance_scale"] == 3.0


def test_a_noise_floor(request_of, tables):
    tables[0]["noise_images"] = 4
    (table,) = run_study(request_of(only=("main",))).tables
    assert [one.kind for one in table.noise_floor] == ["dtype", "seed"]
    assert {name: one.n for name, one in table.noise_floor[0].sets.items()} == {"one": 4, "two": 4}


def test_remaining_time_is_told_first(request_of):
    told = []
    run_study(request_of(only=("curve",)), announce=told.append)
    assert told[0].startswith("Table curve: 3 models to make in about ")
    assert told[1].startswith("All of it: about ") and "of disk" in told[1]
    assert told[2].startswith("The whole study: about ") and told[2].endswith(" left.")
    assert told[3] == "Table curve, model 1 of 3: pcr-no-relax-w8a6, 4 steps, 2 prompts."


@pytest.mark.parametrize(
    "change, said",
    [
        ({"only": ("mian",)}, "did you mean 'main'"),
        ({"prompts": {"three": "x.txt"}}, "no prompt set 'three'"),
        ({"prompts": {"one": "nowhere.txt"}}, "nowhere.txt does not exist"),
        ({"calibration_prompts": "nowhere.txt"}, "nowhere.txt does not exist"),
        ({"source": "torchao:int8wo@bundled:mini-sd"}, "torchao|is quantized"),
        ({"seed": 2**63 - 1}, "seed"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"guidance": float("inf")}, "guidance_scale is inf"),
        ({"features": ("clipp",)}, "did you mean 'clip'"),
    ],
)
def test_wrong_requests_leave_nothing(change, said, request_of):
    request = request_of(**change)
    with pytest.raises(halftone.HalftoneError, match=said):
        run_study(request)
    assert not request.out.exists()


def test_too_few_prompts_are_told_before_the_work(request_of, tables):
    tables[1]["rows"][0]["num_calibration_prompts"] = 5
    with pytest.raises(InputError, match="4 prompts, and 5 are asked for"):
        run_study(request_of())
    tables[1]["rows"][0]["num_calibration_prompts"] = 2
    tables[1]["sets"][0]["num_images"] = 9
    with pytest.raises(InputError, match="8 prompts, and 9 images"):
        run_study(request_of())
    assert not request_of().out.exists()


def test_sources_and_folders(request_of, sd_artifact):
    with pytest.raises(InputError, match="is quantized; a study starts from the full-precision model"):
        run_study(request_of(source=str(sd_artifact)))
    request = request_of()
    request.out.mkdir()
    (request.out / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no study"):
        run_study(request)


def test_an_artifact_of_other_circumstances_is_refused_and_kept(whole):
    request, results = whole
    folder = request.out / "artifacts" / _rows(results)["main", "pcr"].artifact
    (file,) = (folder / "unet").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"\0\0")
    (request.out / "tables" / "main" / "table.json").unlink()
    with pytest.raises(InputError, match="is damaged or was made in other circumstances"):
        run_study(request)
    assert file.exists()


def test_another_model_has_models_and_tables_of_its_own(whole, request_of, tmp_path):
    before = _made(whole[0].out)
    other = save_folder(tiny_sd(seed=1), tmp_path / "other")
    results = run_study(request_of(source=str(other), only=("curve",)))
    assert results.missing == ("main",) and results.reference.source == str(other)
    assert before.items() <= _made(whole[0].out).items()


def test_a_copy_of_the_model_is_the_same_study(whole, request_of, sd_folder, tmp_path):
    before = _made(whole[0].out)
    copy = shutil.copytree(sd_folder, tmp_path / "copy")
    run_study(request_of(source=str(copy)))
    assert _made(whole[0].out) == before


def test_of_a_finished_study_nothing_is_left(whole):
    found = estimate_study(whole[0])
    assert found.lines() == ["Nothing is left to do: all tables are measured."] and found.seconds() == found.bytes == 0
