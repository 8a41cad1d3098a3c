"""`halftone demo`: its contract, with the bundled models replaced by tiny ones."""

import json

import pytest

import halftone.demo as library


@pytest.fixture
def demo(halftone, sd_folder, clip_folder, monkeypatch):
    real = library.run_demo

    def on_tiny_models(out, settings, progress, announce):
        return real(out, settings, progress, announce, source=str(sd_folder), clip=str(clip_folder))

    monkeypatch.setattr(library, "run_demo", on_tiny_models)

    def run(*more):
        return halftone("demo", "--num-images", 4, "--num-prompts", 2, "--steps", 2, "--out", "out", *more)

    return run


def test_for_machines_and_for_people(demo, tmp_path):
    ran = demo("--json")
    assert ran.code == 0 and "calibrating: 2 of 2" in ran.err
    assert ran.json == json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    told = demo()
    assert told.code == 0 and told.out == ""
    assert told.err.splitlines()[-1] == f"The report: {tmp_path / 'out' / 'report.html'}" and "PSNR" in told.err


def test_wrong_input(demo, tmp_path):
    assert "did you mean 'pcr-w8a8'" in demo("--recipe", "pcr-w8a").sentence
    assert "--num-images" in demo("--num-images", 3).sentence
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    assert "is not empty" in demo().sentence
