"""Which weights are opened, by their names alone, and the wrapper that asks what is missing."""

from concurrent.futures import ThreadPoolExecutor

import diffusers
import pytest
import transformers
from pipelines import tiny_sd
from safetensors.torch import load_file, save_file

from halftone.errors import InputError
from halftone.source_weights import choose_variant, noting_missing_tensors


@pytest.mark.parametrize(
    "files, expected",
    [
        (["unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"], None),
        (["unet/diffusion_pytorch_model.fp16.safetensors", "scheduler/scheduler_config.json"], "fp16"),
        (["unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors"], "fp16"),
        (["unet/diffusion_pytorch_model-00001-of-00002.fp16.safetensors"], "fp16"),
        (["unet/diffusion_pytorch_model-00001-of-00002.safetensors"], None),
        (["unet/m.fp16.safetensors", "unet/m.safetensors", "text_encoder/model.safetensors"], None),
        (["unet/m.fp16.safetensors", "text_encoder/model.safetensors"], "fp16"),
        (["unet/m.bf16.safetensors", "unet/m.fp16.safetensors"], "fp16"),
        (["unet/m.bf16.safetensors", "unet/m.fp16.safetensors", "vae/m.bf16.safetensors"], "bf16"),
        (["unet/m.bf16.safetensors", "vae/m.fp16.safetensors"], None),
        (["unet/m.safetensors", "unet/diffusion_pytorch_model.bin"], None),
        ([], None),
    ],
)
def test_variant_is_chosen_where_a_component_has_nothing_else(files, expected, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert choose_variant(tmp_path.iterdir()) == expected


def test_pickles_alone_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(InputError, match=r"weights as \.bin files alone"):
        choose_variant([tmp_path])


def test_wrapper_gives_what_was_asked_for_and_goes(tmp_path):
    bases = (diffusers.ModelMixin, transformers.PreTrainedModel)
    before = [base.__dict__["from_pretrained"] for base in bases]
    unet = tiny_sd().unet
    unet.save_pretrained(tmp_path)
    with pytest.raises(KeyError), noting_missing_tensors() as missing:
        model, info = type(unet).from_pretrained(tmp_path, output_loading_info=True)
        assert isinstance(model, type(unet)) and not info["missing_keys"]
        assert isinstance(type(unet).from_pretrained(tmp_path), type(unet)) and missing == {}
        raise KeyError
    assert [base.__dict__["from_pretrained"] for base in bases] == before


def test_what_another_thread_loads_meanwhile_is_not_noted(tmp_path):
    """A model of someone else's that lacks a tensor would refuse the pipeline that is being opened."""
    unet = tiny_sd().unet
    unet.save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["conv_in.bias"]
    save_file(tensors, weights, metadata={"format": "pt"})
    load = lambda: type(unet).from_pretrained(pretrained_model_name_or_path=tmp_path, low_cpu_mem_usage=False)  # noqa: E731
    with noting_missing_tensors() as missing, ThreadPoolExecutor(1) as other:
        assert isinstance(other.submit(load).result(), type(unet)) and missing == {}
        type(unet).from_pretrained(tmp_path, low_cpu_mem_usage=False)
        assert missing == {tmp_path.name: ["conv_in.bias"]}
