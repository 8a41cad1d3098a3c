"""The little world of the bundled models: what a scene is made of, and how scenes are drawn at random."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np

SHAPES = ("sphere", "cube", "cylinder", "cone", "pyramid")
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
MATERIALS = ("matte", "shiny", "metallic")
SIZES = ("small", "large")
FLOORS = ("gray", "brown", "green", "blue", "pink")
SKIES = ("blue", "orange", "gray", "dark", "pink")
LIGHTS = ("left", "right", "above")
RELATIONS = ("left", "right", "front", "behind")

# (color, shape) pairs that no training image shows; the styled evaluation prompts are built around them.
HELD_OUT = frozenset(
    {("red", "cone"), ("yellow", "cube"), ("cyan", "sphere"), ("purple", "pyramid"), ("green", "cylinder")}
)

RADIUS = {"small": 0.55, "large": 0.92}


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object: its named attributes and where it stands (world units, floor plane x/z; yaw in radians)."""

    shape: str
    color: str
    material: str
    size: str
    x: float
    z: float
    yaw: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """One to three things, the relation of the second (and third) to the first, and the surroundings."""

    things: tuple[Thing, ...]
    relation: str | None  # of the first thing to the second: "left" | "right" | "front" | "behind"
    third: str | None  # where the third thing stands: "front" | "behind"
    floor: str
    sky: str
    light: str

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Scene:
        fields: dict[str, Any] = json.loads(text)
        fields["things"] = tuple(Thing(**thing) for thing in fields["things"])
        return Scene(**fields)

    @property
    def is_held_out(self) -> bool:
        return any((thing.color, thing.shape) in HELD_OUT for thing in self.things)


def random_scene(rng: np.random.Generator, held_out: bool = False) -> Scene:
    """A random scene; with `held_out` at least one thing is a held-out (color, shape) pair, else none is."""
    count = int(rng.choice([1, 2, 3], p=[0.4, 0.45, 0.15]))
    while True:
        names = [_random_names(rng) for _ in range(count)]
        looks = {(color, shape) for shape, color, _, _ in names}
        if bool(looks & HELD_OUT) is held_out and len(looks) == count:
            break
    relation = str(rng.choice(RELATIONS)) if count > 1 else None
    third = str(rng.choice(("front", "behind"))) if count == 3 else None
    if count == 3:  # three things need the room: two side by side, one before or behind them, all of them small
        relation = str(rng.choice(("left", "right")))
        names = [(shape, color, material, "small") for shape, color, material, _ in names]
    places = _places(rng, count, relation, third)
    things = tuple(
        Thing(*name, x=round(float(x), 3), z=round(float(z), 3), yaw=round(float(rng.uniform(0.2, 1.37)), 3))
        for name, (x, z) in zip(names, places, strict=True)
    )
    pick = lambda options: str(rng.choice(options))  # noqa: E731
    return Scene(things, relation, third, pick(FLOORS), pick(SKIES), pick(LIGHTS))


def _random_names(rng: np.random.Generator) -> tuple[str, str, str, str]:
    return (
        str(rng.choice(SHAPES)),
        str(rng.choice(COLORS)),
        str(rng.choice(MATERIALS)),
        str(rng.choice(SIZES)),
    )


def _places(rng: np.random.Generator, count: int, relation: str | None, third: str | None) -> list[tuple[float, float]]:
    def near(x: float, z: float) -> tuple[float, float]:
        return x + rng.uniform(-0.12, 0.12), z + rng.uniform(-0.12, 0.12)

    if count == 1:
        return [(rng.uniform(-0.5, 0.5), rng.uniform(-0.4, 0.4))]
    side = 1.0 if rng.random() < 0.5 else -1.0
    spots = {
        "left": [(-1.05, 0.0), (1.05, 0.0)],
        "right": [(1.05, 0.0), (-1.05, 0.0)],
        "front": [(0.75 * side, -1.0), (-0.75 * side, 1.3)],
        "behind": [(0.75 * side, 1.3), (-0.75 * side, -1.0)],
    }[relation or "left"]
    if count == 3:
        spots = [*spots, (0.0, -1.3 if third == "front" else 1.8)]
    return [near(*spot) for spot in spots]


def one_attribute_changed(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same scene with exactly one named attribute changed to another value."""
    slots: list[tuple[str, int, str]] = [("scene", 0, name) for name in ("floor", "sky", "light")]
    sized = len(scene.things) < 3
    for index in range(len(scene.things)):
        slots += [("thing", index, name) for name in ("shape", "color", "material")]
        slots += [("thing", index, "size")] if sized else []
    slots += [("scene", 0, "relation")] if scene.relation else []
    slots += [("scene", 0, "third")] if scene.third else []
    kind, index, name = slots[int(rng.integers(len(slots)))]
    owner = scene.things[index] if kind == "thing" else scene
    value = _other_value(name, getattr(owner, name), len(scene.things), rng)
    if kind == "scene":
        return dataclasses.replace(scene, **{name: value})
    things = list(scene.things)
    things[index] = dataclasses.replace(things[index], **{name: value})
    return dataclasses.replace(scene, things=tuple(things))


def _other_value(name: str, value: str, count: int, rng: np.random.Generator) -> str:
    options = {
        "shape": SHAPES,
        "color": COLORS,
        "material": MATERIALS,
        "size": SIZES,
        "floor": FLOORS,
        "sky": SKIES,
        "light": LIGHTS,
        "relation": RELATIONS if count == 2 else ("left", "right"),
        "third": ("front", "behind"),
    }[name]
    return str(rng.choice([option for option in options if option != value]))
