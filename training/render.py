"""A small ray tracer in numpy: one Scene -> one uint8 image, with shadows, highlights and reflections."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .scene import RADIUS, Scene, Thing

Array = npt.NDArray[np.float32]

COLOR = {
    "red": (0.80, 0.06, 0.05),
    "orange": (0.90, 0.36, 0.03),
    "yellow": (0.90, 0.76, 0.06),
    "green": (0.07, 0.50, 0.10),
    "cyan": (0.05, 0.66, 0.70),
    "blue": (0.06, 0.12, 0.75),
    "purple": (0.36, 0.06, 0.55),
    "white": (0.90, 0.90, 0.90),
}
FLOOR = {
    "gray": (0.34, 0.34, 0.35),
    "brown": (0.33, 0.19, 0.09),
    "green": (0.13, 0.32, 0.10),
    "blue": (0.10, 0.17, 0.36),
    "pink": (0.62, 0.33, 0.40),
}
SKY = {  # horizon, zenith
    "blue": ((0.62, 0.80, 0.95), (0.13, 0.36, 0.78)),
    "orange": ((0.98, 0.70, 0.30), (0.72, 0.28, 0.08)),
    "gray": ((0.75, 0.76, 0.78), (0.42, 0.44, 0.47)),
    "dark": ((0.10, 0.10, 0.17), (0.01, 0.01, 0.04)),
    "pink": ((0.97, 0.70, 0.78), (0.66, 0.26, 0.52)),
}
LIGHT = {"left": (-0.75, 0.62, -0.35), "right": (0.75, 0.62, -0.35), "above": (0.03, 0.97, -0.22)}

EYE = np.array([0.0, 2.1, -5.6], np.float32)
TARGET = np.array([0.0, 0.45, 0.2], np.float32)
HALF_WIDTH = 0.385  # of the image plane at distance 1
FAR = np.float32(1e9)


def render(scene: Scene, size: int = 64, samples: int = 2) -> npt.NDArray[np.uint8]:
    """Traces `scene` with `samples`² rays a pixel; returns uint8 (size, size, 3) in sRGB-like gamma."""
    rays = _camera_rays(size * samples)
    linear = _trace(scene, np.broadcast_to(EYE, rays.shape), rays)
    image = linear.reshape(size, samples, size, samples, 3).mean(axis=(1, 3))
    return (np.clip(image, 0, 1) ** (1 / 2.2) * 255 + 0.5).astype(np.uint8)


_RAYS: dict[int, Array] = {}


def _camera_rays(pixels: int) -> Array:
    if pixels not in _RAYS:
        forward = _normalize(TARGET - EYE)
        right = _normalize(np.cross(np.array([0, 1, 0], np.float32), forward))
        up = np.cross(forward, right)
        steps = ((np.arange(pixels, dtype=np.float32) + 0.5) / pixels * 2 - 1) * HALF_WIDTH
        x, y = np.meshgrid(steps, -steps)
        rays = forward + x[..., None] * right + y[..., None] * up
        _RAYS[pixels] = _normalize(rays.reshape(-1, 3)).astype(np.float32)
    return _RAYS[pixels]


def _trace(scene: Scene, origin: Array, ray: Array) -> Array:
    light = _normalize(np.array(LIGHT[scene.light], np.float32))
    color = _sky(scene, ray)
    depth, which, normal = _nearest(scene, origin, ray)
    floor_depth = np.where(ray[:, 1] < -1e-4, -origin[:, 1] / np.minimum(ray[:, 1], -1e-4), FAR)
    on_floor = floor_depth < depth
    rows = np.nonzero(on_floor)[0]
    point = origin[rows] + floor_depth[rows, None] * ray[rows]
    color[rows] = _floor(scene, point, light, floor_depth[rows], color[rows])
    for index, thing in enumerate(scene.things):
        rows = np.nonzero((which == index) & ~on_floor)[0]
        if len(rows):
            point = origin[rows] + depth[rows, None] * ray[rows]
            color[rows] = _surface(scene, thing, point, normal[rows], ray[rows], light)
    return color


def _floor(scene: Scene, point: Array, light: Array, depth: Array, behind: Array) -> Array:
    lit = _visibility(scene, point + np.float32(1e-3) * np.array([0, 1, 0], np.float32), light)
    shade = 0.30 + 0.85 * lit * light[1]
    base = np.array(FLOOR[scene.floor], np.float32) * shade[:, None]
    fog = np.clip((depth - 8) / 22, 0, 1)[:, None]
    horizon = np.array(SKY[scene.sky][0], np.float32)
    return base * (1 - fog) + horizon * fog


def _surface(scene: Scene, thing: Thing, point: Array, normal: Array, ray: Array, light: Array) -> Array:
    base = np.array(COLOR[thing.color], np.float32)
    lit = _visibility(scene, point + np.float32(2e-3) * normal, light)
    diffuse = np.clip(normal @ light, 0, 1) * lit
    mirror = ray - 2 * (ray * normal).sum(1, keepdims=True) * normal
    glint = np.clip(mirror @ light, 0, 1)
    ambient = 0.22 + 0.14 * (normal[:, 1] * 0.5 + 0.5)
    body = base * (ambient + 0.85 * diffuse)[:, None]
    if thing.material == "matte":
        return body
    around = _surroundings(scene, mirror)
    flat = thing.shape in PLANES
    if thing.material == "shiny":
        fresnel = 0.06 + 0.5 * (1 - np.clip(-(ray * normal).sum(1), 0, 1)) ** 4
        gloss = 1.6 * glint**40 * lit + 0.5 * _lamps(mirror, 14.0 if flat else 2.5, 0.80)
        return body * 0.9 + around * fresnel[:, None] + gloss[:, None]
    tint = 0.04 + 0.96 * base
    bands = 0.35 + 1.0 * _lamps(mirror, 20.0 if flat else 4.0, -0.2) + 1.1 * glint**14 * lit
    return tint * (0.08 + 0.2 * diffuse[:, None] + (0.35 + around * 0.5) * bands[:, None])


def _lamps(mirror: Array, pitch: float, edge: float) -> Array:
    """Soft strips of studio lamps seen in a mirror: they tell gloss and metal from paint on flat faces too."""
    wave = np.sin(pitch * (mirror[:, 1] + 0.45 * mirror[:, 0]) + 0.6)
    return np.clip((wave - edge) / (1 - edge), 0, 1)


def _surroundings(scene: Scene, ray: Array) -> Array:
    """What a mirror sees: sky above, a darkening floor below, a bright band at the horizon."""
    below = np.array(FLOOR[scene.floor], np.float32) * np.clip(0.95 + 0.8 * ray[:, 1:2], 0.15, 1)
    return np.where(ray[:, 1:2] > 0, _sky(scene, ray) + 0.12, below)


def _sky(scene: Scene, ray: Array) -> Array:
    horizon, zenith = (np.array(part, np.float32) for part in SKY[scene.sky])
    height = np.clip(ray[:, 1:2] * 2.2 + 0.25, 0, 1)
    return horizon * (1 - height) + zenith * height


def _visibility(scene: Scene, point: Array, light: Array) -> Array:
    """1 where the light reaches the point, 0 in shadow; float32 (rows,)."""
    ray = np.broadcast_to(light, point.shape)
    blocked = np.zeros(len(point), bool)
    for thing in scene.things:
        blocked |= _hit(thing, point, ray)[0] < FAR
    return (~blocked).astype(np.float32)


def _nearest(scene: Scene, origin: Array, ray: Array) -> tuple[Array, npt.NDArray[np.int64], Array]:
    depth = np.full(len(ray), FAR, np.float32)
    which = np.full(len(ray), -1)
    normal = np.zeros_like(ray)
    for index, thing in enumerate(scene.things):
        distance, surface = _hit(thing, origin, ray)
        closer = distance < depth
        depth[closer], normal[closer] = distance[closer], surface[closer]
        which[closer] = index
    return depth, which, normal


def _hit(thing: Thing, origin: Array, ray: Array) -> tuple[Array, Array]:
    """Distance along each ray to the thing (FAR where missed) and the surface normal there."""
    radius = np.float32(RADIUS[thing.size])
    depth = np.full(len(ray), FAR, np.float32)
    normal = np.zeros(ray.shape, np.float32)
    center = np.array([thing.x, radius, thing.z], np.float32)
    offset = origin - center
    along = (offset * ray).sum(1)
    near = (along**2 - (offset * offset).sum(1) + 3 * radius**2) > 0  # rays that meet the bounding sphere
    rows = np.nonzero(near)[0]
    if not len(rows):
        return depth, normal
    turn = _yaw(thing.yaw)
    local_origin, local_ray = offset[rows] @ turn.T / radius, ray[rows] @ turn.T / radius
    hit = {"sphere": _sphere, "cylinder": _cylinder, "cone": _cone}.get(thing.shape)
    if hit is not None:
        found, surface = hit(local_origin, local_ray)
    else:
        found, surface = _convex(local_origin, local_ray, *PLANES[thing.shape])
    depth[rows] = found
    normal[rows] = _normalize(surface) @ turn
    return depth, normal


# Shapes in their own frame: the unit radius, standing on y = -1. Each returns distances (FAR: missed) and normals.


def _sphere(o: Array, d: Array) -> tuple[Array, Array]:
    t = _first_root((d * d).sum(1), (o * d).sum(1), (o * o).sum(1) - 1)
    return t, o + np.where(t < FAR, t, 0)[:, None] * d


def _cylinder(o: Array, d: Array, half: float = 0.95, radius: float = 0.8) -> tuple[Array, Array]:
    ox, dx = o[:, [0, 2]], d[:, [0, 2]]
    t = _first_root((dx * dx).sum(1), (ox * dx).sum(1), (ox * ox).sum(1) - radius**2)
    p = o + np.where(t < FAR, t, 0)[:, None] * d
    t = np.where((np.abs(p[:, 1] + 0.05) <= half) & (t < FAR), t, FAR)
    normal = p * np.array([1, 0, 1], np.float32)
    return _with_disk(o, d, t, normal, half - 0.05, radius)


def _cone(o: Array, d: Array) -> tuple[Array, Array]:
    """Apex at y = 1, base radius 0.95 at y = -1."""
    slope = np.float32(0.475)
    k = np.array([1, -(slope**2), 1], np.float32)
    apex = o - np.array([0, 1, 0], np.float32)
    t = _first_root((d * d * k).sum(1), (apex * d * k).sum(1), (apex * apex * k).sum(1), lambda y: y <= 1, o, d)
    p = o + np.where(t < FAR, t, 0)[:, None] * d
    t = np.where((p[:, 1] >= -1) & (p[:, 1] <= 1) & (t < FAR), t, FAR)
    normal = (p - np.array([0, 1, 0], np.float32)) * k
    return t, normal


def _with_disk(o: Array, d: Array, t: Array, normal: Array, height: float, radius: float) -> tuple[Array, Array]:
    steep = np.abs(d[:, 1]) > 1e-6
    s = np.where(steep, (height - o[:, 1]) / np.where(steep, d[:, 1], 1), FAR).astype(np.float32)
    p = o + np.where(s < FAR, s, 0)[:, None] * d
    inside = (s > 1e-4) & (s < t) & (p[:, 0] ** 2 + p[:, 2] ** 2 <= radius**2)
    normal = np.where(inside[:, None], np.array([0, 1, 0], np.float32), normal)
    return np.where(inside, s, t).astype(np.float32), normal.astype(np.float32)


def _first_root(a, b, c, keep=None, o=None, d=None):  # type: ignore[no-untyped-def]
    """The nearer positive root of a t² + 2 b t + c = 0 whose height passes `keep`; FAR where there is none."""
    disc = b * b - a * c
    safe = np.where(np.abs(a) > 1e-9, a, 1e-9)
    root = np.sqrt(np.maximum(disc, 0))
    best = np.full(len(b), FAR, np.float32)
    for t in ((-b - root) / safe, (-b + root) / safe):
        good = (disc > 0) & (t > 1e-4) & (t < best)
        if keep is not None:
            good &= keep(o[:, 1] + t * d[:, 1])
        best = np.where(good, t, best).astype(np.float32)
    return best


def _convex(o: Array, d: Array, normals: Array, offsets: Array) -> tuple[Array, Array]:
    """Slab test against the half-spaces n·p <= offset."""
    speed = d @ normals.T
    gap = offsets - o @ normals.T
    t = gap / np.where(np.abs(speed) > 1e-9, speed, 1e-9)
    enter = np.where(speed < 0, t, -FAR)
    leave = np.where(speed > 0, t, FAR).min(axis=1)
    leave = np.where(((np.abs(speed) <= 1e-9) & (gap < 0)).any(axis=1), -FAR, leave)
    face = enter.argmax(axis=1)
    first = enter.max(axis=1)
    hit = (first < leave) & (first > 1e-4)
    return np.where(hit, first, FAR).astype(np.float32), normals[face]


def _planes(faces: list[tuple[float, float, float, float]]) -> tuple[Array, Array]:
    table = np.array(faces, np.float32)
    length = np.linalg.norm(table[:, :3], axis=1, keepdims=True)
    return table[:, :3] / length, (table[:, 3:] / length)[:, 0]


PLANES = {
    "cube": _planes(
        [(1, 0, 0, 0.76), (-1, 0, 0, 0.76), (0, 0, 1, 0.76), (0, 0, -1, 0.76), (0, 1, 0, 0.52), (0, -1, 0, 1)]
    ),
    "pyramid": _planes([(2, 1, 0, 1), (-2, 1, 0, 1), (0, 1, 2, 1), (0, 1, -2, 1), (0, -1, 0, 1)]),
}


def _yaw(angle: float) -> Array:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]], np.float32)


def _normalize(v: Array) -> Array:
    length = np.sqrt((v * v).sum(-1, keepdims=True))
    return (v / np.maximum(length, 1e-9)).astype(np.float32)
