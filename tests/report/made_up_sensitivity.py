"""Made-up but plausible results of the sensitivity experiments."""

from made_up_results import candidate, results_of, set_result

from halftone.sensitivity.results import (
    Experiment,
    IntervalResult,
    QuantizedModel,
    SensitivityResults,
    StepInterval,
)
from halftone.sensitivity.sides import sensitive_sides


def interval_results(psnrs, length=4, optional=True):
    """Intervals of so many steps with these mean PSNRs, and what `set_result` makes of them."""
    return tuple(
        IntervalResult(
            interval=StepInterval(
                first=i * length + 1,
                last=(i + 1) * length,
                first_timestep=951.0 - 50 * i * length,
                last_timestep=1001.0 - 50 * (i + 1) * length,
            ),
            result=set_result(psnr, 0.97, seed=i, optional=optional),
        )
        for i, psnr in enumerate(psnrs)
    )


def sensitivity_of(perturb=(36.0, 34.0, 31.0, 29.0, 26.0), mixed=(30.0, 30.5, 31.0, 33.0, 38.0), **changes):
    """Both experiments, of which an empty one is left out."""
    any_one = candidate("any", (36.0, 0.97), 8, ["scenes"])
    base = results_of([any_one], ["scenes"], commands=("halftone sensitivity <a>",))
    experiments = []
    if perturb:
        intervals = interval_results(perturb)
        experiments.append(
            Experiment(name="perturb", noise=0.05, intervals=intervals, sides=sensitive_sides("perturb", intervals))
        )
    if mixed:
        intervals = interval_results(mixed)
        experiments.append(
            Experiment(
                name="float",
                quantized_model=QuantizedModel(
                    recipe="per <step>", weight_bits=8, average_activation_bits=8.0, layers=129, calibration_prompts=64
                ),
                intervals=intervals,
                all_quantized=set_result(29.5, 0.96, seed=11),
                none_quantized=set_result(100.0, 1.0, seed=12),
                sides=sensitive_sides("float", intervals),
            )
        )
    fields = {
        "environment": base.environment,
        "settings": base.settings,
        "reference": base.reference,
        "experiments": tuple(experiments),
        "warnings": ("40 images are <few>.", "40 images are <few>."),
    }
    return SensitivityResults(**{**fields, **changes})
