import sys

import numpy as np
import pytest
import torch

from halftone import sources
from halftone.errors import InputError
from halftone.qdiffbench import features
from halftone.qdiffbench.features import Extractor, build_extractor, extractor_names, register_extractor


class MeanColour(Extractor):
    """Mean of each channel; one grey level above 250 makes it NaN."""

    name = "mean-colour"
    dimension = 3
    identity = "mean-colour:1"
    images_at_once = 4

    def __init__(self):
        self.sizes = []

    def forward(self, images):
        self.sizes.append(len(images))
        means = torch.stack([torch.from_numpy(image).double().mean((0, 1)) for image in images])
        return torch.where(means > 250, torch.nan, means)


@pytest.fixture(params=["clip", "dinov2"])
def extractor(request, clip_folder, dino_folder):
    folder = {"clip": clip_folder, "dinov2": dino_folder}[request.param]
    return build_extractor(f"{request.param}:{folder}")


def flat(value):
    return np.full((2, 3, 3), value, dtype=np.uint8)


def test_features_by_hand_in_groups_that_are_filled_up():
    extractor = MeanColour()
    found = extractor.extract([flat(value) for value in range(6)])
    assert found.dtype == np.float32
    assert found.tolist() == [[value] * 3 for value in range(6)]
    assert extractor.sizes == [4, 4]


def test_no_images_have_no_features():
    assert MeanColour().extract([]).shape == (0, 3)


def test_nan_names_the_extractor_and_the_image():
    images = [flat(0)] * 5 + [flat(255)]
    with pytest.raises(InputError, match="mean-colour gave NaN or infinity for image number 5"):
        MeanColour().extract(images)
    with pytest.raises(InputError, match=r"image 00005\.png"):
        MeanColour().extract(images, [f"{index:05d}.png" for index in range(6)])


@pytest.mark.parametrize("bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_what_is_no_picture_is_refused(bad):
    with pytest.raises(InputError, match="b must be a uint8"):
        MeanColour().extract([flat(0), bad], ["a", "b"])


def test_names_must_fit_the_images():
    with pytest.raises(InputError, match="1 names for 2"):
        MeanColour().extract([flat(0), flat(0)], ["a"])


def test_features_of_a_wrong_shape_are_refused():
    extractor = MeanColour()
    extractor.dimension = 4
    with pytest.raises(InputError, match="mean-colour gave features of shape"):
        extractor.extract([flat(0)])


def test_the_registry(monkeypatch):
    monkeypatch.setattr(features, "_FACTORIES", dict(features._FACTORIES))
    seen = []

    @register_extractor("mean-colour")
    def make(source, device):
        seen.append((source, device))
        return MeanColour()

    assert build_extractor("mean-colour:a:b", "meta").name == "mean-colour"
    build_extractor("mean-colour")
    assert seen == [("a:b", "meta"), ("", "cpu")]
    assert extractor_names() == ("clip", "dinov2", "inception", "mean-colour")
    for name in ("clip", "", "a:b"):
        with pytest.raises(InputError):
            register_extractor(name)


def test_a_misspelt_name_gets_a_hint():
    with pytest.raises(InputError, match="did you mean 'inception'"):
        build_extractor("inceptoin")


def test_a_picture_has_the_same_features_in_any_company(extractor, pictures):
    together = extractor.extract(pictures)
    assert together.shape == (37, extractor.dimension)
    alone = np.concatenate([extractor.extract([picture]) for picture in pictures[:5]])
    in_parts = np.concatenate([extractor.extract(pictures[:7]), extractor.extract(pictures[7:])])
    # another place in the group may still round differently
    scale = np.abs(together).max()
    np.testing.assert_allclose(alone, together[:5], rtol=0, atol=1e-6 * scale)
    np.testing.assert_allclose(in_parts, together, rtol=0, atol=1e-6 * scale)
    assert np.array_equal(extractor.extract(pictures), together)


def test_pictures_of_different_sizes_and_very_small_ones(extractor):
    images = [np.zeros((3, 5, 3), np.uint8), np.full((64, 64, 3), 200, np.uint8), np.full((3, 3, 3), 9, np.uint8)]
    assert np.isfinite(extractor.extract(images)).all()


def test_clip_features_are_the_models_own(clip_folder, pictures):
    from transformers import CLIPImageProcessorPil, CLIPModel

    model = CLIPModel.from_pretrained(clip_folder).eval()
    pixels = CLIPImageProcessorPil.from_pretrained(clip_folder)(images=pictures[0], return_tensors="pt")
    with torch.no_grad():
        expected = model.visual_projection(model.vision_model(**pixels).pooler_output)
    found = build_extractor(f"clip:{clip_folder}").extract(pictures[:1])
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


def test_dinov2_features_are_the_normalized_class_token(dino_folder, pictures):
    from transformers import BitImageProcessorPil, Dinov2Model

    model = Dinov2Model.from_pretrained(dino_folder).eval()
    pixels = BitImageProcessorPil.from_pretrained(dino_folder)(images=pictures[0], return_tensors="pt")
    with torch.no_grad():
        expected = model(**pixels).pooler_output
    found = build_extractor(f"dinov2:{dino_folder}").extract(pictures[:1])
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


def test_the_identity_follows_the_weights(clip_folder, tmp_path):
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(clip_folder)
    for path in clip_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    same = build_extractor(f"clip:{tmp_path}").identity
    assert same.rsplit("@", 1)[1] == build_extractor(f"clip:{clip_folder}").identity.rsplit("@", 1)[1]
    with torch.no_grad():
        model.visual_projection.weight[0, 0] += 1e-3
    model.save_pretrained(tmp_path)
    assert build_extractor(f"clip:{tmp_path}").identity != same


def test_a_model_that_ships_with_the_package(clip_folder, monkeypatch):
    monkeypatch.setattr(sources, "BUNDLED", clip_folder.parent)
    extractor = build_extractor(f"clip:bundled:{clip_folder.name}")
    assert extractor.identity.startswith(f"clip:bundled:{clip_folder.name}@sha256:")
    with pytest.raises(InputError, match="no bundled model 'mini-klip'"):
        build_extractor("clip:bundled:mini-klip")


def test_weights_with_nan_are_found_out(clip_folder, tmp_path, pictures):
    from transformers import CLIPModel

    for path in clip_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    model = CLIPModel.from_pretrained(clip_folder)
    with torch.no_grad():
        model.visual_projection.weight.fill_(torch.nan)
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="clip gave NaN or infinity for image number 0"):
        build_extractor(f"clip:{tmp_path}").extract(pictures[:1])


def test_missing_weights_are_not_made_up(clip_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    for path in clip_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(clip_folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 of its weights, such as visual_projection\.weight"):
        build_extractor(f"clip:{tmp_path}")


def test_folders_that_hold_no_such_model(clip_folder, dino_folder, tmp_path):
    with pytest.raises(InputError, match=r"not a CLIPModel.*'dinov2'"):
        build_extractor(f"clip:{dino_folder}")
    with pytest.raises(InputError, match=r"not a Dinov2Model.*'clip'"):
        build_extractor(f"dinov2:{clip_folder}")
    with pytest.raises(InputError, match=r"no config\.json"):
        build_extractor(f"clip:{tmp_path}")
    with pytest.raises(InputError, match="neither a folder"):
        build_extractor(f"clip:{tmp_path}/nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(InputError, match=r"no .*safetensors"):
        build_extractor(f"clip:{tmp_path}")
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="could not be loaded"):
        build_extractor(f"clip:{tmp_path}")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="JSON object"):
        build_extractor(f"clip:{tmp_path}")


def test_the_hub_out_of_reach():
    with pytest.raises(InputError, match="could not be had from the hub"):
        build_extractor("dinov2:nobody/nothing-at-all")


@pytest.mark.parametrize("name", ["torch_fidelity", "torchvision"])
def test_inception_says_what_to_install(monkeypatch, name):
    class Missing:
        def find_spec(self, wanted, path=None, target=None):
            if wanted.split(".")[0] in ("torch_fidelity", "torchvision"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for module in [module for module in sys.modules if module.split(".")[0] == "torch_fidelity"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(InputError, match=f"needs {name}, which is not installed; pip install torch-fidelity"):
        build_extractor("inception")


def fidelity_library():
    from halftone.qdiffbench import inception

    try:
        return inception._library()
    except InputError as error:
        pytest.skip(str(error))


def test_inception_from_a_local_file(tmp_path, monkeypatch):
    library = fidelity_library()
    torch.manual_seed(0)
    weights = tmp_path / "weights.pth"
    monkeypatch.setattr(library.torch, "load", lambda *a, **k: {})
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda self, state: None)
    blank = library.FeatureExtractorInceptionV3("blank", ["2048"], "nowhere")
    monkeypatch.undo()
    torch.save(blank.state_dict(), weights)
    extractor = build_extractor(f"inception:{weights}")
    images = [np.random.default_rng(0).integers(0, 256, (40, 48, 3)).astype(np.uint8), flat(7).repeat(9, 0)]
    found = extractor.extract(images)
    pixels = torch.from_numpy(images[0]).permute(2, 0, 1)[None]
    np.testing.assert_allclose(found[:1], blank(pixels)[0].numpy(), rtol=1e-4, atol=1e-5)
    assert found.shape == (2, 2048)
    weights.write_bytes(b"not weights")
    with pytest.raises(InputError, match="does not hold"):
        build_extractor(f"inception:{weights}")
    with pytest.raises(InputError, match="do not exist"):
        build_extractor(f"inception:{tmp_path}/none.pth")
