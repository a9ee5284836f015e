"""Toy world: coloured icons on a plain background, drawn exactly.

Coordinates are fractions of the image, origin top-left, x right, y down. A shape is a signed field over (u, v), the
place relative to the object's centre in units of its radius: negative inside.
"""

import random
from dataclasses import dataclass

import torch

COLORS = {
    "red": (0.86, 0.12, 0.14),
    "orange": (0.96, 0.55, 0.08),
    "yellow": (0.97, 0.87, 0.12),
    "green": (0.13, 0.62, 0.22),
    "cyan": (0.10, 0.78, 0.85),
    "blue": (0.12, 0.28, 0.85),
    "purple": (0.52, 0.16, 0.68),
    "pink": (0.97, 0.48, 0.72),
}
BACKGROUNDS = {
    "white": (0.96, 0.96, 0.96),
    "gray": (0.55, 0.55, 0.55),
    "black": (0.06, 0.06, 0.06),
    "cream": (0.93, 0.88, 0.76),
}
TEXTURES = ("plain", "striped", "dotted")
RADIUS = {"small": (0.09, 0.12), "medium": (0.13, 0.18), "large": (0.20, 0.27)}
LIGHT = 0.8  # the light parts of a texture are the object's colour with this much white


def _length(u, v):
    return (u * u + v * v + 1e-9).sqrt()


def _circle(u, v):
    return _length(u, v) - 0.95


def _square(u, v):
    return torch.maximum(u.abs(), v.abs()) - 0.85


def _triangle(u, v):
    return torch.maximum(v - 0.82, u.abs() * 0.87 - (v + 0.95) * 0.5)


def _star(u, v):
    return _length(u, v) - (0.66 + 0.31 * torch.cos(5 * (torch.atan2(v, u) + torch.pi / 2)))


def _heart(u, v):
    x, y = 1.25 * u, -1.25 * v + 0.12
    q = x * x + y * y - 1
    return (q * q * q - x * x * y * y * y).clamp(-1, 1) * 0.4


def _ring(u, v):
    return (_length(u, v) - 0.68).abs() - 0.25


def _cross(u, v):
    x, y = u.abs(), v.abs()
    return torch.minimum(torch.maximum(x - 0.32, y - 0.92), torch.maximum(x - 0.92, y - 0.32))


def _moon(u, v):
    return torch.maximum(_length(u, v) - 0.92, 0.78 - _length(u - 0.5, v + 0.05))


def _house(u, v):
    x = u.abs()
    body = torch.maximum(torch.maximum(x - 0.62, v - 0.9), -0.1 - v)
    roof = torch.maximum(v + 0.05, x * 0.7 - (v + 0.95) * 0.72)
    door = torch.maximum(torch.maximum(x - 0.17, 0.35 - v), v - 1.2)
    return torch.maximum(torch.minimum(body, roof), -door)


def _tree(u, v):
    trunk = torch.maximum(torch.maximum(u.abs() - 0.14, v - 0.92), -v)
    return torch.minimum(trunk, _length(u, v + 0.28) - 0.64)


SHAPES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "ring": _ring,
    "cross": _cross,
    "moon": _moon,
    "house": _house,
    "tree": _tree,
}


@dataclass(frozen=True)
class SceneObject:
    """One icon; `x`, `y` is its centre and `radius` its size, in fractions of the image (which is square)."""

    color: str
    shape: str
    x: float
    y: float
    radius: float
    texture: str = "plain"


def _local(obj, resolution):
    """(u, v) of every pixel centre, each float32 [resolution, resolution]."""
    axis = (torch.arange(resolution) + 0.5) / resolution
    v, u = torch.meshgrid((axis - obj.y) / obj.radius, (axis - obj.x) / obj.radius, indexing="ij")
    return u, v


def _lightness(texture, u, v):
    """How much white the texture mixes in at (u, v): 0 or LIGHT."""
    if texture == "striped":
        light = torch.sin(v * 9.5) > 0
    elif texture == "dotted":
        light = torch.sin(u * 6.2) ** 2 + torch.sin(v * 6.2) ** 2 > 1.45
    else:
        light = torch.zeros_like(u)
    return light.float() * LIGHT


def render_scene(objects, background="white", resolution=256, jitter=0.0):
    """The picture of `objects` (later ones over earlier ones), float32 [resolution, resolution, 3] in 0..1.

    `jitter` is the spread of the random tint of the background and of each object (the model was trained with 0.02),
    drawn from torch's global generator.
    """
    image = (torch.tensor(BACKGROUNDS[background]) + jitter * torch.randn(3)).expand(resolution, resolution, 3)
    for obj in objects:
        u, v = _local(obj, resolution)
        color = torch.tensor(COLORS[obj.color]) + jitter * torch.randn(3)
        light = _lightness(obj.texture, u, v)[..., None]
        alpha = torch.sigmoid(-SHAPES[obj.shape](u, v) * obj.radius * resolution * 2.5)[..., None]
        image = image * (1 - alpha) + (color * (1 - light) + light) * alpha
    return image.clamp(0, 1)


def visible_masks(objects, resolution=256):
    """Which pixels each object covers in the picture, bool [objects, resolution, resolution]; no pixel twice."""
    masks = [SHAPES[obj.shape](*_local(obj, resolution)) < 0 for obj in objects]
    taken = torch.zeros(resolution, resolution, dtype=torch.bool)
    for index in reversed(range(len(masks))):
        masks[index] = masks[index] & ~taken
        taken = taken | masks[index]
    return torch.stack(masks)


def random_scene(seed, count):
    """`count` objects of different colours and shapes, inside the image and apart from each other, and a background."""
    rng = random.Random(seed)
    while True:
        objects = []
        for color, shape in zip(rng.sample(list(COLORS), count), rng.sample(list(SHAPES), count)):
            radius = rng.uniform(*RADIUS[rng.choice(list(RADIUS))])
            x, y = (rng.uniform(radius, 1 - radius) for _ in "xy")
            objects.append(SceneObject(color, shape, x, y, radius, rng.choice(TEXTURES)))
        if all(_gap(a, b) > 0.02 for i, a in enumerate(objects) for b in objects[:i]):
            return objects, rng.choice(list(BACKGROUNDS))


def _gap(a, b):
    """Distance between the circles around two objects, in fractions of the image."""
    return ((a.x - b.x) ** 2 + (a.y - b.y) ** 2) ** 0.5 - a.radius - b.radius
