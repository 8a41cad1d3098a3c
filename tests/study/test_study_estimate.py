"""What a study will take: sums by hand from a made-up speed, and how the rest is told while it runs."""

import dataclasses
from contextlib import contextmanager

import pytest

from halftone.recipe import Recipe
from halftone.study import estimate as module
from halftone.study import estimate_study
from halftone.study import forecast as forecast_module
from halftone.study.estimate import Work, calibration_seconds
from halftone.study.forecast import Forecast
from halftone.study.models import ModelPlan, Models
from halftone.study.request import check_request
from halftone.study.speed import Speed, measured_speed

SPEED = Speed(
    float_step=1.0,
    quantized_step=2.0,
    image=10.0,
    features=0.01,
    pair=0.1,
    image_bytes=500,
    latent_bytes=100,
    denoiser_weights=8000,
    other_bytes=1000,
)


def _model(recipe, steps=20, prompts=64):
    return ModelPlan("x", Recipe.load(recipe), steps, None, prompts)


@pytest.mark.parametrize(
    "recipe, seconds",
    [
        ("minmax-w8a8", 64 * 20),
        ("per-step-w8a8", 64 * 20),
        ("pcr-w8a8", 64 * 20 * 3),  # a pass in floating point, and one in integers that takes two seconds
        ("pcr-bias-w8a8", 64 * 20 * 4),
        ("pcr-drift-w8a8", 64 * 20 * 4),
        ("dynamic-w8a8", 0),
        ("pcr-auto-w8a8", 64 * 20 * 3 + 4 * (6 * 20 + 20 * 10)),
        ("pcr-gptq-w4a8", 64 * 20 * 4 + 2 * 256),  # the trajectory of its inputs, and they are looked at
        ("pcr-w4a8", 64 * 20 * 4 + 2 * 256 + 3 * 1000 * 16),
        ("pcr-drift-w4a8", 64 * 20 * 4 + 2 * 256 + 3 * 1000 * 16),  # which serves the correction too
    ],
)
def test_seconds_of_a_calibration(recipe, seconds):
    assert calibration_seconds(_model(recipe), SPEED) == pytest.approx(seconds)


def test_works_by_hand(request_of, monkeypatch):
    monkeypatch.setattr(module, "measured_speed", lambda *arguments: SPEED)
    request = request_of()
    found = estimate_study(request)
    works = {(work.table, work.label): work for work in found.works}
    kinds = {
        kind: sum(work.seconds for work in found.works if work.kind == kind) for kind in ("calibrating", "painting")
    }
    assert kinds["calibrating"] == 2 * 4 * (1 + 3 + 3) + 2 * 4 * (3 + 3)  # minmax, pcr, w4; none, half
    # full precision: 10 s and 4 steps of 1 s; quantized: steps of 2 s, of w4 a quarter with two products
    assert works["main", "painting sd, one"].seconds == 5 * 14 and works["main", "painting sd, two"].seconds == 4 * 14
    assert works["curve", "painting sd, one"].count == 1, "five of six are those of the other table"
    assert works["main", "painting pcr, one"].seconds == pytest.approx(5 * 18)
    assert works["main", "painting pcr w4, one"].seconds == pytest.approx(5 * (10 + 8 * 1.25))
    assert works["curve", "painting a quarter, one"].count == 1 and works["curve", "painting half, one"].count == 6
    assert works["main", "measuring pcr, two"].seconds == pytest.approx(4 * 0.12)
    images = 10 + 10 + 9 + 9 + 6 + 6
    models = 4 * (8000 + 1000) + (4000 + 1000)
    assert found.bytes == images * 2000 + models + 10 * 4 * 100
    assert found.seconds() == pytest.approx(sum(work.seconds for work in found.works))
    assert found.seconds(2) < found.seconds()
    lines = found.lines()
    assert lines[0].startswith("Table main: 3 models to make in about 56 s, 36 images to paint in about ")
    assert lines[1].startswith("Table curve: 2 models to make in about 48 s, 14 images to paint")
    assert lines[2].startswith("All of it: about ") and not request.out.exists()


def test_the_noise_floor_counts(request_of, tables, monkeypatch):
    monkeypatch.setattr(module, "measured_speed", lambda *arguments: SPEED)
    without = estimate_study(request_of(only=("main",))).seconds()
    tables[0]["noise_images"] = 4
    assert estimate_study(request_of(only=("main",))).seconds() == pytest.approx(without + 2 * 2 * 4 * 14)


def test_what_is_there_is_left_out(request_of, monkeypatch):
    request = request_of()
    source = check_request(request)
    models = Models(request, source.model_source)
    table = request.tables[0]
    models.make(models.plan_of(table, table.rows[0]))
    monkeypatch.setattr(module, "measured_speed", lambda *arguments: SPEED)
    labels = [work.label for work in estimate_study(request, source, models).works if work.kind == "calibrating"]
    assert len(labels) == 4 and models.plan_of(table, table.rows[0]).name not in labels


def test_a_few_calls_are_timed(request_of):
    request = request_of()
    speed = measured_speed(request, check_request(request), request.tables[0])
    for field in dataclasses.fields(speed):
        assert getattr(speed, field.name) >= 0, field.name
    assert min(speed.float_step, speed.quantized_step, speed.features, speed.pair) > 0
    assert speed.latent_bytes == 2 * 4 * 8 * 8 and speed.denoiser_weights > 1000 < speed.other_bytes
    assert not request.out.exists()


@pytest.fixture
def now(monkeypatch):
    class Now:
        seconds = 1000.0

    monkeypatch.setattr(forecast_module.time, "monotonic", lambda: Now.seconds)
    return Now


@contextmanager
def _quiet(label):
    yield lambda done, total: None


def test_what_works_really_took_corrects_the_rest(now):
    works = [
        Work("main", "calibrating", "model", 1, 100.0),
        Work("main", "painting", "painting a, one", 10, 50.0),
        Work("main", "painting", "painting b, one", 10, 50.0),
        Work("main", "measuring", "measuring a, one", 10, 5.0),
    ]
    told = []
    forecast = Forecast(works, _quiet, told.append)
    assert forecast.left() == 205.0
    with forecast.calibrating("model"):
        now.seconds += 300.0  # thrice as long, which tells nothing of painting
    assert forecast.left() == 105.0
    with forecast.bar("main")("painting a, one") as advance:
        for done in range(1, 11):
            now.seconds += 10.0
            advance(done, 10)
    assert forecast.left() == pytest.approx(2 * 50.0 + 5.0)
    with forecast.bar("main")("painting b, one") as advance:
        advance(10, 10)  # found on disk, in no time
    assert forecast.left() == 5.0
    assert told == [
        "The whole study: about 3 min left.",
        "The whole study: about 105 s left.",
        "The whole study: about 105 s left.",
    ]


def test_of_a_part_that_was_resumed_only_the_rest_counts(now):
    works = [Work("t", "painting", label, 10, 100.0) for label in ("a", "b")]
    forecast = Forecast(works, _quiet, lambda text: None)
    with forecast.bar("t")("a") as advance:
        for done in range(9, 11):  # eight were there: two take 20 s as expected
            now.seconds += 10.0
            advance(done, 10)
    assert forecast.left() == pytest.approx(100.0)


def test_several_processes_share_calibrating_and_painting():
    works = [Work("t", "painting", "a", 1, 100.0), Work("t", "measuring", "b", 1, 10.0)]
    assert Forecast(works, _quiet, lambda text: None, world=2).left() == 60.0
