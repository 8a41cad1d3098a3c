"""The parts of the study, each of which is kept when it is finished and not done again."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.qdiffbench.coverage import counted, large_sample_values, one_trial, read_columns
from benchmarks.qdiffbench.processes import Ended, run
from benchmarks.qdiffbench.settings import ITSELF, Study, noisy_name
from benchmarks.qdiffbench.verdicts import Part, ranks
from benchmarks.qdiffbench.weight_noise import make_noisy
from halftone.errors import InputError
from halftone.files import write_atomically
from halftone.qdiffbench.bench import RESULTS
from halftone.qdiffbench.feature_files import FOLDER as FEATURES
from halftone.qdiffbench.measure import IMAGES_AT_ONCE
from halftone.qdiffbench.results import Results

Say = Callable[[str], None]


def kept(study: Study, name: str, make: Callable[[], Part]) -> Part:
    """A part's result, made if no earlier run has finished it."""
    path = study.work / "parts" / f"{name}.json"
    if not path.exists():
        write_atomically(path, json.dumps(make(), indent=1) + "\n")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def itself(study: Study, say: Say) -> Part:
    """Full precision against itself: killed again and again, then measured once more from the images alone.

    Both sides of each pair are painted by processes that were killed at other moments, so equal images say that kills
    leave no trace in them.
    """
    settings = study.settings
    command = study.bench([f"{ITSELF}={settings.source}"], list(settings.prompts), settings.num_images)
    ended, kills = _through_kills(study, command, say)
    first = _results(study)
    for folder in [*study.work.rglob(FEATURES)]:
        shutil.rmtree(folder)
    say("measuring the same images again, undisturbed")
    again = run(command, settings.processes, study.work / "logs" / "again.log")
    second = _results(study)
    sets = first["candidates"][0]["sets"]
    return {
        "n": {name: one["n"] for name, one in sets.items()},
        "fid_to_fp": {name: one["fid_to_fp"] for name, one in sets.items()},
        "kid_to_fp": {name: one["kid_to_fp"] for name, one in sets.items()},
        "psnr": {name: one["psnr"]["mean"] for name, one in sets.items()},
        "worst_psnr": {name: one["worst_pairs"][0]["psnr"] for name, one in sets.items()},
        "kills": kills,
        "images_recorded_twice": _recorded_twice(study.work),
        "same_results_after_kills": sets == second["candidates"][0]["sets"],
        "seconds": ended.seconds,
        "peak_memory_bytes": max(ended.peak_memory_bytes, again.peak_memory_bytes),
        "environment": first["environment"],
        "settings": first["settings"],
    }


def undisturbed(study: Study, say: Say) -> Part:
    """One noisy model on the first set, all its images painted and measured by one run: time and memory."""
    settings = study.settings
    _make_models(study, (settings.coverage_sigma,), say)
    candidate, sets = study.candidate(settings.coverage_sigma), [settings.coverage_set]
    say(f"comparing {noisy_name(settings.coverage_sigma)} on {settings.num_images} prompts")
    ended = run(
        study.bench([candidate], sets, settings.num_images), settings.processes, study.work / "logs" / "one.log"
    )
    found = _results(study)
    return {
        "candidate": found["candidates"][0]["name"],
        "n": settings.num_images,
        "seconds": ended.seconds,
        "peak_memory_bytes": ended.peak_memory_bytes,
        "sets": found["candidates"][0]["sets"],
        "warnings": found["warnings"],
    }


def ranking(study: Study, say: Say) -> Part:
    """All noisy models on all sets: does every metric put them in the order of their noise?"""
    settings = study.settings
    _make_models(study, settings.sigmas, say)
    candidates = [study.candidate(sigma) for sigma in settings.sigmas]
    say(f"comparing {len(candidates)} models with growing noise on {settings.rank_images} prompts a set")
    run(
        study.bench(candidates, list(settings.prompts), settings.rank_images),
        settings.processes,
        study.work / "logs" / "ranking.log",
    )
    results = Results.from_json((study.out / RESULTS).read_text(encoding="utf-8"))
    return {"n": settings.rank_images, "sigmas": list(settings.sigmas), "sets": ranks(results)}


def coverage(study: Study, say: Say) -> Part:
    """Draws samples of the prompts and counts how often the intervals hold the large-sample values."""
    settings, path = study.settings, study.work / "parts" / "columns.npz"
    if not path.exists():
        _write_columns(study, path)
    columns = read_columns(path)
    trials_path = study.work / "parts" / "trials.json"
    trials: list[Any] = json.loads(trials_path.read_text(encoding="utf-8")) if trials_path.exists() else []
    for trial in range(len(trials), settings.trials):
        trials.append(one_trial(columns, settings.sample, trial))
        write_atomically(trials_path, json.dumps(trials) + "\n")
        if trial % max(1, settings.trials // 10) == 0:
            say(f"intervals of sample {trial + 1} of {settings.trials}")
    return {
        "candidate": noisy_name(settings.coverage_sigma),
        "set": settings.coverage_set,
        "prompts": settings.num_images,
        "sample": settings.sample,
        "metrics": counted(large_sample_values(columns), trials),
    }


def _through_kills(study: Study, command: list[str], say: Say) -> tuple[Ended, int]:
    """Runs the command, killing it at equal distances of its way; kills of an earlier run of the study count."""
    settings, path = study.settings, study.work / "parts" / "kills.json"
    state: Part = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"kills": 0, "s": 0.0, "peak": 0}
    while True:
        target = (state["kills"] + 1) / settings.kills if state["kills"] < settings.kills else 2.0
        say(f"comparing the model with itself, killed {state['kills']} times so far")
        ended = run(
            command,
            settings.processes,
            study.work / "logs" / "itself.log",
            partial(_has_come_to, study, target),
        )
        state["s"], state["peak"] = state["s"] + ended.seconds, max(state["peak"], ended.peak_memory_bytes)
        state["kills"] += ended.killed
        write_atomically(path, json.dumps(state))
        if not ended.killed:
            return Ended(False, state["s"], state["peak"]), state["kills"]


def _has_come_to(study: Study, target: float) -> bool:
    return _share_done(study) >= target


def _share_done(study: Study) -> float:
    """Of the first comparison's images (four fifths) and files of features (a fifth)."""
    sides = 2 * len(study.settings.prompts)
    files = Counter(path.suffix for root in (study.cache, study.out) for path in root.rglob("*.*"))
    images = files[".png"] / (sides * study.settings.num_images)
    return 0.8 * images + 0.2 * files[".npy"] / (sides * -(-study.settings.num_images // IMAGES_AT_ONCE))


def _make_models(study: Study, sigmas: Sequence[float], say: Say) -> None:
    for sigma in sigmas:
        say(f"making {noisy_name(sigma)}")
        make_noisy(study.settings.source, sigma, study.model(sigma), study.settings.seed)


def _write_columns(study: Study, path: Path) -> None:
    """From the images and features of `undisturbed`, by a process with the threads that painted them."""
    before = sum(1 for _ in study.work.rglob("*.png"))
    command = [sys.executable, "-m", "benchmarks.qdiffbench.columns", str(study.work), str(path)]
    run(command, 1, study.work / "logs" / "columns.log")
    if sum(1 for _ in study.work.rglob("*.png")) != before:
        raise InputError("Images were painted anew where those of the comparison should have been found.")


def _results(study: Study) -> dict[str, Any]:
    return dict(json.loads((study.out / RESULTS).read_text(encoding="utf-8")))


def _recorded_twice(work: Path) -> int:
    """Images that two processes have painted."""
    found = Counter(
        (records.parent, json.loads(line)["index"])
        for records in work.rglob("records-*.jsonl")
        for line in records.read_text(encoding="utf-8").splitlines()
        if line.endswith("}")
    )
    return sum(count > 1 for count in found.values())
