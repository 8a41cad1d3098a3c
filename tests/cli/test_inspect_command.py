"""`halftone inspect` and `halftone card`: facts computed by hand, and damage of every kind."""

import json
import random
import shutil

import pytest
from pipelines import tiny_sd
from safetensors.torch import load_file, save_file
from torch import nn

import halftone as library
from halftone.artifact.config import FORMAT_VERSION, config_digest
from halftone.artifact.inspection import inspect_artifact
from halftone.files import file_sha256


@pytest.fixture
def copied(sd_artifact, tmp_path):
    return shutil.copytree(sd_artifact, tmp_path / "artifact")


def _files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _change(folder, name, change):
    """Edits a JSON file of an artifact; the list of digests is set right, as a forger would."""
    data = json.loads((folder / name).read_text())
    change(data)
    (folder / name).write_text(json.dumps(data))
    manifest = json.loads((folder / "halftone.json").read_text())
    if name in manifest["files"]:
        manifest["files"][name] = file_sha256(folder / name)
        (folder / "halftone.json").write_text(json.dumps(manifest))


def test_facts_by_hand(sd_artifact):
    """tiny_sd, 4 steps of pcr-w8a8: of 4 slots the last fifth, rounded to one, has 10 bits."""
    facts = inspect_artifact(sd_artifact)
    assert [slot["bits"] for slot in facts["slots"]] == [8, 8, 8, 10]
    assert [slot["timestep"] for slot in facts["slots"]] == [751, 501, 251, 1]  # DDIM, leading spacing, offset 1
    assert facts["average_activation_bits"] == 34 / 4 and facts["weight_bits"] == 8
    unet = tiny_sd().unet
    kinds = {name: module for name, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    out = {"conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"}
    assert set(facts["left_out"]) == out and set(facts["layers"]) == set(kinds) - out
    sizes = facts["sizes"]
    assert sizes["denoiser_float32_bytes"] == 4 * sum(parameter.numel() for parameter in unet.parameters())
    assert sizes["denoiser_bytes"] == sum(path.stat().st_size for path in (sd_artifact / "unet").glob("*.safetensors"))
    assert sizes["denoiser_ratio"] == sizes["denoiser_bytes"] / sizes["denoiser_float32_bytes"]
    assert sizes["total_bytes"] == sum(path.stat().st_size for path in _files(sd_artifact))
    calibration = facts["calibration"]
    assert calibration["denoiser_passes_per_prompt"] == 8 and calibration["prompts"] == 2
    assert facts["recipe"]["name"] == "pcr-w8a8" and set(facts["kernels"])


def test_average_goes_over_calls_not_slots(tmp_path):
    """PNDM visits its second timestep twice: 5 calls, 4 slots."""
    result = library.quantize(tiny_sd(scheduler="pndm"), "pcr-w8a8", ["x"], num_inference_steps=4)
    facts = inspect_artifact(result.save(tmp_path / "out"))
    assert [slot["bits"] for slot in facts["slots"]] == [8, 8, 8, 10]
    assert facts["average_activation_bits"] == (4 * 8 + 10) / 5 == result.average_activation_bits


def test_for_machines_and_for_people(halftone, sd_artifact):
    ran = halftone("inspect", sd_artifact, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json == json.loads(json.dumps(inspect_artifact(sd_artifact)))
    told = halftone("inspect", sd_artifact)
    assert (told.code, told.err) == (0, "")
    for word in ("pcr-w8a8", "8.5 bits on average over 4 slots", "79 quantized, 4 left", "751: 8", "1: 10", "conv_in"):
        assert word in told.out


def test_output_correction_is_told(halftone, tmp_path):
    recipe = {"correction": {"kind": "drift"}}
    folder = library.quantize(tiny_sd(), recipe, ["x"], num_inference_steps=2).save(tmp_path / "out")
    found = halftone("inspect", folder, "--json").json["correction"]
    assert (found["kind"], found["gain"], found["max_gain"]) == ("drift", "unbiased", 2.0)
    low, high = found["fitted"]["gain"]
    for words in (["inspect", folder], ["card", folder]):
        told = halftone(*words).out
        assert "drift, towards the next latents of the full-precision trajectory, fitted at guidance " in told
        assert f"gain from {low:.4g} to {high:.4g}" in told


def test_what_save_pretrained_wrote_is_read_too(halftone, sd_artifact, tmp_path):
    library.load(sd_artifact).save_pretrained(tmp_path / "own")
    own, whole = (halftone("inspect", folder, "--json").json for folder in (tmp_path / "own", sd_artifact))
    assert (own["files_checked"], whole["files_checked"]) == (False, True)
    for key in ("recipe", "slots", "layers", "left_out", "calibration", "average_activation_bits"):
        assert own[key] == whole[key]
    assert "not checked" in halftone("inspect", tmp_path / "own").out
    assert "not checked" not in halftone("inspect", sd_artifact).out
    assert halftone("card", tmp_path / "own").code == 0
    path = tmp_path / "own" / "unet" / "config.json"
    data = json.loads(path.read_text())
    data["quantization_config"]["calibration"].pop("prompts")
    data["quantization_config"]["config_digest"] = config_digest(data["quantization_config"])
    path.write_text(json.dumps(data))
    assert "lacks prompts" in halftone("inspect", tmp_path / "own").sentence


def test_no_artifact(halftone, sd_folder, tmp_path):
    assert "is not a folder" in halftone("inspect", tmp_path / "none").sentence
    assert "no artifact of Halftone" in halftone("inspect", sd_folder).sentence
    assert "no artifact of Halftone" in halftone("card", sd_folder).sentence
    (tmp_path / "file").write_text("x")
    assert "is not a folder" in halftone("inspect", tmp_path / "file").sentence


@pytest.mark.parametrize("name", ["unet/config.json", "halftone.json"])
def test_newer_format(name, halftone, copied):
    key = "manifest_version" if name == "halftone.json" else "format_version"

    def newer(data):
        (data if name == "halftone.json" else data["quantization_config"])[key] = FORMAT_VERSION + 1

    _change(copied, name, newer)
    for words in (["inspect", copied], ["generate", copied, "--prompt", "x", "--out", "out"]):
        assert "upgrade Halftone" in halftone(*words).sentence


def test_every_truncated_file_is_noticed(halftone, copied):
    for path in _files(copied):
        data = path.read_bytes()
        for part in (b"", data[: len(data) // 2]):
            if part != data:
                path.write_bytes(part)
                assert path.name in halftone("inspect", copied).sentence
        path.write_bytes(data)
        lost = path.rename(path.with_name("lost"))
        if path.name == "halftone.json":  # then it is what a pipeline's own save_pretrained writes
            assert "not checked" in halftone("inspect", copied).out
        else:
            assert halftone("inspect", copied).sentence
        lost.rename(path)
    assert halftone("inspect", copied).code == 0


def test_flipped_bits_are_noticed_in_every_file(halftone, copied):
    """Anywhere in the files that a digest covers, and anywhere in the manifest but in blanks."""
    chance = random.Random(0)
    for path in _files(copied):
        data = path.read_bytes()
        for _ in range(40 if path.name == "halftone.json" else 2):
            where = chance.randrange(len(data))
            if data[where : where + 1].isspace():
                continue
            path.write_bytes(data[:where] + bytes([data[where] ^ (1 << chance.randrange(8))]) + data[where + 1 :])
            assert halftone("inspect", copied).sentence, (path, where)
        path.write_bytes(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("calibration"),
        lambda data: data["calibration"].pop("prompts"),
        lambda data: data["calibration"].update(prompts=64),
        lambda data: data.update(calibration=[]),
        lambda data: data.update(files=[]),
        lambda data: data.pop("manifest_version"),
    ],
)
def test_damaged_manifest(change, halftone, copied):
    _change(copied, "halftone.json", change)
    assert "halftone.json" in halftone("inspect", copied).sentence
    assert "halftone.json" in halftone("card", copied).sentence


def test_forged_weights_are_noticed_by_loading(halftone, copied):
    """A forger who sets the list of digests right still has to do with the digest in the denoiser's config."""
    path = next((copied / "unet").glob("*.safetensors"))
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.dtype.itemsize == 1)
    tensors[name].view(-1)[0] ^= 1
    save_file(tensors, path, metadata={"format": "pt"})
    manifest = json.loads((copied / "halftone.json").read_text())
    manifest["files"][path.relative_to(copied).as_posix()] = file_sha256(path)
    (copied / "halftone.json").write_text(json.dumps(manifest))
    assert "are not those that were saved" in halftone("generate", copied, "--prompt", "x", "--out", "out").sentence


def test_card(halftone, sd_artifact, tmp_path):
    printed = halftone("card", sd_artifact)
    assert printed.code == 0 and printed.out.startswith("---\n") and printed.err == ""
    assert halftone("card", sd_artifact, "--out", tmp_path / "README.md").code == 0
    assert (tmp_path / "README.md").read_text(encoding="utf-8").strip() == printed.out.strip()
    assert "exists" in halftone("card", sd_artifact, "--out", tmp_path / "README.md").sentence


def test_card_wrong_input(halftone, sd_artifact, tmp_path):
    assert "could not be written" in halftone("card", sd_artifact, "--out", tmp_path / "no" / "card.md").sentence
    assert "cannot be read" in halftone("card", sd_artifact, "--results", tmp_path / "none.json").sentence
    for text in ("", "{", "{}", '{"schema": "halftone.qdiffbench/2"}', "\xff"):
        (tmp_path / "results.json").write_bytes(text.encode("latin1"))
        assert "halftone.qdiffbench/1" in halftone("card", sd_artifact, "--results", tmp_path / "results.json").sentence
