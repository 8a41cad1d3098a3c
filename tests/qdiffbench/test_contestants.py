"""What can be compared: specifications, identities, other libraries, folders of images."""

import json
import shutil

import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from pipelines import save_folder, tiny_sd
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessor

from halftone.errors import ArtifactError, InputError
from halftone.qdiffbench import libraries
from halftone.qdiffbench.contestants import Contestant, unique_names
from halftone.qdiffbench.foreign_images import foreign_image_set
from halftone.qdiffbench.libraries import LIBRARIES, Library, check_scheme, quantize_on_the_fly
from halftone.qdiffbench.model_facts import describe
from halftone.qdiffbench.prompt_sets import prompt_set_of
from halftone.qdiffbench.stored_weights import average_weight_bits, stored_bytes, wrapped_layers
from halftone.sources import open_pipeline


@pytest.mark.parametrize(
    "text, expected",
    [
        ("./my-sd", ("my-sd", "./my-sd", "./my-sd", "", "")),
        ("/models/my-sd/", ("my-sd", "/models/my-sd/", "/models/my-sd/", "", "")),
        ("owner/model", ("model", "owner/model", "owner/model", "", "")),
        ("bundled:mini-sd", ("bundled:mini-sd", "bundled:mini-sd", "bundled:mini-sd", "", "")),
        ("ours=./a", ("ours", "./a", "./a", "", "")),
        ("W8 A8=bundled:x", ("W8 A8", "bundled:x", "bundled:x", "", "")),
        ("torchao:int8wo@./a", ("torchao int8wo", "torchao:int8wo@./a", "./a", "torchao", "int8wo")),
        ("q=quanto:int8@bundled:x", ("q", "quanto:int8@bundled:x", "bundled:x", "quanto", "int8")),
        ("torchao:int8wo@a@b", ("torchao int8wo", "torchao:int8wo@a@b", "a@b", "torchao", "int8wo")),
        ("./dir=x/y", ("y", "./dir=x/y", "./dir=x/y", "", "")),
    ],
)
def test_specifications(text, expected, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    one = Contestant.parse(text)
    assert (one.name, one.source, one.model_source, one.library, one.scheme) == expected


def test_a_path_that_exists_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").mkdir()
    assert Contestant.parse("a=b").model_source == "a=b"


def test_unknown_library_and_scheme():
    with pytest.raises(InputError, match="known: torchao, quanto"):
        Contestant.parse("bitsandbytes:int8@./a")
    with pytest.raises(InputError, match="did you mean 'int8wo'"):
        Contestant.parse("torchao:int8w@./a").check()


def test_equal_names_are_told_apart():
    ones = unique_names([Contestant.parse(text) for text in ("a/x", "b/x", "y", "c/x")])
    assert [one.name for one in ones] == ["x", "x (2)", "y", "x (3)"]


def test_identity_is_of_the_content(sd_folder, tmp_path):
    copy = shutil.copytree(sd_folder, tmp_path / "copy")
    original = Contestant.parse(str(sd_folder)).sha256()
    assert Contestant.parse(f"name={copy}").sha256() == original
    (copy / "README.md").write_text("nothing that matters")
    assert Contestant.parse(str(copy)).sha256() == original
    for name, text in (("scheduler/scheduler_config.json", "{}"), ("tokenizer/spiece.model", "pieces")):
        (copy / name).write_text(text)
        changed = Contestant.parse(str(copy)).sha256()
        assert changed != original
        original = changed
    assert Contestant.parse(f"torchao:int8wo@{copy}").sha256() not in (original, "")
    assert Contestant.parse(f"torchao:int8wo@{copy}").sha256() != Contestant.parse(f"torchao:int8dq@{copy}").sha256()


def test_what_is_wrong_is_told_without_opening(sd_artifact, sd_folder, tmp_path):
    Contestant.parse(str(sd_folder)).check()
    Contestant.parse(str(sd_artifact)).check()
    damaged = shutil.copytree(sd_artifact, tmp_path / "damaged")
    (damaged / "scheduler" / "scheduler_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="not what was saved"):
        Contestant.parse(str(damaged)).check()
    with pytest.raises(InputError, match=r"neither a diffusers pipeline.*manifest\.jsonl"):
        Contestant.parse(str(tmp_path)).check()


def _images(folder, entries):
    for entry in entries:
        Image.new("RGB", entry.pop("size", (8, 8))).save(folder / entry["file"])
    (folder / "manifest.jsonl").write_text("\n".join(json.dumps(entry) for entry in entries) + "\n\n", encoding="utf-8")


def test_foreign_images_come_in_the_order_of_the_sample(tmp_path):
    _images(tmp_path, [
        {"prompt": "b", "file": "1.png", "seed": 7},
        {"prompt": "a", "file": "2.png", "extra": [1]},
        {"prompt": "b", "file": "3.png", "seed": 8},
        {"prompt": "unused\u2028", "file": "4.png"},
    ])  # fmt: skip
    found = foreign_image_set(tmp_path, prompt_set_of("set", ["b", "a", "b"]), 7)
    assert [path.name for path in found.paths] == ["1.png", "2.png", "3.png"] and list(found.seeds) == [7, None, 8]
    with pytest.raises(InputError, match="has no image of the prompt 'a'"):
        foreign_image_set(tmp_path, prompt_set_of("set", ["a", "a"]), 0)
    (tmp_path / "2.png").unlink()
    with pytest.raises(InputError, match=r"2\.png, which is not there"):
        foreign_image_set(tmp_path, prompt_set_of("set", ["a"]), 0)


def test_of_several_images_of_a_prompt_the_one_from_the_same_noise_is_taken(tmp_path):
    _images(tmp_path, [
        {"prompt": "a", "file": "1.png", "seed": 3},
        {"prompt": "a", "file": "2.png", "seed": 8},
        {"prompt": "a", "file": "3.png", "seed": 7},
    ])  # fmt: skip
    found = foreign_image_set(tmp_path, prompt_set_of("set", ["a", "a"]), 7)
    assert [path.name for path in found.paths] == ["3.png", "2.png"]
    assert [path.name for path in foreign_image_set(tmp_path, prompt_set_of("set", ["a"]), 50).paths] == ["1.png"]


def test_images_that_cannot_be_compared_are_told_before_painting(tmp_path):
    _images(tmp_path, [{"prompt": "a", "file": "1.png"}, {"prompt": "b", "file": "2.png", "size": (8, 9)}])
    with pytest.raises(InputError, match=r"1\.png is 8×8 pixels and 2\.png 8×9"):
        foreign_image_set(tmp_path, prompt_set_of("set", ["a", "b"]), 0)
    (tmp_path / "2.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"2\.png is no image"):
        foreign_image_set(tmp_path, prompt_set_of("set", ["a", "b"]), 0)


@pytest.mark.parametrize(
    "line", ['{"prompt": "a"}', '{"prompt": 1, "file": "x"}', '{"prompt": "a", "file": "x", "seed": "1"}']
)
def test_damaged_lines_are_named(line, tmp_path):
    (tmp_path / "manifest.jsonl").write_text('{"prompt": "a", "file": "x"}\n' + line)
    with pytest.raises(InputError, match=r"manifest\.jsonl, line 2"):
        foreign_image_set(tmp_path, prompt_set_of("set", ["a"]), 0)


@pytest.mark.parametrize("file", ["../secret.png", "/etc/secret.png", "a/../../secret.png"])
def test_files_outside_the_folder_are_refused(file, tmp_path):
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"prompt": "a", "file": file}))
    with pytest.raises(InputError, match="outside the folder"):
        foreign_image_set(tmp_path, prompt_set_of("set", ["a"]), 0)


class _Wrapped(torch.Tensor):
    """Pretends to be a float tensor, and holds int8 codes and a scale: as torchao's tensors do."""

    @staticmethod
    def __new__(cls, codes, scale):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes, scale):
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self):
        return ["codes", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scale)
        plain = [one.codes * one.scale if isinstance(one, cls) else one for one in args]
        return func(*plain, **(kwargs or {}))


def _wrap(module):
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            scale = layer.weight.detach().abs().amax(1, keepdim=True) / 127
            codes = (layer.weight.detach() / scale).round().to(torch.int8)
            layer.weight = nn.Parameter(_Wrapped(codes, scale), requires_grad=False)


def test_bytes_and_bits_look_into_wrapped_tensors():
    module = nn.Sequential(nn.Linear(10, 4), nn.LayerNorm(4))
    assert (
        stored_bytes(module) == 4 * (40 + 4 + 4 + 4)
        and average_weight_bits(module) == 32
        and not wrapped_layers(module)
    )
    _wrap(module)
    assert stored_bytes(module) == 40 + 4 * 4 + 4 * (4 + 4 + 4)  # codes, scales, bias and norm
    assert average_weight_bits(module) == pytest.approx((8 * 40 + 32 * 12) / 52)
    assert wrapped_layers(module) == 1


@pytest.fixture
def fake_library(monkeypatch):
    """A library "fake" with the schemes "int8" (wraps the Linear layers), "none" and "bad"."""
    import types

    def broken(module):
        raise NotImplementedError("not on\nthis machine")

    api = types.SimpleNamespace(wrap=_wrap, nothing=lambda module: None, broken=broken)
    monkeypatch.setitem(
        LIBRARIES,
        "fake",
        Library(
            "fake-package", "fake.api", {"int8": "wrap", "none": "nothing", "bad": "broken", "old": "gone"}, {},
            lambda api, module, name: getattr(api, name)(module),
        ),
    )  # fmt: skip
    monkeypatch.setattr(libraries, "import_module", lambda name: api if name == "fake.api" else pytest.fail(name))


def test_a_library_on_the_fly(fake_library):
    pipeline = tiny_sd()
    before = pipeline("a red cube", num_inference_steps=1, output_type="latent", generator=torch.manual_seed(0)).images
    linear = [layer for layer in pipeline.unet.modules() if isinstance(layer, nn.Linear)]
    narrow, whole = sum(layer.weight.numel() for layer in linear), sum(p.numel() for p in pipeline.unet.parameters())
    quantize_on_the_fly(pipeline, "fake", "int8")
    after = pipeline("a red cube", num_inference_steps=1, output_type="latent", generator=torch.manual_seed(0)).images
    assert 0 < float((after - before).norm() / before.norm()) < 0.05
    facts = describe(pipeline, None, "fake", "int8")
    assert facts["avg_weight_bits"] == pytest.approx((8 * narrow + 32 * (whole - narrow)) / whole)
    scales = sum(layer.out_features for layer in linear)
    assert facts["size_bytes"] == narrow + 4 * scales + 4 * (whole - narrow)
    assert facts["kernels"] == [
        {"timestep": None, "activation_bits": None, "kernel": "fake", "execution": "float", "layers": len(linear)}
    ]


@pytest.mark.parametrize(
    "scheme, said",
    [("none", "left every layer"), ("bad", "not on this machine"), ("old", "has no gone"), ("int9", "did you mean")],
)
def test_a_library_that_does_not(scheme, said, fake_library):
    with pytest.raises(InputError, match=said):
        quantize_on_the_fly(tiny_sd(), "fake", scheme)


def test_a_library_that_is_not_installed(monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(libraries, "import_module", missing)
    with pytest.raises(InputError, match="install it with: pip install optimum-quanto"):
        check_scheme("quanto", "int8")


@pytest.mark.parametrize("scheme, activation_bits, execution", [("int8wo", 32.0, "float"), ("int8dq", 8.0, "integer")])
def test_torchao(scheme, activation_bits, execution):
    pytest.importorskip("torchao.quantization")
    pipeline = tiny_sd()
    before = pipeline("a red cube", num_inference_steps=1, output_type="latent", generator=torch.manual_seed(0)).images
    linear = [layer for layer in pipeline.unet.modules() if isinstance(layer, nn.Linear)]
    quantize_on_the_fly(pipeline, "torchao", scheme)
    after = pipeline("a red cube", num_inference_steps=1, output_type="latent", generator=torch.manual_seed(0)).images
    assert 0 < float((after - before).norm() / before.norm()) < 0.1
    facts = describe(pipeline, None, "torchao", scheme)
    narrow, whole = sum(layer.weight.numel() for layer in linear), sum(p.numel() for p in pipeline.unet.parameters())
    assert facts["avg_weight_bits"] == pytest.approx((8 * narrow + 32 * (whole - narrow)) / whole)
    assert facts["avg_activation_bits"] == activation_bits
    assert facts["kernels"][0]["execution"] == execution and facts["kernels"][0]["layers"] == len(linear)


def test_torchao_says_where_it_does_nothing():
    pytest.importorskip("torchao.quantization")
    with pytest.raises(InputError, match=r"left every layer|could not apply"):
        quantize_on_the_fly(tiny_sd(), "torchao", "int4wo")


def test_no_safety_checker_blackens_what_is_measured(tmp_path):
    pipeline = tiny_sd()
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(projection_dim=8, vision_config={**vision, "image_size": 16, "patch_size": 8})
    )
    pipeline.register_modules(safety_checker=checker, feature_extractor=CLIPImageProcessor(size=16, crop_size=16))
    folder = save_folder(pipeline, tmp_path / "sd")
    assert open_pipeline(folder).safety_checker is not None
    assert Contestant.parse(str(folder)).open(torch.float32, "cpu").safety_checker is None
