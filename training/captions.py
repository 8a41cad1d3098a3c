"""Words for scenes: plain captions (the training and calibration domain) and long, style-laden ones (the other)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from .scene import Scene, Thing

STYLED_COLOR = {
    "red": ("crimson", "scarlet"),
    "orange": ("amber", "tangerine"),
    "yellow": ("golden", "lemon"),
    "green": ("emerald", "mossy"),
    "cyan": ("turquoise", "teal"),
    "blue": ("cobalt", "sapphire"),
    "purple": ("violet", "plum"),
    "white": ("ivory", "snowy"),
}
STYLED_SHAPE = {
    "sphere": ("ball", "orb"),
    "cube": ("box", "block"),
    "cylinder": ("drum", "pillar"),
    "cone": ("spire", "funnel"),
    "pyramid": ("tent", "peak"),
}
STYLED_MATERIAL = {
    "matte": ("chalky", "velvet"),
    "shiny": ("glossy", "lacquered"),
    "metallic": ("chrome", "burnished"),
}
STYLED_SIZE = {"small": ("tiny", "little"), "large": ("huge", "towering")}
STYLED_FLOOR = {
    "gray": ("concrete plain", "stone ground"),
    "brown": ("wooden stage", "earthen ground"),
    "green": ("meadow", "grassy lawn"),
    "blue": ("frozen lake", "marine carpet"),
    "pink": ("rosy marble", "coral terrace"),
}
STYLED_SKY = {
    "blue": ("clear noon weather", "a bright summer day"),
    "orange": ("a burning sunset", "golden hour"),
    "gray": ("overcast weather", "a foggy morning"),
    "dark": ("deep night", "a moonless midnight"),
    "pink": ("a dreamy dawn", "pastel twilight"),
}
STYLED_LIGHT = {
    "left": ("sunbeams from the left", "long shadows to the right"),
    "right": ("sunbeams from the right", "long shadows to the left"),
    "above": ("light from straight overhead", "a high sun and short shadows"),
}
MOODS = ("serene", "dramatic", "lonely", "playful", "mysterious", "majestic", "quiet", "nostalgic")
CAMERAS = (
    "shot on 35 mm film",
    "wide angle photograph",
    "studio render",
    "highly detailed digital art",
    "cinematic still",
    "trending concept art",
)

PLAIN_RELATION = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "front": ("in front of",),
    "behind": ("behind",),
}


def plain_caption(scene: Scene, phrasing: int, full: bool = True) -> str:
    """A plain caption. `phrasing` picks words and order; without `full`, some attributes are left unsaid."""
    rng = np.random.default_rng(phrasing)
    pick = _picker(rng)
    rolls = rng.random(4)
    say = [full or roll < 0.75 for roll in rolls]
    article = pick(("a", "one"))
    things = [article + " " + _plain_thing(thing, say[0], say[1]) for thing in scene.things]
    body = things[0]
    if scene.relation is not None:
        body = f"{things[0]} {pick(PLAIN_RELATION[scene.relation])} {things[1]}"
    if scene.third is not None:
        where = "in front of them" if scene.third == "front" else "behind them"
        body += f" and {things[2]} {where}"
    ground = f"on a {scene.floor} floor" if say[2] else ""
    sky = f"under a {scene.sky} sky" if say[2] else ""
    light = pick(("lit from {}", "light from {}")).format(_side(scene.light)) if say[3] else ""
    opening = pick(("", "a picture of ", "a scene with ", "an image of "))
    if rng.random() < 0.5:
        parts = (f"{body} {ground}".strip(), sky, light)
    else:
        parts = (body, f"{ground} {sky}".strip(), light)
    return _article(opening + ", ".join(part for part in parts if part))


def _picker(rng: np.random.Generator) -> Callable[[Sequence[str]], str]:
    """Draws one random number a pick, however many options there are: a changed attribute keeps the phrasing."""
    return lambda options: options[int(rng.random() * len(options))]


def _article(text: str) -> str:
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def _plain_thing(thing: Thing, sized: bool, material: bool) -> str:
    words = [thing.size if sized else "", thing.material if material else "", thing.color, thing.shape]
    return " ".join(word for word in words if word)


def _side(light: str) -> str:
    return light if light == "above" else f"the {light}"


def styled_caption(scene: Scene, phrasing: int) -> str:
    """A long, style-laden caption in other words: weather or time of day, mood, camera."""
    rng = np.random.default_rng(phrasing)
    pick = _picker(rng)

    def name(thing: Thing) -> str:
        words = (STYLED_SIZE[thing.size], STYLED_MATERIAL[thing.material], STYLED_COLOR[thing.color])
        return " ".join(pick(options) for options in (*words, STYLED_SHAPE[thing.shape]))

    names = [name(thing) for thing in scene.things]
    body = names[0]
    if scene.relation is not None:
        where = {"left": "left of", "right": "right of", "front": "before", "behind": "beyond"}[scene.relation]
        body = f"{names[0]} standing {where} {names[1]}"
    if scene.third is not None:
        body += f" and {names[2]} {'nearer' if scene.third == 'front' else 'farther'} to the viewer"
    mood, camera = pick(MOODS), pick(CAMERAS)
    ground, sky = pick(STYLED_FLOOR[scene.floor]), pick(STYLED_SKY[scene.sky])
    light = pick(STYLED_LIGHT[scene.light])
    layouts = (
        f"{mood} {camera} of {body} on {ground}, {sky}, {light}",
        f"{sky}, {body} on {ground}, {light}, {mood} mood, {camera}",
        f"{body}, {mood} mood, {ground} in {sky}, {light}, {camera}",
    )
    return pick(layouts)
