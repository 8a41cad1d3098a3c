"""Which side is the sensitive one: by hand, and only where the intervals do not overlap."""

import pytest

from halftone.qdiffbench.set_results import Mean, SetResult, Summary
from halftone.sensitivity.results import IntervalResult, StepInterval
from halftone.sensitivity.sides import sensitive_sides


def _result(psnr, clip=None):
    """A result from (mean, half width) of PSNR and of the CLIP score's change."""
    mean, half = psnr
    summary = Summary(mean=mean, ci95=(mean - half, mean + half), median=mean, worst_decile=mean - 1, n=8)
    change = None if clip is None else Mean(mean=clip[0], ci95=(clip[0] - clip[1], clip[0] + clip[1]), n=8)
    return SetResult(n=8, fid_to_fp=1.0, kid_to_fp=0.1, psnr=summary, ssim=summary, clip_score_difference=change)


def _intervals(*results, length=4):
    return [
        IntervalResult(
            interval=StepInterval(
                first=i * length + 1, last=(i + 1) * length, first_timestep=900.0 - i, last_timestep=1.0
            ),
            result=result,
        )
        for i, result in enumerate(results)
    ]


@pytest.mark.parametrize(
    "experiment, start, end, expected",
    [
        ("perturb", (40.0, 1.0), (30.0, 1.0), "end"),  # noise there leaves less
        ("perturb", (30.0, 1.0), (40.0, 1.0), "start"),
        ("float", (40.0, 1.0), (30.0, 1.0), "start"),  # floating point there restores more
        ("float", (30.0, 1.0), (40.0, 1.0), "end"),
        ("perturb", (30.0, 1.0), (31.5, 1.0), None),
        ("float", (30.0, 1.0), (31.5, 1.0), None),
        ("perturb", (30.0, 1.0), (32.0, 1.0), None),  # they touch
        ("perturb", (30.0, 1.0), (32.5, 1.0), "start"),
    ],
)
def test_the_side_by_hand(experiment, start, end, expected):
    middle = _result((10.0, 0.1), (-9.0, 0.1))  # is on no side
    fidelity, matching = sensitive_sides(
        experiment, _intervals(_result(start, (0.0, 1.0)), middle, _result(end, (0.0, 1.0)))
    )
    assert (fidelity.measure, fidelity.metric, fidelity.side) == ("fidelity", "psnr", expected)
    assert (matching.measure, matching.metric, matching.side) == ("matching", "clip_score_difference", None)
    assert "the sides are not told apart" in matching.sentence
    assert ("not told apart" in fidelity.sentence) == (expected is None)


def test_sentences_have_the_numbers_and_the_steps():
    results = _intervals(_result((40.0, 1.0), (-2.0, 0.5)), _result((30.0, 0.25), (-0.1, 0.2)))
    fidelity, matching = sensitive_sides("perturb", results)
    assert fidelity.sentence == (
        "For fidelity the last steps are the sensitive ones: PSNR 30.00 dB (29.75 to 30.25) with noise in steps 5 to 8,"
        " 40.00 dB (39.00 to 41.00) with noise in steps 1 to 4."
    )
    assert matching.side == "start" and matching.sentence == (
        "For matching the first steps are the sensitive ones: CLIP score change -2.00 (-2.50 to -1.50) with noise in"
        " steps 1 to 4, -0.10 (-0.30 to 0.10) with noise in steps 5 to 8."
    )
    of_one = sensitive_sides("float", _intervals(_result((40.0, 1.0)), _result((30.0, 1.0)), length=1))
    assert "with floating point in step 1," in of_one[0].sentence


def test_what_was_not_measured_is_not_judged():
    assert [one.measure for one in sensitive_sides("float", _intervals(_result((1.0, 0.1)), _result((2.0, 0.1))))] == [
        "fidelity"
    ]
    assert sensitive_sides("float", _intervals(_result((1.0, 0.1)))) == ()
