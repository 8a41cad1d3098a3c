import numpy as np
import pytest
import torch

from halftone.errors import InputError
from halftone.qdiffbench.clip_model import ClipModel
from halftone.qdiffbench.matching import attribute_hits, clip_scores


class Compass:
    """Texts are directions in degrees."""

    def text_features(self, texts):
        angles = np.radians([float(text) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32) * 3.0


@pytest.fixture(scope="module")
def clip(clip_folder):
    return ClipModel.load(str(clip_folder))


def test_scores_by_hand():
    images = np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 5.0]])
    texts = np.array([[0.5, 0.0], [1.0, np.sqrt(3.0)], [0.0, -1.0]])
    # cosines 1, 1/2, -1
    assert clip_scores(images, texts) == pytest.approx([100.0, 50.0, 0.0])


def test_scores_do_not_depend_on_the_features_scale():
    generator = np.random.default_rng(0)
    images, texts = generator.normal(size=(2, 9, 16))
    assert clip_scores(7.0 * images, 0.01 * texts) == pytest.approx(clip_scores(images, texts))
    assert clip_scores(images, images) == pytest.approx(np.full(9, 100.0))


@pytest.mark.parametrize(
    ("images", "texts"),
    [
        (np.ones((2, 3)), np.ones((3, 3))),
        (np.ones(3), np.ones(3)),
        (np.zeros((1, 3)), np.ones((1, 3))),
        (np.ones((1, 3)), np.full((1, 3), np.nan)),
    ],
)
def test_features_without_a_score_are_refused(images, texts):
    with pytest.raises(InputError):
        clip_scores(images, texts)


def test_the_nearest_text_wins_and_a_tie_is_a_miss():
    images = np.array([[1.0, 0.0]] * 3 + [[0.0, 1.0]])
    prompts = ["10", "20", "15", "80"]
    alternatives = [["-20", "90"], ["-10"], ["-15"], ["0", "45", "-45"]]
    assert attribute_hits(images, prompts, alternatives, Compass()).tolist() == [True, False, False, True]


def test_many_prompts_go_through_in_groups():
    images = np.tile([[1.0, 0.0]], (150, 1))
    prompts = [str(5 if index % 3 else 30) for index in range(150)]
    alternatives = [["20"] * (1 + index % 2) for index in range(150)]
    hits = attribute_hits(images, prompts, alternatives, Compass())
    assert hits.tolist() == [index % 3 != 0 for index in range(150)]


def test_alternatives_must_be_there_and_false():
    for alternatives in ([[]], [["5", "6"]], []):
        with pytest.raises(InputError):
            attribute_hits(np.ones((1, 2)), ["5"], alternatives, Compass())


def test_text_features_are_the_models_own(clip, clip_folder):
    from transformers import CLIPModel, CLIPTokenizer

    model, tokenizer = CLIPModel.from_pretrained(clip_folder).eval(), CLIPTokenizer.from_pretrained(clip_folder)
    tokens = tokenizer(["abc de"], return_tensors="pt")
    with torch.no_grad():
        expected = model.text_projection(model.text_model(**tokens).pooler_output)
    np.testing.assert_allclose(clip.text_features(["abc de"]), expected.numpy(), rtol=0, atol=1e-5)


def test_long_prompts_are_cut_as_clip_does(clip):
    # 12 tokens of context: start, ten letters, end
    kept, cut = "abcdefghij", "abcdefghijklmnop"
    assert not clip.is_truncated(kept)
    assert clip.is_truncated(cut)
    features = clip.text_features([kept[:10], cut, "abcdefghix"])
    # the eleventh letter on is not seen, the tenth is (but for its mark of a word's end)
    more = clip.text_features(["abcdefghijzzzz"])
    assert np.array_equal(features[1], more[0])
    assert not np.allclose(features[1], features[2])
    assert np.isfinite(features).all()


def test_a_text_has_the_same_features_in_any_company(clip):
    texts = [letter * (1 + index % 14) for index, letter in enumerate("abcdefghijklmnopqrstuvwxyz" * 3)]
    together = clip.text_features(texts)
    alone = np.concatenate([clip.text_features([text]) for text in texts[:5]])
    np.testing.assert_allclose(alone, together[:5], rtol=0, atol=1e-6 * np.abs(together).max())
    assert clip.text_features([]).shape == (0, 16)


def test_image_and_text_meet_in_one_space(clip, pictures):
    images = clip.image_features(pictures[:3]).numpy()
    scores = clip_scores(images, clip.text_features(["a", "b", "c"]))
    assert ((scores >= 0.0) & (scores <= 100.0)).all()
    hits = attribute_hits(images, ["a", "b", "c"], [["d"], ["e"], ["f"]], clip)
    assert hits.dtype == np.bool_
