"""What a scene is, as class labels: the towers of mini-CLIP learn to tell these besides matching each other.

Things are listed twice, from left to right and from front to back. A picture determines both orders, unless two things
stand side by side, hardly one before the other; a caption only the one that its relation speaks of. What is left open
is -1, which the loss ignores.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .scene import COLORS, FLOORS, LIGHTS, MATERIALS, SHAPES, SIZES, SKIES, Scene, Thing

SLOTS = 3
_KINDS = (("shape", SHAPES), ("color", COLORS), ("material", MATERIALS), ("size", SIZES))
_AROUND = (("floor", FLOORS), ("sky", SKIES), ("light", LIGHTS))
CLASSES = (
    *[len(options) + 1 for _ in range(2 * SLOTS) for _, options in _KINDS],  # the last class: no such thing
    *[len(options) for _, options in _AROUND],
    SLOTS,
)
UNKNOWN = -1


def labels(scenes: list[Scene], of_image: bool) -> torch.Tensor:
    """int64 (N, len(CLASSES)): what the picture, or else a full caption, of each scene tells."""
    return torch.tensor([_labels(scene, of_image) for scene in scenes])


def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the known labels; logits (N, sum of CLASSES)."""
    parts = logits.float().split(CLASSES, dim=1)
    losses = [
        F.cross_entropy(part, column, ignore_index=UNKNOWN, reduction="sum")
        for part, column in zip(parts, target.T, strict=True)
    ]
    return torch.stack(losses).sum() / (target != UNKNOWN).sum()


def accuracy(logits: torch.Tensor, target: torch.Tensor) -> float:
    """Share of the known labels that are the most likely class."""
    guesses = torch.stack([part.argmax(1) for part in logits.split(CLASSES, dim=1)], dim=1)
    known = target != UNKNOWN
    return float((guesses == target)[known].float().mean())


def _labels(scene: Scene, of_image: bool) -> list[int]:
    left_to_right, front_to_back = _orders(scene, of_image)
    row = []
    for order in (left_to_right, front_to_back):
        row += [label for thing in order for label in _thing(thing)]
    row += [options.index(getattr(scene, name)) for name, options in _AROUND]
    return [*row, len(scene.things) - 1]


_Order = list["Thing | int | None"]


def _orders(scene: Scene, of_image: bool) -> tuple[_Order, _Order]:
    """Each with SLOTS entries: a thing, None for no thing, UNKNOWN for one that is not told."""
    things = scene.things
    across: _Order = list(sorted(things, key=lambda thing: thing.x))
    deep: _Order = list(sorted(things, key=lambda thing: thing.z))
    if len(things) > 1:
        if scene.relation in ("left", "right"):
            deep = [thing if thing in things[2:] else UNKNOWN for thing in deep]
        elif not of_image:
            across = [UNKNOWN] * len(things)
    fill: _Order = [None] * (SLOTS - len(things))
    return across + fill, deep + fill


def _thing(thing: Thing | int | None) -> list[int]:
    if isinstance(thing, int):
        return [UNKNOWN] * len(_KINDS)
    if thing is None:
        return [len(options) for _, options in _KINDS]
    return [options.index(getattr(thing, name)) for name, options in _KINDS]
