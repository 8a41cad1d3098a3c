"""The little world that the bundled models are trained on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from training import attributes
from training.captions import plain_caption, styled_caption
from training.render import render
from training.scene import HELD_OUT, Scene, Thing, one_attribute_changed, random_scene

LEFT = Thing("cube", "red", "matte", "small", x=-1.0, z=0.0, yaw=0.5)
RIGHT = Thing("cone", "blue", "shiny", "large", x=1.0, z=0.2, yaw=0.5)
SCENE = Scene((RIGHT, LEFT), "right", None, "gray", "blue", "left")


def test_training_scenes_never_show_a_held_out_pair():
    rng = np.random.default_rng(0)
    for _ in range(500):
        assert not any((thing.color, thing.shape) in HELD_OUT for thing in random_scene(rng).things)
    assert all(random_scene(rng, held_out=True).is_held_out for _ in range(50))


def test_a_scene_survives_json():
    assert Scene.from_json(SCENE.to_json()) == SCENE


@pytest.mark.parametrize("write", [plain_caption, styled_caption])
def test_one_changed_attribute_changes_the_caption_in_the_same_phrasing(write):
    rng = np.random.default_rng(1)
    for phrasing in range(200):
        scene = random_scene(rng)
        changed = one_attribute_changed(scene, rng)
        before, after = write(scene, phrasing).split(), write(changed, phrasing).split()
        assert before != after
        assert abs(len(before) - len(after)) <= 3


def test_rendering_is_deterministic_and_shows_what_is_said():
    image = render(SCENE)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert np.array_equal(image, render(SCENE))
    left, right = image[:, :32].astype(int), image[:, 32:].astype(int)
    redness = [np.max(half[..., 0] - half[..., 2]) for half in (left, right)]
    blueness = [np.max(half[20:, :, 2] - half[20:, :, 0]) for half in (left, right)]
    assert redness[0] > redness[1] + 50
    assert blueness[1] > blueness[0] + 50


def test_light_from_the_left_casts_the_shadow_to_the_right():
    scene = Scene((dataclasses.replace(LEFT, x=0.0, size="large"),), None, None, "gray", "gray", "left")
    lit_left = render(scene).astype(int).sum(axis=2)
    lit_right = render(dataclasses.replace(scene, light="right")).astype(int).sum(axis=2)
    floor = slice(34, 46)
    assert lit_left[floor, 42:56].mean() < lit_right[floor, 42:56].mean() - 20


def test_labels_of_a_picture_and_of_a_caption():
    cube, cone, nothing = [1, 0, 0, 0], [3, 5, 1, 1], [5, 8, 3, 2]
    around = [0, 0, 0, 1]
    across, told_across = attributes.labels([SCENE], of_image=True), attributes.labels([SCENE], of_image=False)
    # which of two things side by side is nearer is neither said nor seen
    assert across[0].tolist() == [*cube, *cone, *nothing, *[-1] * 8, *nothing, *around]
    assert told_across.tolist() == across.tolist()
    behind = dataclasses.replace(SCENE, relation="behind")
    seen, told = attributes.labels([behind], of_image=True)[0], attributes.labels([behind], of_image=False)[0]
    assert seen.tolist() == [*cube, *cone, *nothing, *cube, *cone, *nothing, *around]
    # left and right are seen, but not said
    assert told.tolist() == [*[-1] * 8, *nothing, *cube, *cone, *nothing, *around]


def test_loss_ignores_what_is_not_told():
    target = attributes.labels([SCENE], of_image=False)
    logits = torch.zeros(1, sum(attributes.CLASSES))
    unknown = torch.zeros_like(logits)
    start = sum(attributes.CLASSES[:12])  # the nearest thing's shape
    unknown[:, start] = 5.0
    assert attributes.loss(unknown, target) == attributes.loss(logits, target)
