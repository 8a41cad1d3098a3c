"""Made-up but plausible results of a study."""

from made_up_results import candidate, comparison, results_of, set_result

from halftone.study.results import CalibrationCost, StudyResults, StudyRow, StudyTable


def row(
    name, group, psnr, bits=8.4, share=0.2, products=1.2, prompts=64, sets=("in-domain",), seconds=75.0, optional=True
):
    return StudyRow(
        name=name,
        group=group,
        recipe=f"recipe-{name}",
        artifact=f"{name}-20-steps-64-prompts-00000000",
        layers=129,
        weight_bits=int(group[1]),
        average_activation_bits=bits,
        relaxed_share=share,
        products=products,
        artifact_bytes=20_000_000,
        denoiser_bytes=11_400_000,
        calibration=CalibrationCost(prompts=prompts, denoiser_passes_per_prompt=40.0, seconds=seconds),
        sets={one: set_result(psnr - 2 * i, 0.97, seed=i, optional=optional) for i, one in enumerate(sets)},
    )


def table_of(name, rows, kind="comparison", sets=("in-domain",), comparisons=(), warnings=(), floors=True):
    base = results_of([candidate("any", (36.0, 0.97), 8, sets)], sets, floors=floors)
    return StudyTable(
        name=name,
        title=f"The table {name} & <b>",
        sentence=f"What does {name} | ask?",
        kind=kind,
        settings=base.settings,
        rows=tuple(rows),
        noise_floor=base.noise_floor,
        comparisons=tuple(comparisons),
        warnings=tuple(warnings),
    )


def study_of(tables=None, **changes):
    sets = ("in-domain", "out-of-domain")
    compared = [
        comparison(one, metric, "pcr", other, p, difference)
        for one in sets
        for metric, difference in (("psnr", 7.0), ("fid_to_fp", -1.0))
        for other, p in (("minmax", 0.001), ("drift <1>", 0.4))
    ]
    main = table_of(
        "main",
        [
            row("pcr", "w8a8", 36.0, sets=sets),
            row("minmax", "w8a8", 29.0, bits=8.0, share=0.0, products=1.0, sets=sets, seconds=None),
            row("drift <1>", "w8a8", 35.9, sets=sets),
            row("only w4", "w4a8", 22.0, sets=sets),
        ],
        sets=sets,
        comparisons=compared,
        warnings=["40 images are <few>."],
    )
    ablation = table_of("ablation", [row(f"part {i}", "w8a8", 30.0 + i) for i in range(3)], "ablation", floors=False)
    share = table_of("share", [row(f"{s}", "w8a6", 30 + 10 * s, share=s) for s in (0.0, 0.1, 0.5)], "relaxed share")
    prompts = table_of(
        "prompts",
        [row(f"{g} {n}", g, 30 + n / 64, prompts=n) for g in ("w8a8", "w8a6") for n in (8, 16, 256)],
        "calibration prompts",
    )
    base = results_of([candidate("any", (36.0, 0.97), 8, sets)], sets)
    fields = {
        "environment": base.environment,
        "plan": "made-up",
        "plan_sha256": "1" * 64,
        "reference": base.reference,
        "tables": tuple(tables or (main, ablation, share, prompts)),
        "missing": ("sides",),
        "commands": ("halftone study <a>",),
    }
    return StudyResults(**{**fields, **changes})
