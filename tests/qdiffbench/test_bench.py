"""The engine on tiny pipelines: known candidates get known results, and images are painted once."""

import dataclasses
import importlib.util
import json
import platform
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from pipelines import save_folder, tiny_sd

from halftone.errors import InputError
from halftone.generation import GenerationSettings
from halftone.qdiffbench import bench as engine
from halftone.qdiffbench.bench import BenchRequest, bench
from halftone.qdiffbench.results import SCHEMA_FILE, Results
from halftone.sources import weight_bytes

LETTERS = "abcdefghijkl"


@contextmanager
def _quiet(label):
    yield lambda done, total: None


def _painted(root):
    return {path: path.stat().st_mtime_ns for path in Path(root).rglob("*.png")}


def noisy_folder(folder, amount, seed=1):
    """tiny_sd with relative noise on its denoiser's weights; the same noise at every amount."""
    pipeline = tiny_sd()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for weight in pipeline.unet.parameters():
            weight.add_(amount * weight.abs().mean() * torch.randn_like(weight))
    return save_folder(pipeline, folder)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    root = tmp_path_factory.mktemp("noisy")
    return [noisy_folder(root / f"noise-{amount}", amount) for amount in (0.01, 0.1, 0.5)]


@pytest.fixture
def request_of(sd_folder, clip_folder, tmp_path):
    """A request with defaults for what is not given."""

    def make(candidates, **changes):
        names = changes.pop("sets", {"in": LETTERS[:6]})
        sets = {}
        for name, letters in names.items():
            path = tmp_path / f"{name}.txt"
            path.write_text("".join(f"a red cube {letter}\n" for letter in letters))
            sets[name] = str(path)
        fields = {
            "reference": str(sd_folder),
            "candidates": tuple(str(one) for one in candidates),
            "prompt_sets": sets,
            "out": tmp_path / "out",
            "settings": GenerationSettings(num_inference_steps=3, seed=5),
            "cache": tmp_path / "cache",
            "features": (f"clip:{clip_folder}",),
            "clip": str(clip_folder),
            "noise_floor": (),
        }
        return BenchRequest(**{**fields, **changes})

    return make


def test_full_precision_against_itself_and_growing_noise(request_of, sd_folder, noisy):
    """Itself: nothing moves. The more noise on the weights, the worse every metric; and the verdicts say so."""
    request = request_of([sd_folder, *noisy], sets={"in": LETTERS}, noise_floor=("dtype", "seed"), noise_images=8)
    outcome = bench(request, _quiet)
    same, *others = outcome.results.candidates
    result = same.sets["in"]
    assert result.psnr.mean == 100.0 and result.psnr.ci95 == (100.0, 100.0)
    assert result.ssim.mean == 1.0 and result.latent_error.mean == 0.0
    assert result.fid_to_fp <= 1e-3 and abs(result.kid_to_fp) <= 1e-6
    assert [one.latent_error.mean for one in result.drift] == [0.0] * 3
    assert result.clip_score_difference.mean == 0.0 and result.n == len(LETTERS)

    ranked = [one.sets["in"] for one in (same, *others)]
    for worse in (
        [-one.psnr.mean for one in ranked],
        [-one.ssim.mean for one in ranked],
        [one.latent_error.mean for one in ranked],
        [one.fid_to_fp for one in ranked],
        [one.drift[-1].latent_error.mean for one in ranked],
    ):
        assert worse == sorted(worse) and len(set(worse)) == len(worse)
    for one in others:
        assert one.sets["in"].drift[-1].latent_error.mean == one.sets["in"].latent_error.mean

    names = [one.name for one in outcome.results.candidates]
    assert names == ["sd", "noise-0.01", "noise-0.1", "noise-0.5"]
    verdicts = {(one.metric, one.a, one.b): one for one in outcome.results.comparisons}
    for metric, sign in (("psnr", 1), ("ssim", 1), ("latent_error", -1), ("fid_to_fp", -1)):
        one = verdicts[metric, "noise-0.01", "noise-0.5"]
        assert one.difference * sign > 0
        if metric != "fid_to_fp":  # twelve images do not tell distributions apart
            assert one.verdict.startswith("noise-0.01 better than noise-0.5, p < ")
    assert ("psnr", "noise-0.1", "noise-0.01") not in verdicts, "each pair is compared once"
    expected = others[0].sets["in"].psnr.mean - others[1].sets["in"].psnr.mean
    assert verdicts["psnr", "noise-0.01", "noise-0.1"].difference == pytest.approx(expected)

    floors = {one.kind: one.sets["in"] for one in outcome.results.noise_floor}
    assert set(floors) == {"dtype", "seed"} and floors["dtype"].n == floors["seed"].n == 8
    assert floors["seed"].psnr.mean < 20 < floors["dtype"].psnr.mean < 100
    assert floors["seed"].latent_error.mean == pytest.approx(2**0.5, rel=0.2)  # two independent noises of one size

    told = [text for text in outcome.results.warnings if text.startswith("Noise floor, the reference in bfloat16: ")]
    assert any("8 images are few" in text for text in told)

    written = (request.out / "results.json").read_text()
    assert Results.from_json(written) == outcome.results
    _validate(json.loads(written), json.loads(SCHEMA_FILE.read_text()))


def test_paired_metrics_by_independent_code(request_of, noisy):
    """From the images on the disk, with formulas written here."""
    from PIL import Image

    outcome = bench(request_of([noisy[1]]), _quiet)
    pairs = outcome.pairs["noise-0.1", "in"]
    errors = []
    for left, right in pairs:
        a, b = (np.asarray(Image.open(path), dtype=float) for path in (left, right))
        errors.append(20 * np.log10(255) - 10 * np.log10(((a - b) ** 2).mean()))
    result = outcome.results.candidates[0].sets["in"]
    assert result.psnr.mean == pytest.approx(np.mean(errors)) and result.psnr.median == pytest.approx(np.median(errors))
    worst = np.argsort(errors)
    assert [one.index for one in result.worst_pairs] == worst.tolist()
    sample = outcome.prompts["in"].prompts
    assert [(one.prompt, one.seed) for one in result.worst_pairs] == [(sample[i], 5 + i) for i in worst]


def test_images_are_those_of_the_pipeline_and_latents_too(request_of, sd_folder, noisy):
    outcome = bench(request_of([noisy[2]]), _quiet)
    from diffusers import StableDiffusionPipeline
    from PIL import Image

    latents = {}
    for name, folder in (("reference", sd_folder), ("candidate", noisy[2])):
        pipeline = StableDiffusionPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        for index, prompt in enumerate(outcome.prompts["in"].prompts):
            arguments = {"prompt": prompt, "num_inference_steps": 3}
            noise = lambda index=index: torch.Generator().manual_seed(5 + index)  # noqa: E731
            latents[name, index] = pipeline(**arguments, generator=noise(), output_type="latent").images
            image = pipeline(**arguments, generator=noise()).images[0]
            path = outcome.pairs["noise-0.5", "in"][index][name == "candidate"]
            assert np.array_equal(np.asarray(image), np.asarray(Image.open(path)))
    errors = [
        float((latents["candidate", i] - latents["reference", i]).norm() / latents["reference", i].norm())
        for i in range(6)
    ]
    # latents are kept in float16, whose rounding is 5e-4
    assert outcome.measured["noise-0.5", "in"].values["latent_error"] == pytest.approx(errors, rel=5e-3)


def test_an_image_is_the_same_with_any_number_of_images(request_of, sd_folder, tmp_path):
    few = bench(request_of([sd_folder], sets={"in": LETTERS}, num_images=4), _quiet)
    painted = _painted(tmp_path)
    assert len(painted) == 8
    more = bench(request_of([sd_folder], sets={"in": LETTERS}, num_images=7), _quiet)
    assert more.prompts["in"].prompts[:4] == few.prompts["in"].prompts
    assert more.pairs["sd", "in"][:4] == few.pairs["sd", "in"]
    after = _painted(tmp_path)
    assert len(after) == 14 and painted.items() <= after.items()
    again = bench(request_of([sd_folder], sets={"in": LETTERS}, num_images=4), _quiet)
    assert _painted(tmp_path) == after
    assert again.results.candidates[0].sets["in"] == few.results.candidates[0].sets["in"]


def test_the_same_cache_serves_another_candidate_name_and_copy(request_of, sd_folder, noisy, tmp_path):
    import shutil

    bench(request_of([sd_folder]), _quiet)
    before = _painted(tmp_path / "cache")
    copy = shutil.copytree(sd_folder, tmp_path / "copy")
    bench(request_of([noisy[0]], reference=f"full={copy}", out=tmp_path / "b"), _quiet)
    assert _painted(tmp_path / "cache") == before and len(before) == 6


@pytest.mark.parametrize(
    "change",
    [
        {"settings": GenerationSettings(num_inference_steps=4, seed=5)},
        {"settings": GenerationSettings(num_inference_steps=3, seed=6)},
        {"settings": GenerationSettings(num_inference_steps=3, seed=5, guidance_scale=2.0)},
        {"settings": GenerationSettings(num_inference_steps=3, seed=5, height=24, width=24)},
        {"dtype": torch.bfloat16},
        {"scheduler": "DPMSolverMultistep"},
        {"reference": "weights"},
        {"reference": "scheduler"},
        {"threads": 2},
    ],
    ids=lambda change: "-".join(f"{key}" for key in change),
)
def test_cache_is_not_used_for_what_would_be_painted_otherwise(change, request_of, sd_folder, noisy, tmp_path):
    bench(request_of([sd_folder]), _quiet)
    before = _painted(tmp_path / "cache")
    change = dict(change)
    threads = change.pop("threads", 1)
    if change.get("reference") == "weights":
        change["reference"] = str(noisy[0])
    elif change.get("reference") == "scheduler":
        pipeline = tiny_sd()
        pipeline.scheduler.register_to_config(timestep_spacing="trailing")
        change["reference"] = str(save_folder(pipeline, tmp_path / "trailing"))
    torch.set_num_threads(threads)
    try:
        bench(request_of([sd_folder], out=tmp_path / "second", **change), _quiet)
    finally:
        torch.set_num_threads(1)
    after = _painted(tmp_path / "cache")
    assert before.items() <= after.items() and len(after) == 12


def test_drift_is_that_to_this_reference(request_of, sd_folder, noisy):
    """The same candidate in the same folder against another reference: its drift is another one."""
    first = bench(request_of([noisy[2]]), _quiet).results.candidates[0].sets["in"]
    second = bench(request_of([noisy[2]], reference=str(noisy[2])), _quiet).results.candidates[0].sets["in"]
    assert first.latent_error.mean > 0.01 and second.latent_error.mean == 0.0 and second.psnr.mean == 100.0


def test_a_noise_floor_is_no_reference(request_of, sd_folder):
    """Its images are those of a reference in that dtype, but without the latents that candidates are compared with."""
    bench(request_of([sd_folder], noise_floor=("dtype", "seed")), _quiet)
    outcome = bench(request_of([sd_folder], dtype=torch.bfloat16), _quiet)
    assert outcome.results.candidates[0].sets["in"].latent_error.mean == 0.0


def test_a_truncated_record_is_survived(request_of, sd_folder, tmp_path):
    whole = bench(request_of([sd_folder]), _quiet)
    before = _painted(tmp_path)
    (records,) = (tmp_path / "out").rglob("records-*.jsonl")
    lines = records.read_bytes()
    records.write_bytes(lines[:-20])
    again = bench(request_of([sd_folder]), _quiet)
    changed = {path for path, time in _painted(tmp_path).items() if before[path] != time}
    assert [path.name for path in changed] == ["00005.png"], "only the image without a record"
    assert again.results.candidates[0].sets == whole.results.candidates[0].sets
    assert bench(request_of([sd_folder]), _quiet) is not None


def test_a_lost_image_is_painted_again(request_of, sd_folder, tmp_path):
    whole = bench(request_of([sd_folder]), _quiet)
    before = _painted(tmp_path)
    lost = whole.pairs["sd", "in"][2][1]
    lost.unlink()
    again = bench(request_of([sd_folder]), _quiet)
    changed = {path for path, time in _painted(tmp_path).items() if before[path] != time}
    assert changed == {lost} and again.results.candidates[0].sets == whole.results.candidates[0].sets


def test_a_full_disk_is_one_sentence_and_loses_nothing(request_of, sd_folder, tmp_path, monkeypatch):
    import errno
    import os

    from halftone.errors import OutputError

    real, calls = os.fsync, []

    def fill_up_at(limit):
        def fsync(descriptor):
            calls.append(descriptor)
            if len(calls) >= limit:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        calls.clear()
        return fsync

    for limit in (1, 4, 7, 8, 9):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fill_up_at(limit))
            with pytest.raises(OutputError, match="no space is left on the device"):
                bench(request_of([sd_folder], sets={"in": LETTERS[:4]}), _quiet)
    assert bench(request_of([sd_folder], sets={"in": LETTERS[:4]}), _quiet).results.candidates[0].sets["in"].n == 4


def test_sets_apart_and_their_gap(request_of, noisy):
    outcome = bench(request_of([noisy[1]], sets={"in": LETTERS[:6], "out": LETTERS[6:]}), _quiet)
    sets = outcome.results.candidates[0].sets
    assert list(sets) == ["in", "out"] and sets["in"].psnr.mean != sets["out"].psnr.mean
    gaps = {one.metric: one for one in outcome.results.candidates[0].gaps}
    assert (gaps["psnr"].from_set, gaps["psnr"].to_set) == ("in", "out")
    assert gaps["psnr"].difference == pytest.approx(sets["out"].psnr.mean - sets["in"].psnr.mean)
    assert gaps["latent_error"].difference == pytest.approx(
        sets["out"].latent_error.mean - sets["in"].latent_error.mean
    )
    distance = sets["out"].fid_to_fp_unbiased - sets["in"].fid_to_fp_unbiased
    assert gaps["fid_to_fp"].difference == pytest.approx(distance)
    assert gaps["kid_to_fp"].difference == pytest.approx(sets["out"].kid_to_fp - sets["in"].kid_to_fp)
    facts = outcome.results.settings.prompt_sets
    assert facts["in"].n == facts["out"].n == 6 and facts["in"].sha256 != facts["out"].sha256


def test_attribute_accuracy_by_hand(request_of, sd_folder, clip_folder, tmp_path):
    """The prompt wins where its cosine with the image is above that of all alternatives; computed with transformers."""
    from PIL import Image
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    rows = []
    for number, letter in enumerate(LETTERS):
        texts = [f"cube {letter}", f"ball {letter}", f"{letter} cone"]
        rows.append({"prompt": texts.pop(number % 3), "alternatives": texts})
    path = tmp_path / "words.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = bench(dataclasses.replace(request_of([sd_folder]), prompt_sets={"words": str(path)}), _quiet)

    model, tokenizer = CLIPModel.from_pretrained(clip_folder), CLIPTokenizer.from_pretrained(clip_folder)
    processor = CLIPImageProcessorPil.from_pretrained(clip_folder)
    alternatives = {row["prompt"]: row["alternatives"] for row in rows}
    hits, scores = [], []
    for prompt, (_, image) in zip(outcome.prompts["words"].prompts, outcome.pairs["sd", "words"], strict=True):
        texts = [prompt, *alternatives[prompt]]
        tokens = tokenizer(texts, padding="max_length", max_length=12, return_tensors="pt")
        pixels = processor(images=Image.open(image), return_tensors="pt")
        with torch.no_grad():
            found = model(**tokens, **pixels)
        cosines = (found.text_embeds @ found.image_embeds.T).squeeze(1)
        hits.append(bool(cosines[0] > cosines[1:].max()))
        scores.append(100 * max(float(cosines[0]), 0.0))
    result = outcome.results.candidates[0].sets["words"]
    assert 0 < sum(hits) < len(hits), "or this test could not fail"
    assert result.attribute_accuracy == result.attribute_accuracy_reference == sum(hits) / len(hits)
    change = result.attribute_accuracy_difference
    assert (change.mean, *change.ci95, change.n) == (0.0, 0.0, 0.0, len(hits))
    assert result.clip_score == pytest.approx(np.mean(scores), abs=1e-3)


def test_facts_of_an_artifact(request_of, sd_artifact, sd_folder):
    """size, bits and kernels by hand; the reference's beside them."""
    outcome = bench(request_of([sd_artifact, sd_folder]), _quiet)
    quantized, plain = outcome.results.candidates
    assert quantized.size_bytes == sum(path.stat().st_size for path in (sd_artifact / "unet").glob("*.safetensors"))
    # three steps at 667, 334 and 1 run in three of the four slots, of 8, 8 and 10 bits
    assert quantized.avg_activation_bits == pytest.approx((8 + 8 + 10) / 3)
    assert (
        plain.avg_activation_bits == plain.avg_weight_bits == 32.0 and plain.sha256 == outcome.results.reference.sha256
    )
    unet = tiny_sd().unet
    left = ("conv_in", "conv_out", "time_embedding")
    whole = sum(parameter.numel() for parameter in unet.parameters())
    narrow = sum(
        module.weight.numel()
        for name, module in unet.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and not name.startswith(left)
    )
    assert quantized.avg_weight_bits == pytest.approx((8 * narrow + 32 * (whole - narrow)) / whole)
    assert [use.timestep for use in quantized.kernels if use.layers] and {u.execution for u in quantized.kernels} == {
        "integer"
    }
    layers = {}
    for use in quantized.kernels:
        layers[use.timestep] = layers.get(use.timestep, 0) + use.layers
    assert layers == {751.0: 79, 251.0: 79, 1.0: 79}
    for one in (quantized, plain, outcome.results.reference):
        assert one.seconds_per_image.n == 5  # six, less the one that warmed up
        assert one.seconds_per_step.median < one.seconds_per_image.median and one.peak_memory_bytes > 1e6
    settings = outcome.results.settings
    assert (settings.scheduler, settings.width, settings.height, settings.seed) == ("DDIMScheduler", 16, 16, 5)


def test_another_scheduler_is_in_the_settings(request_of, sd_folder):
    assert (
        bench(request_of([sd_folder], scheduler="euler-discrete"), _quiet).results.settings.scheduler
        == "EulerDiscreteScheduler"
    )


def test_samplers_must_be_the_same(request_of, sd_folder, tmp_path):
    pndm = save_folder(tiny_sd(scheduler="pndm"), tmp_path / "pndm")
    with pytest.raises(InputError, match=r"samples with PNDM.* and the reference with DDIM.*--scheduler"):
        bench(request_of([pndm]), _quiet)
    assert not _painted(tmp_path / "out")
    pipeline = tiny_sd()
    pipeline.scheduler.register_to_config(timestep_spacing="trailing")
    outcome = bench(request_of([save_folder(pipeline, tmp_path / "trailing")]), _quiet)
    told = "The sampler of trailing is configured otherwise than the reference's: timestep_spacing."
    assert told in outcome.results.warnings
    outcome = bench(request_of([pndm], scheduler="EulerDiscrete"), _quiet)
    assert outcome.results.candidates[0].sets["in"].n == 6


def test_judges_are_loaded_before_anything_is_painted(request_of, sd_folder, tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        bench(request_of([sd_folder], clip=str(tmp_path / "nowhere")), _quiet)
    assert not _painted(tmp_path)


def test_second_extractor_and_no_scores(request_of, sd_folder, clip_folder, dino_folder):
    spec = f"dinov2:{dino_folder}"
    outcome = bench(request_of([sd_folder], features=(f"clip:{clip_folder}", spec), clip=None), _quiet)
    result = outcome.results.candidates[0].sets["in"]
    assert set(result.other_features) == {spec} and result.other_features[spec].fid_to_fp <= 1e-3
    assert result.clip_score is None and outcome.results.settings.clip is None
    assert set(outcome.results.settings.other_features) == {spec}


def test_every_extractor_is_compared(request_of, noisy, clip_folder, dino_folder):
    spec = f"dinov2:{dino_folder}"
    outcome = bench(request_of(noisy[:2], features=(f"clip:{clip_folder}", spec), clip=None), _quiet)
    a, b = (one.sets["in"] for one in outcome.results.candidates)
    found = {one.metric: one for one in outcome.results.comparisons}
    plain = ("psnr", "ssim", "latent_error", "fid_to_fp", "kid_to_fp")
    assert set(found) == {*plain, f"fid_to_fp:{spec}", f"kid_to_fp:{spec}"}
    assert found["kid_to_fp"].difference == pytest.approx(a.kid_to_fp - b.kid_to_fp)
    other = a.other_features[spec].kid_to_fp - b.other_features[spec].kid_to_fp
    assert found[f"kid_to_fp:{spec}"].difference == pytest.approx(other)
    assert all(one.p_value >= 2.0**-5 for one in found.values())  # of six prompts


def test_the_same_prompts_under_another_name_are_painted_once(request_of, sd_folder, tmp_path):
    bench(request_of([sd_folder]), _quiet)
    before = _painted(tmp_path)
    outcome = bench(request_of([sd_folder], sets={"other": LETTERS[:6]}), _quiet)
    assert _painted(tmp_path) == before and set(outcome.results.candidates[0].sets) == {"other"}


def test_other_variants_of_the_weights_are_not_part_of_the_model(request_of, sd_folder, tmp_path):
    size = bench(request_of([sd_folder]), _quiet).results.reference.size_bytes
    copy = shutil.copytree(sd_folder, tmp_path / "copy")
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    assert size == weights.stat().st_size
    for variant in ("fp16", "non_ema"):
        shutil.copy(weights, weights.with_name(f"diffusion_pytorch_model.{variant}.safetensors"))
    assert weight_bytes(copy, "unet") == size
    weights.rename(weights.with_name("diffusion_pytorch_model.other.safetensors"))
    assert weight_bytes(copy, "unet") == size  # one of three variants


def test_the_environment_names_what_measured(request_of, sd_folder):
    found = bench(request_of([sd_folder]), _quiet).results.environment
    assert found.versions["numpy"] == np.__version__ and found.versions["torch"] == torch.__version__
    assert "lpips" not in found.versions or importlib.util.find_spec("lpips")
    assert found.threads == torch.get_num_threads() and found.platform.split()[0] == platform.system()


def test_prompts_that_the_judge_does_not_see_whole_are_told(request_of, sd_folder, tmp_path):
    request = request_of([sd_folder])
    Path(request.prompt_sets["in"]).write_text("a\nb\nc\nd\n" + "red " * 70 + "\n")
    warnings = bench(request, _quiet).results.warnings
    assert any("1 of 5 prompts have more than the" in text for text in warnings)


def test_nothing_to_compare(request_of):
    with pytest.raises(InputError, match="at least one candidate"):
        bench(request_of([]), _quiet)
    with pytest.raises(InputError, match="at least one prompt set"):
        bench(dataclasses.replace(request_of(["x"]), prompt_sets={}), _quiet)


def test_models_of_other_sizes_are_one_sentence(request_of, sd_folder, tmp_path):
    pipeline = tiny_sd()
    pipeline.unet.register_to_config(sample_size=12)
    other = save_folder(pipeline, tmp_path / "larger")
    with pytest.raises(InputError, match="compare models of one resolution"):
        bench(request_of([other]), _quiet)


def test_features_are_kept_beside_the_images_and_the_reference_is_told_to_be_older(
    request_of, sd_folder, tmp_path, monkeypatch
):
    from halftone.qdiffbench import measure

    seen, real = [], measure.read_image
    monkeypatch.setattr(measure, "read_image", lambda path: seen.append(path) or real(path))
    said = []

    @contextmanager
    def bar(label):
        yield lambda done, total: said.append((label, done, total))

    first = bench(request_of([sd_folder]), bar)
    looked = len(seen)
    parts = [(done, total) for label, done, total in said if label == "measuring sd, in"]
    assert len(parts) > 6 + 200 and parts == sorted(parts) and parts[-1][0] == parts[-1][1]
    kept = list(tmp_path.rglob("features/*/*.npy"))
    assert len(kept) == 2 and np.load(kept[0]).shape[0] == 6
    again = bench(request_of([sd_folder]), _quiet)
    assert len(seen) - looked == looked - 12, "pairs are read, and no image for its features"
    assert again.results.candidates[0].sets == first.results.candidates[0].sets
    older = "Images of the reference come from the cache"
    assert not any(older in text for text in first.results.warnings)
    assert any(older in text for text in again.results.warnings)
    kept[0].write_bytes(kept[0].read_bytes()[:-4])
    np.save(kept[1], np.zeros((6, 3), np.float32))
    assert bench(request_of([sd_folder]), _quiet).results.candidates[0].sets == first.results.candidates[0].sets


def test_facts_that_a_kill_left_out_are_found_again(request_of, sd_artifact, tmp_path):
    whole = bench(request_of([sd_artifact]), _quiet).results.candidates[0]
    before = _painted(tmp_path)
    for path in tmp_path.rglob("facts.json"):
        path.unlink()
    again = bench(request_of([sd_artifact]), _quiet).results.candidates[0]
    assert again == whole and _painted(tmp_path) == before


def test_results_name_every_compared_metric_once():
    assert len(set(engine.COMPARED)) == len(engine.COMPARED)


def _validate(value, schema, root=None):
    """The part of JSON Schema that the file uses: types, required and unknown keys, references, bounds."""
    root = root if root is not None else schema
    if "$ref" in schema:
        return _validate(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "anyOf" in schema:
        assert any(_fits(value, one, root) for one in schema["anyOf"]), (value, schema)
        return None
    kinds = {"object": dict, "array": list, "string": str, "number": (int, float), "integer": int, "null": type(None)}
    if "type" in schema:
        assert isinstance(value, kinds[schema["type"]]), (value, schema)
    if "const" in schema:
        assert value == schema["const"]
    if "enum" in schema:
        assert value in schema["enum"]
    if isinstance(value, dict):
        assert set(schema.get("required", ())) <= set(value), set(schema.get("required", ())) - set(value)
        for key, one in value.items():
            known = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            assert isinstance(known, dict), f"unknown key {key}"
            _validate(one, known, root)
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        for one in value:
            _validate(one, schema["items"], root)
    if isinstance(value, int | float):
        assert value >= schema.get("minimum", value) and value <= schema.get("maximum", value)
        assert "exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"]
    return None


def _fits(value, schema, root):
    try:
        _validate(value, schema, root)
    except AssertionError:
        return False
    return True
