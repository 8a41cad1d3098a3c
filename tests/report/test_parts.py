import math

import numpy as np
import pytest
from made_up_results import candidate, comparison, results_of, set_result

from halftone.errors import InputError
from halftone.report import ActivationRange, QuantizationFacts, words
from halftone.report.comparisons import duels
from halftone.report.images import contact_sheet, data_uri, difference, reduced
from halftone.report.metrics import METRICS, Reading, decimals, gap_interval, metrics_of, wilson
from halftone.report.ranges import most_moving_layers, shared_range, wasted_bits
from halftone.report.standing import headline, standings
from halftone.report.tables import boards, gap_rows

BY_NAME = {metric.name: metric for metric in METRICS}


def steps(*ranges):
    return [ActivationRange(timestep=100 - i, low=low, high=high) for i, (low, high) in enumerate(ranges)]


def test_wasted_bits_by_hand():
    # shared range 0..8: the steps use all of it, a half, a quarter: 0, 1 and 2 bits
    ranges = steps((0, 8), (0, 4), (6, 8))
    assert shared_range(ranges) == (0, 8)
    assert wasted_bits(ranges) == pytest.approx(1.0)
    assert wasted_bits(steps((1, 1), (1, 1))) == 0.0
    with pytest.raises(InputError):
        shared_range([])


def test_layers_are_ranked_by_movement():
    layers = {"still": steps((0, 1), (0, 1)), "moving": steps((0, 1), (0, 8)), "once": steps((0, 1))}
    assert [name for name, _ in most_moving_layers(layers)] == ["moving", "still"]
    assert len(most_moving_layers(layers, count=1)) == 1


def test_slots_without_a_width_are_refused():
    with pytest.raises(InputError, match="2 slot timesteps but 1"):
        QuantizationFacts(weight_bits=8, slot_timesteps=(2.0, 1.0), slot_bits=(8,), layers_quantized=1)


def test_difference_by_hand():
    a = np.array([[[0, 100, 255]]], dtype=np.uint8)
    b = np.array([[[3, 100, 205]]], dtype=np.uint8)
    assert difference(a, b, 8).tolist() == difference(b, a, 8).tolist() == [[[24, 0, 255]]]
    with pytest.raises(InputError):
        difference(a, b, 0)


def test_contact_sheet_goes_row_by_row():
    cells = [np.full((2, 3, 3), value, dtype=np.uint8) for value in (1, 2, 3)]
    sheet = contact_sheet(cells, columns=2)
    assert sheet.shape == (4, 6, 3)
    assert sheet[::2, ::3, 0].tolist() == [[1, 2], [3, 0]]


def test_reduced_pictures_keep_their_shape_and_mean():
    image = np.zeros((100, 200, 3), dtype=np.uint8)
    image[:, ::2] = 200
    assert reduced(image, 200) is image
    assert reduced(image, 50).shape == (25, 50, 3)
    assert reduced(image, 50).mean() == pytest.approx(100, abs=1)
    assert data_uri(image, lossless=False).startswith("data:image/jpeg;base64,")


def test_words():
    assert [words.in_bytes(n) for n in (12, 999_999, 11_420_000)] == ["12 bytes", "1 MB", "11.4 MB"]
    assert [words.in_seconds(s) for s in (0.012, 0.4, 42, 203, 7500)] == [
        *("12 ms", "0.40 s", "42 s", "3 min 23 s", "2 h 05 min")
    ]
    assert [words.compared(s, 1.0) for s in (0.5, 2.0, 1.01)] == ["2.00× faster", "2.00× slower", "as fast"]
    assert words.typical_levels(48.1308) == pytest.approx(1.0, abs=1e-4)
    assert words.typical_levels(100.0) == 0.0
    assert [words.number(v, 1) for v in (-0.26, -0.001, 3)] == ["−0.3", "0.0", "3.0"]
    assert [words.enumerated(list(s)) for s in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]
    assert words.bits_name(8.0, 8.4) == "W8 A8.4" and words.bits_name(None, None) == ""


def test_wilson_interval_is_where_the_score_test_rejects():
    for share, n in ((0.9, 40), (0.5, 10)):
        for end in wilson(share, n):
            assert abs(share - end) / math.sqrt(end * (1 - end) / n) == pytest.approx(1.95996, abs=1e-4)
    assert wilson(1.0, 20)[1] == 1.0 and wilson(0.0, 20)[0] == 0.0


def test_gap_interval_adds_variances():
    first, second = Reading(10.0, 7.0, 13.0), Reading(8.0, 4.0, 12.0)
    assert gap_interval(first, second) == pytest.approx((-7.0, 3.0))
    assert gap_interval(Reading(1.0), second) is None


def test_fid_shows_the_corrected_value_with_its_interval_and_the_plain_one():
    result = set_result(30.0, 0.9, fid=2.0)
    reading = BY_NAME["fid_to_fp"].read(result)
    assert (reading.value, reading.low, reading.high) == pytest.approx((1.2, 0.8, 1.6))
    assert (reading.note, reading.note_value) == ("plain", 2.0)
    plain = BY_NAME["fid_to_fp"].read(set_result(30.0, 0.9, fid=2.0, optional=False))
    assert plain.value == 2.0 and plain.low is None and "not corrected" in plain.note


def test_metrics_without_a_clip_model_and_with_other_features():
    result = set_result(30.0, 0.9, optional=False)
    update = {"clip_score": None, "clip_score_reference": None, "other_features": {"dinov2": result}}
    names = [metric.name for metric in metrics_of([result.model_copy(update=update)])]
    assert names == ["psnr", "ssim", "fid_to_fp", "kid_to_fp", "fid_to_fp:dinov2", "kid_to_fp:dinov2"]


def test_decimals_follow_the_intervals():
    psnr = BY_NAME["psnr"]
    assert decimals(psnr, [Reading(36.0, 35.7, 36.3)]) == 1
    assert decimals(psnr, [Reading(36.0, 35.99, 36.01)]) == 2
    assert decimals(psnr, [Reading(100.0, 100.0, 100.0)]) == 1 or decimals(psnr, [None]) == 1


@pytest.mark.parametrize(
    ("psnr", "ssim", "verdict"),
    [
        (36.0, 0.97, "one still paints the same pictures."),
        (30.0, 0.9, "one paints the same pictures with small differences."),
        (22.0, 0.7, "one paints similar pictures with other details."),
        (12.0, 0.2, "one paints different pictures."),
    ],
)
def test_headline_of_one_candidate(psnr, ssim, verdict):
    results = results_of([candidate("one", (psnr, ssim), 8, ["s"])], ["s"])
    assert headline(standings(results)) == verdict


def test_headline_tells_sets_apart_and_counts_candidates():
    sets = ["in", "out"]
    split = candidate("split", (36.0, 0.962), 8, sets)
    sentence = headline(standings(results_of([split], sets)))
    assert sentence == "split paints the same pictures on in but the same pictures with small differences on out."
    two = [candidate(n, (36.0, 0.99), 8, ["s"]) for n in "ab"]
    assert headline(standings(results_of(two, ["s"]))).startswith("All 2 candidates still paint")
    far = [candidate(n, (20.0, 0.7), 8, ["s"]) for n in "ab"]
    assert headline(standings(results_of(far, ["s"]))).startswith("None of 2 candidates paints quite")


def test_best_includes_what_is_not_distinguishable():
    three = [candidate(n, (q, 0.97), 8, ["s"]) for n, q in (("a", 36.0), ("b", 35.9), ("c", 30.0))]
    compared = [comparison("s", "psnr", "a", "b", 0.4, 0.1), comparison("s", "psnr", "a", "c", 0.001, 6.0)]
    results = results_of(three, ["s"], comparisons=compared)
    board = boards(results, standings(results))[0]
    assert {row.name: row.cells[0].best for row in board.rows if row.standing} == {"a": True, "b": True, "c": False}
    assert [row.name for row in board.rows if not row.standing] == ["float64", "seed + 1000"]


def test_without_a_comparison_nobody_is_best():
    two = [candidate(n, (q, 0.97), 8, ["s"]) for n, q in (("a", 36.0), ("b", 35.9))]
    results = results_of(two, ["s"], comparisons=[comparison("s", "ssim", "a", "b", 0.4, 0.1)])
    board = boards(results, standings(results))[0]
    names = [metric.name for metric in board.metrics]
    best = {row.name: dict(zip(names, [cell and cell.best for cell in row.cells], strict=True)) for row in board.rows}
    assert not best["a"]["psnr"] and not best["b"]["psnr"] and best["a"]["ssim"] and best["b"]["ssim"]


def test_lower_is_better_is_heeded_and_unknown_metrics_keep_their_verdict():
    compared = [comparison("s", "latent_error", "a", "b", 0.001, -0.2), comparison("s", "psnr", "a", "b", 0.001, -2.0)]
    odd = comparison("s", "psnr", "a", "b", 0.001, 1.0).model_copy(update={"metric": "taste", "verdict": "a nicer"})
    results = results_of([candidate(n, (36.0, 0.97), 8, ["s"]) for n in "ab"], ["s"], comparisons=[*compared, odd])
    assert duels(results)[0].sentences == (
        "a better than b in latent error, p < 0.01",
        "b better than a in PSNR, p < 0.01",
        "taste: a nicer",
    )


def test_gaps_are_in_their_column_s_unit():
    results = results_of([candidate("a", (36.0, 0.97), 8, ["x", "y"])], ["x", "y"])
    rows = gap_rows(standings(results))
    assert [(row.metric.name, row.from_set, row.to_set) for row in rows] == [("psnr", "x", "y"), ("ssim", "x", "y")]
    psnr = results.candidates[0].gaps[0].difference
    assert rows[0].cells[0].text == f"−{abs(psnr):.1f}" and " to " in rows[0].cells[0].interval
