"""`halftone bench`: its contract, its cache, and every kind of wrong input."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from halftone.cli.bench import default_cache


@pytest.fixture
def set_file(tmp_path):
    path = tmp_path / "set.txt"
    path.write_text("".join(f"a red cube {letter}\n" for letter in "abcdef"), encoding="utf-8")
    return path


@pytest.fixture
def bench(halftone, sd_folder, clip_folder, set_file, tmp_path):
    def run(*more, reference=sd_folder, candidates=(sd_folder,), sets=(set_file,), out=tmp_path / "out", floor="none"):
        prompts = [word for one in sets for word in ("--prompts", one)]
        words = ["--steps", 2, "--num-images", 4, "--noise-floor", floor, "--clip", clip_folder, "--out", out]
        return halftone("bench", reference, *candidates, *prompts, *words, *more)

    return run


@pytest.fixture
def folders(halftone, clip_folder, tmp_path):
    """Runs the comparison of two folders of images, which `paint` makes."""

    def run(*more, reference="a", candidates=("b",), clip=clip_folder):
        return halftone("bench", reference, *candidates, "--images", "--clip", clip, "--out", tmp_path / "out", *more)

    return run


def _paint(folder, count=5, size=(16, 16), seed=0, manifest=True):
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed)
    for index in range(count):
        Image.fromarray(noise.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{index:05d}.png")
    if manifest:
        lines = [json.dumps({"prompt": f"a red cube {'abcdef'[i]}", "file": f"{i:05d}.png"}) for i in range(count)]
        (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _images(folder):
    return sorted(folder.rglob("*.png"))


def test_result_for_machines(bench, sd_artifact, tmp_path):
    ran = bench("--json", candidates=(f"ours={sd_artifact}",))
    assert ran.code == 0 and "4 of 4" in ran.err
    assert ran.json == json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert ran.json["schema"] == "halftone.qdiffbench/1"
    assert [one["name"] for one in ran.json["candidates"]] == ["ours"]
    assert list(ran.json["candidates"][0]["sets"]) == ["set"] and ran.json["candidates"][0]["sets"]["set"]["n"] == 4
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "ours" in page and "http://" not in page.replace("http://www.w3.org", "")


def test_result_for_people_is_on_stderr_and_the_table_on_stdout(bench):
    ran = bench()
    assert ran.code == 0 and ran.out == ""
    assert "PSNR 100.00 dB" in ran.err and "The report: " in ran.err and "Note: 4 images are few" in ran.err
    table = bench("--markdown")
    assert table.code == 0 and table.out.startswith("|") and "sd" in table.out


def test_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HALFTONE_CACHE", str(tmp_path))
    assert default_cache() == tmp_path / "bench"
    monkeypatch.delenv("HALFTONE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert default_cache() == tmp_path / "x" / "halftone" / "bench"


def test_second_benchmark_paints_no_reference_image_again(bench, sd_artifact, tmp_path):
    assert bench(floor="dtype,seed").code == 0
    before = {path: path.stat().st_mtime_ns for path in _images(tmp_path / "cache")}
    assert len(before) == 12  # the reference, and twice as noise floor
    assert bench(candidates=(sd_artifact,), out=tmp_path / "second", floor="dtype,seed").code == 0
    assert {path: path.stat().st_mtime_ns for path in _images(tmp_path / "cache")} == before


@pytest.mark.parametrize(
    "more, said",
    [
        ({"sets": ()}, "at least one --prompts"),
        ({"sets": ("none.txt",)}, "does not exist"),
        ({"sets": ("a=set.txt", "a=set.txt")}, "Two prompt sets are called 'a'"),
        ({"sets": ("bundled:scene",)}, "did you mean 'scenes'"),
        ({"candidates": ("nowhere",)}, "nowhere is neither"),
        ({"candidates": ("x" * 300,)}, "x"),
        ({"candidates": ("toorchao:int8wo@sd",)}, "known: torchao, quanto"),
        ({"candidates": ("torchao:int8w@sd",)}, "did you mean 'int8wo'"),
        ({"reference": "bundled:mini-sdd"}, "no bundled model"),
        ({"floor": "noise"}, "no kind 'noise'"),
    ],
)
def test_wrong_request(more, said, bench, tmp_path):
    assert said in bench(**more).sentence
    assert not _images(tmp_path) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "more, said",
    [
        (["--num-images", 3], "gives 3 images; a comparison needs at least 4"),
        (["--num-images", 7], "6 prompts"),
        (["--features", "clp"], "did you mean 'clip'"),
        (["--features", "clip:nowhere"], "nowhere is neither"),
        (["--clip", "nowhere"], "nowhere is neither"),
        (["--dtype", "int8"], "no dtype to run in"),
        (["--device", "meta"], "'meta'"),
        (["--scheduler", "DDIMM"], "did you mean 'DDIM'"),
        (["--height", 12, "--width", 12], "divisible by 8"),
        (["--seed", 2**64], "seed"),
        (["--guidance", "nan"], "guidance_scale is nan"),
        (["--steps", 1001], "1000"),
    ],
)
def test_wrong_options_are_told_before_anything_is_painted(more, said, bench, tmp_path):
    assert said in bench(*more).sentence
    assert not _images(tmp_path)


def test_one_prompt_only(bench, tmp_path):
    (tmp_path / "one.txt").write_text("a red cube\n")
    assert "1 prompts, and 4 images" in bench(sets=("one.txt",)).sentence


def test_damaged_candidate_is_told_before_the_reference_is_painted(bench, sd_artifact, tmp_path):
    folder = shutil.copytree(sd_artifact, tmp_path / "artifact")
    path = next((folder / "unet").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    assert "truncated or changed" in bench(candidates=(folder,)).sentence
    assert not _images(tmp_path)


def test_folder_of_something_else_is_kept(bench, folders, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text("my own")
    assert "is not empty and holds no benchmark" in bench().sentence
    _paint(tmp_path / "a"), _paint(tmp_path / "b")
    assert "is not empty and holds no benchmark" in folders().sentence
    assert (tmp_path / "out" / "results.json").read_text() == "my own"
    assert not _images(tmp_path / "cache")
    (tmp_path / "file").touch()
    assert "is a file" in bench(out=tmp_path / "file").sentence


def test_another_candidate_can_join_in_the_same_folder(bench, sd_artifact, sd_folder, tmp_path):
    assert bench().code == 0
    before = {path: path.stat().st_mtime_ns for path in _images(tmp_path)}
    ran = bench("--json", candidates=(sd_folder, sd_artifact))
    assert [one["name"] for one in ran.json["candidates"]] == ["sd", "sd-w8a8"]
    assert before.items() <= {path: path.stat().st_mtime_ns for path in _images(tmp_path)}.items()


def test_two_folders_of_images(folders, tmp_path):
    _paint(tmp_path / "a"), _paint(tmp_path / "b", seed=1)
    ran = folders("--json", candidates=("b", "a"))
    assert ran.code == 0
    other, same = (one["sets"]["images"] for one in ran.json["candidates"])
    assert same["psnr"]["mean"] == 100.0 and same["fid_to_fp"] <= 1e-3 and same["n"] == 5
    assert other["psnr"]["mean"] < 15.0 and other["fid_to_fp"] > 0.01
    assert other["clip_score_reference"] == same["clip_score_reference"]  # the manifest has the prompts
    assert "latent_error" not in same and ran.json["settings"]["width"] == 16
    psnr = next(one for one in ran.json["comparisons"] if one["metric"] == "psnr")
    assert (psnr["a"], psnr["b"]) == ("b", "a") and psnr["difference"] == pytest.approx(other["psnr"]["mean"] - 100.0)


def test_folders_may_be_named_and_manifests_may_say_where_they_are(folders, tmp_path):
    for name in "ab":
        manifest = _paint(tmp_path / name) / "manifest.jsonl"
        manifest.write_text(manifest.read_text().replace('"file": "', '"file": "./'))
    ran = folders("--json", candidates=("mine=b",))
    assert ran.code == 0 and ran.json["candidates"][0]["name"] == "mine"
    assert ran.json["candidates"][0]["source"] == "b"
    assert "clip_score" in ran.json["candidates"][0]["sets"]["images"]


def test_two_folders_without_prompts_and_scores(folders, clip_folder, tmp_path):
    _paint(tmp_path / "a", manifest=False), _paint(tmp_path / "b", manifest=False)
    ran = folders("--json", "--features", f"clip:{clip_folder}", clip="none")
    assert ran.code == 0 and "clip_score" not in ran.json["candidates"][0]["sets"]["images"]


def test_wrong_folders(folders, tmp_path):
    _paint(tmp_path / "a"), _paint(tmp_path / "b", count=6)
    assert "The image b/00005.png has no partner of its prompt and seed in a;" in folders().sentence
    assert "is not a folder of images" in folders(candidates=("none",)).sentence
    (tmp_path / "empty").mkdir()
    assert "has no images" in folders(candidates=("empty",)).sentence
    _paint(tmp_path / "larger", size=(24, 16))
    sentence = folders(candidates=("larger",)).sentence
    assert "16×16" in sentence and "16×24" in sentence and "larger/00000.png" in sentence
    _paint(tmp_path / "one", count=1), _paint(tmp_path / "uno", count=1)
    assert "There are 1 images" in folders(reference="one", candidates=("uno",)).sentence
    _paint(tmp_path / "bad")
    data = (tmp_path / "bad" / "00003.png").read_bytes()
    for damage in (b"", b"no image", data[: len(data) // 2]):
        (tmp_path / "bad" / "00003.png").write_bytes(damage)
        assert "bad/00003.png cannot be read" in folders(candidates=("bad",)).sentence
    assert "--prompts has no meaning" in folders("--prompts", "set.txt").sentence
    assert "--num-images has no meaning" in folders("--num-images", 4).sentence
    for name in ("mixed", "mixture"):
        _paint(tmp_path / name)
        Image.new("RGB", (32, 32)).save(tmp_path / name / "00003.png")
    sentence = folders(reference="mixed", candidates=("mixture",)).sentence
    assert "16×16" in sentence and "32×32" in sentence and "00003.png" in sentence


@pytest.mark.parametrize(
    "text, said", [("{", "line 1 is not JSON"), ("[1]", "line 1 needs"), ("\xff", "cannot be read")]
)
def test_damaged_manifest(text, said, folders, tmp_path):
    _paint(tmp_path / "a"), _paint(tmp_path / "b")
    (tmp_path / "a" / "manifest.jsonl").write_bytes(text.encode("latin1"))
    assert said in folders().sentence


def test_manifest_without_an_image(folders, tmp_path):
    _paint(tmp_path / "a"), _paint(tmp_path / "b")
    lines = (tmp_path / "a" / "manifest.jsonl").read_text().splitlines()
    (tmp_path / "a" / "manifest.jsonl").write_text("\n".join(lines[:-1]))
    assert "says nothing of 00004.png" in folders().sentence


def test_nan_features_name_the_image(folders, tmp_path, monkeypatch):
    from halftone.qdiffbench.clip_model import ClipExtractor

    _paint(tmp_path / "a"), _paint(tmp_path / "b")
    real = ClipExtractor.forward

    def broken(self, images):
        found = real(self, images).clone()
        found[2, 0] = float("nan")
        return found

    monkeypatch.setattr(ClipExtractor, "forward", broken)
    assert "NaN or infinity for image b/00002.png" in folders().sentence


def test_images_made_elsewhere_against_a_model(bench, tmp_path):
    folder = _paint(tmp_path / "made", count=6)
    assert bench("--json", candidates=(folder,)).json["candidates"][0]["sets"]["set"]["n"] == 4
    (folder / "manifest.jsonl").rename(tmp_path / "m")
    assert "manifest.jsonl" in bench(candidates=(folder,)).sentence
    (folder / "manifest.jsonl").write_text((tmp_path / "m").read_text().splitlines()[0])
    assert "has no image of the prompt" in bench(candidates=(folder,)).sentence
    _paint(folder, count=6, size=(24, 24))
    assert "24×24" in bench(candidates=(folder,)).sentence
    _paint(folder, count=6)
    (folder / "00001.png").unlink()
    assert "00001.png, which is not there" in bench("--num-images", 6, candidates=(folder,)).sentence


def test_images_as_reference_have_no_noise_floor(bench, tmp_path):
    folder = _paint(tmp_path / "made", count=6)
    results = bench("--json", reference=folder, floor="dtype,seed").json
    assert results["noise_floor"] == [] and any("no noise floor" in text for text in results["warnings"])


def test_images_from_other_noise_are_told(bench, halftone, sd_folder, set_file, tmp_path):
    """`halftone generate` seeds by the file's order and a benchmark by its sample's: the manifest tells."""
    assert halftone("generate", sd_folder, "--prompts", set_file, "--steps", 2, "--out", "made").code == 0
    results = bench("--json", "--num-images", 6, candidates=("made",)).json
    entries = [json.loads(line) for line in (tmp_path / "made" / "manifest.jsonl").read_text().splitlines()]
    told = {one["prompt"]: one["seed"] for one in results["candidates"][0]["sets"]["set"]["worst_pairs"]}
    assert told == {entry["prompt"]: entry["seed"] for entry in entries}
    (manifest,) = tmp_path.glob("cache/**/manifest.jsonl")
    sample = {one["prompt"]: one["seed"] for one in map(json.loads, manifest.read_text().splitlines())}
    differ = sum(sample[entry["prompt"]] != entry["seed"] for entry in entries)
    assert differ > 0 and any(f"{differ} of 6 images in made were painted" in text for text in results["warnings"])
    # painted with the sample's seeds, they are the reference's
    for index, entry in enumerate(entries):
        halftone("generate", sd_folder, "--prompt", entry["prompt"], "--seed", sample[entry["prompt"]], "--steps", 2,
                 "--out", f"one-{index}")  # fmt: skip
        shutil.copy(tmp_path / f"one-{index}" / "00000.png", tmp_path / "made" / entry["file"])
        entry["seed"] = sample[entry["prompt"]]
    (tmp_path / "made" / "manifest.jsonl").write_text("\n".join(map(json.dumps, entries)))
    results = bench("--json", "--num-images", 6, candidates=("made",)).json
    assert results["candidates"][0]["sets"]["set"]["psnr"]["mean"] == 100.0
    assert not any("another seed" in text for text in results["warnings"])


def _rewrite(folder, change, names):
    """Renames the images of a folder and changes the manifest's entries."""
    entries = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    for index, (entry, name) in enumerate(zip(entries, names, strict=True)):
        (folder / entry["file"]).rename(folder / name)
        entry.update({"file": name, **change(index)})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, entries)))


def test_images_are_paired_by_name_or_prompt_and_never_by_order(folders, tmp_path):
    def psnr(ran):
        return ran.json["candidates"][0]["sets"]["images"]["psnr"]["mean"]

    _paint(tmp_path / "a"), _paint(tmp_path / "b")
    for path in (tmp_path / "b").glob("*.png"):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    (tmp_path / "b" / "manifest.jsonl").unlink()
    assert psnr(folders("--json")) == 100.0  # by name
    # by prompt: the names sort the other way round
    _paint(tmp_path / "c")
    _rewrite(tmp_path / "c", lambda index: {}, [f"{9 - i}.png" for i in range(5)])
    assert psnr(folders("--json", candidates=("c",))) == 100.0
    # the same names for other prompts
    _paint(tmp_path / "d")
    _rewrite(tmp_path / "d", lambda index: {}, [f"{i}.tmp.png" for i in range(5)])
    _rewrite(tmp_path / "d", lambda index: {}, [f"{4 - i:05d}.png" for i in range(5)])
    assert psnr(folders("--json", candidates=("d",))) == 100.0
    # one prompt, told apart by seed
    _paint(tmp_path / "e"), _paint(tmp_path / "f")
    _rewrite(tmp_path / "e", lambda i: {"prompt": "a cube", "seed": i}, [f"{i}.png" for i in range(5)])
    _rewrite(tmp_path / "f", lambda i: {"prompt": "a cube", "seed": i}, [f"{9 - i}.png" for i in range(5)])
    ran = folders("--json", reference="e", candidates=("f",))
    pairs = ran.json["candidates"][0]["sets"]["images"]["worst_pairs"]
    assert psnr(ran) == 100.0 and [one["seed"] for one in pairs] == [0, 1, 2, 3, 4]
    (tmp_path / "f" / "manifest.jsonl").unlink()
    said = folders(reference="e", candidates=("f",)).sentence
    assert "The image e/0.png has no partner of its name in f;" in said


def test_unknown_seeds_are_not_invented(folders, tmp_path):
    _paint(tmp_path / "a"), _paint(tmp_path / "b", seed=1)
    ran = folders("--json")
    assert all("seed" not in one for one in ran.json["candidates"][0]["sets"]["images"]["worst_pairs"])
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "#0" in page and "#0, seed" not in page


@pytest.mark.parametrize(
    "size, more, judge",
    [
        (64, (), "bundled:mini-clip"),
        (65, (), "openai/clip-vit-large-patch14"),
        (65, ("--clip", "mine"), "mine"),
        (65, ("--features", "clip:mine"), "mine"),
        (64, ("--features", "clip"), "bundled:mini-clip"),
    ],
)
def test_the_small_clip_judges_small_images_only(size, more, judge, halftone, tmp_path, monkeypatch):
    from halftone.qdiffbench import folders

    asked = []
    monkeypatch.setattr(folders, "compare_folders", lambda request, bar: asked.append(request))
    _paint(tmp_path / "a", size=(size, 64))
    assert halftone("bench", "a", "b", "--images", "--out", "out", *more).code == 0
    assert asked[0].clip == judge and asked[0].features == (f"clip:{judge}",)


@pytest.mark.parametrize(
    "reference, usual",
    [
        ("bundled:mini-sd", "bundled:mini-clip"),
        ("full=bundled:mini-sd", "bundled:mini-clip"),
        ("torchao:int8wo@bundled:mini-sd", "bundled:mini-clip"),
        ("./mine", "openai/clip-vit-large-patch14"),
    ],
)
@pytest.mark.parametrize("more", [(), ("--features", "clip")])
def test_bundled_models_have_the_bundled_judge(reference, usual, more, halftone, set_file, monkeypatch):
    from halftone.qdiffbench import bench as engine

    asked = []
    monkeypatch.setattr(engine, "bench", lambda request, bar: asked.append(request))
    for clip in ((), ("--clip", "none")):
        ran = halftone("bench", reference, "x", "--prompts", set_file, "--out", "out", *more, *clip)
        assert ran.code == 0 and asked[-1].features == (f"clip:{usual}",)
        assert asked[-1].clip == (None if clip else usual)


def test_a_card_tells_what_was_measured_of_this_artifact_alone(bench, halftone, sd_artifact, sd_folder, tmp_path):
    bench(candidates=(sd_folder,), out=tmp_path / "other")
    sentence = halftone("card", sd_artifact, "--results", tmp_path / "other" / "results.json").sentence
    assert "measured no candidate that is" in sentence
    bench(candidates=(sd_artifact,))
    copy = shutil.copytree(sd_artifact, tmp_path / "copy")
    ran = halftone("card", copy, "--results", tmp_path / "out" / "results.json")
    assert ran.code == 0 and "## Measurements" in ran.out and "PSNR" in ran.out
