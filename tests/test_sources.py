"""Opening folders: what is no pipeline is refused in one sentence; nothing is unpickled and no foreign code runs."""

import json
import pickle
import shutil
import sys
import warnings

import pytest
import torch
from pipelines import save_folder, tiny_sd, tiny_sd3
from safetensors.torch import load_file, save_file

from halftone import sources
from halftone.errors import InputError
from halftone.files import file_sha256
from halftone.sources import bundled_names, content_sha256, open_pipeline, resolve_folder


class _Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def folder(sd_folder, tmp_path):
    return shutil.copytree(sd_folder, tmp_path / "sd")


def _refused(source):
    with pytest.raises(InputError) as caught:
        open_pipeline(source)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 600
    return text


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_pipeline_is_opened_in_the_asked_for_type_without_warnings(dtype, sd_folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline = open_pipeline(str(sd_folder), dtype=dtype, device="cpu")
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {dtype or torch.float32}
    assert type(pipeline).__name__ == "StableDiffusionPipeline"
    assert type(pipeline.scheduler).__name__ == "DDIMScheduler"


def test_what_is_no_folder(tmp_path):
    (tmp_path / "model.safetensors").touch()
    assert "is a file" in _refused(tmp_path / "model.safetensors")
    assert "neither a folder" in _refused(tmp_path / "nowhere" / "at all")
    assert "neither a folder" in _refused("just-a-name") and "neither a folder" in _refused("./a")
    assert "no model_index.json" in _refused(tmp_path)


def test_hub_id_that_cannot_be_had(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("offline\nmode")

    monkeypatch.setattr(sources.DiffusionPipeline, "download", fail)
    assert _refused("owner/name").startswith("There is no folder owner/name here; ")
    assert "could not be had from the hub either: offline mode" in _refused("owner/name")


def test_hub_repository_of_a_variant_alone_is_downloaded(sd_folder, monkeypatch):
    def download(_, use_safetensors, variant=None):
        assert use_safetensors
        if variant is None:
            raise OSError("Could not find the necessary `safetensors` weights in {'a.bin'} (variant=None)")
        return str(sd_folder)

    monkeypatch.setattr(sources.DiffusionPipeline, "download", download)
    assert resolve_folder("owner/name") == sd_folder


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "{}", '{"_class_name": "Nowhere"}', '{"_class_name": 5}', "\xff"])
def test_damaged_index(text, folder):
    (folder / "model_index.json").write_bytes(text.encode("latin1"))
    assert str(folder) in _refused(folder)


@pytest.mark.parametrize("part", ["unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", None])
def test_damaged_or_missing_config(part, text, folder):
    (folder / part).unlink() if text is None else (folder / part).write_text(text)
    assert str(folder) in _refused(folder)


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
@pytest.mark.parametrize("size", [None, 0, 100, -100])
def test_damaged_or_missing_weights(part, size, folder):
    data = (folder / part).read_bytes()
    (folder / part).unlink() if size is None else (folder / part).write_bytes(data[:size])
    assert str(folder) in _refused(folder)


@pytest.mark.parametrize(
    "part, pickled",
    [
        ("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin"),
        ("text_encoder/model.safetensors", "text_encoder/pytorch_model.bin"),
    ],
)
def test_nothing_is_unpickled(part, pickled, folder, tmp_path):
    (folder / part).unlink()
    (folder / pickled).write_bytes(pickle.dumps(_Bomb(str(tmp_path / "boom"))))
    text = _refused(folder)
    assert ".bin files alone" in text and "save_pretrained(NEW)" in text
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("key, module", [("_class_name", "evil.py"), ("unet", "unet/evil.py")])
def test_code_in_the_folder_does_not_run(key, module, folder, tmp_path):
    index = json.loads((folder / "model_index.json").read_text())
    index[key] = ["evil", "Evil"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / module).write_text(f"open({str(tmp_path / 'boom')!r}, 'w')\nclass Evil: pass\n")
    assert "evil" in _refused(folder)
    assert not (tmp_path / "boom").exists() and "evil" not in sys.modules


def test_bundled_models_are_the_folders_with_a_pipeline(tmp_path, monkeypatch, sd_folder):
    monkeypatch.setattr(sources, "BUNDLED", tmp_path)
    (tmp_path / "prompts").mkdir()
    shutil.copytree(sd_folder, tmp_path / "mini-sd")
    assert bundled_names() == ("mini-sd",) and resolve_folder("bundled:mini-sd") == tmp_path / "mini-sd"
    assert "did you mean 'mini-sd'" in _refused("bundled:mini-ds")
    assert "no bundled model 'prompts'" in _refused("bundled:prompts")


def test_pipeline_without_a_denoiser_opens_but_cannot_be_quantized(tmp_path):
    from diffusers import DiffusionPipeline

    from halftone import quantize

    class Decoder(DiffusionPipeline):
        def __init__(self, vae):
            super().__init__()
            self.register_modules(vae=vae)

    with pytest.raises(InputError, match="Decoder has no denoiser to quantize"):
        quantize(Decoder(tiny_sd().vae), "pcr-w8a8", ["x"])


def test_content_is_told_by_files_not_by_path(folder, sd_folder, sd_artifact, tmp_path):
    assert content_sha256(folder) == content_sha256(str(sd_folder)) != content_sha256(sd_artifact)
    assert content_sha256(sd_artifact) == file_sha256(sd_artifact / "halftone.json")
    (folder / "README.md").write_text("nothing that matters")
    assert content_sha256(folder) == content_sha256(sd_folder)
    save_folder(tiny_sd(seed=1), tmp_path / "other")
    shutil.copytree(tmp_path / "other" / "unet", folder / "unet", dirs_exist_ok=True)
    assert content_sha256(folder) != content_sha256(sd_folder)


def test_content_is_that_of_the_components_and_no_output_in_the_folder(folder, sd_folder):
    for name in ("images", "unet/images"):
        (folder / name).mkdir()
        (folder / name / "generation.json").write_text("{}")
    (folder / "vae" / "broken.json").symlink_to(folder / "nowhere")
    (folder / "vae" / "folder.json").mkdir()
    assert content_sha256(folder) == content_sha256(sd_folder)


def test_content_of_linked_components_counts(folder, sd_folder, tmp_path):
    shutil.move(folder / "unet", tmp_path / "elsewhere")
    (folder / "unet").symlink_to(tmp_path / "elsewhere")
    assert content_sha256(folder) == content_sha256(sd_folder)
    (tmp_path / "elsewhere" / "config.json").write_text("{}")
    assert content_sha256(folder) != content_sha256(sd_folder)


def _change(path, change):
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "part, lost",
    [
        ("text_encoder/model.safetensors", "layers.0.mlp.fc1.weight"),
        ("unet/diffusion_pytorch_model.safetensors", "mid_block.resnets.0.conv1.weight"),
        ("vae/diffusion_pytorch_model.safetensors", "decoder.conv_in.bias"),
    ],
)
def test_a_tensor_that_the_files_lack_is_not_made_up(part, lost, folder):
    _change(folder / part, lambda tensors: {name: tensors[name] for name in tensors if not name.endswith(lost)})
    text = _refused(folder)
    assert f"{folder} is incomplete: the files of its {part.partition('/')[0]} lack 1 tensors" in text and lost in text
    with pytest.raises(InputError, match="is incomplete"):
        open_pipeline(folder, device="cpu")


@pytest.mark.parametrize("part", ["text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors"])
def test_tensors_under_other_names_are_not_taken_for_the_models(part, folder):
    _change(folder / part, lambda tensors: {f"module.{name}": tensors[name] for name in tensors})
    assert "is incomplete" in _refused(folder)


def test_names_of_older_releases_and_tied_weights_are_whole(folder, tmp_path):
    """Hubs' text encoders were saved by transformers 4; a T5 stores its embedding once."""
    prefix = "text_model."

    def older(tensors):
        return {name if name.startswith(prefix) else f"{prefix}{name}": tensors[name] for name in tensors}

    _change(folder / "text_encoder" / "model.safetensors", older)
    expected = tiny_sd().text_encoder.state_dict()
    found = open_pipeline(folder).text_encoder.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    open_pipeline(save_folder(tiny_sd3(), tmp_path / "sd3"))


@pytest.mark.parametrize("shard", ["10GB", "100KB"])
def test_folder_of_an_fp16_variant_is_opened(shard, tmp_path):
    tiny_sd().to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16", max_shard_size=shard)
    assert not list((tmp_path / "half").rglob("*model.safetensors"))
    pipeline = open_pipeline(tmp_path / "half")
    expected = tiny_sd().to(torch.float16).to(torch.float32)
    assert pipeline.unet.dtype == torch.float32
    for part in ("unet", "vae", "text_encoder"):
        found = getattr(pipeline, part).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in getattr(expected, part).state_dict().items())


def test_plain_files_are_taken_where_there_are_both(folder):
    tiny_sd(seed=1).to(torch.float16).unet.save_pretrained(folder / "unet", variant="fp16")
    weight = "conv_in.weight"
    assert torch.equal(open_pipeline(folder).unet.state_dict()[weight], tiny_sd().unet.state_dict()[weight])


def test_progress_bar_is_switched_off_on_request_alone(sd_folder):
    assert not hasattr(open_pipeline(sd_folder), "_progress_bar_config")
    assert open_pipeline(sd_folder, progress_bar=False)._progress_bar_config == {"disable": True}
