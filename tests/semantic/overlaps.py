"""Two things of which one stands before the other: pictures that begin undecided, and who has what both could have.

The toy model was trained on things that keep clear of each other, and alone never draws two that overlap. So each
picture begins as a drawing of both, in which the part that they have in common has the mean of their colours, and most
of the noise. What is decided in the rest of the schedule is whose that part is.
"""

import time
from dataclasses import dataclass

import comfy.sample
import numpy as np
import torch
from attributes import sentences
from measure import layout_of
from pack.attention_patches.host.install import install
from toyworld import sampling, scorer
from toyworld.layouts import Layout
from toyworld.scenes import SceneObject, render_scene

STEPS, DENOISE = 14, 0.7  # the last 14 of 20 steps
WHOLE = 0.8  # of its outline the front one covers so much at least
CUT = 0.1  # of the common part the back one covers so much at most
THERE = 0.5  # and so much at least of the rest of its outline


def _beside(first: tuple, second: tuple, dx: float, dy: float, radius: float = 0.22) -> tuple[SceneObject, SceneObject]:
    """(colour, shape) twice, around the middle of the picture, apart by dx and dy."""
    return (
        SceneObject(*first, 0.5 - dx / 2, 0.5 - dy / 2, radius),
        SceneObject(*second, 0.5 + dx / 2, 0.5 + dy / 2, radius),
    )


SCENES = (
    _beside(("red", "circle"), ("blue", "square"), 0.26, 0.0),
    _beside(("green", "square"), ("orange", "circle"), 0.0, 0.26),
    _beside(("purple", "heart"), ("yellow", "square"), 0.2, 0.14),
    _beside(("cyan", "circle"), ("red", "star"), 0.24, 0.05),
    _beside(("blue", "triangle"), ("orange", "heart"), 0.18, -0.12),
    _beside(("yellow", "circle"), ("green", "circle"), -0.25, 0.06),
)
PAIRS = tuple(order for scene in SCENES for order in (scene, scene[::-1]))  # (back, front): either can be in front


def layout_for(pair) -> Layout:
    """Both as phrases of a prompt that is the same whoever is in front; the front one is the last region."""
    first, second = sorted(pair, key=lambda item: item.color)
    prompt = f"a large {first.color} {first.shape} and a large {second.color} {second.shape} on a white background"
    regions = tuple(
        (f"large {item.color} {item.shape}", (item.x - item.radius, item.y - item.radius, *[2 * item.radius] * 2))
        for item in pair
    )
    return Layout(" before ".join(phrase for phrase, _ in regions[::-1]), prompt, regions)


def begin(pair) -> torch.Tensor:
    """[H, W, 3]: neither is in front."""
    return (render_scene(pair) + render_scene(pair[::-1])) / 2


def outlines(pair) -> list[np.ndarray]:
    """Which pixels each of the two has alone, bool [H, W]."""
    empty = render_scene([])
    return [((render_scene([item]) - empty).abs().amax(-1) > 0.2).numpy() for item in pair]


@dataclass(frozen=True)
class Seen:
    """What a picture shows of a pair, in shares of their outlines."""

    front: float  # of the front one's outline, its colour
    hidden: float  # of the common part, the back one's colour
    back: float  # of the rest of the back one's outline, its colour

    @property
    def right(self) -> bool:
        return self.front >= WHOLE and self.hidden <= CUT and self.back >= THERE


def seen(image, pair) -> Seen:
    found = scorer.find_objects(image)
    back_at, front_at = outlines(pair)
    common, masks = back_at & front_at, []
    for item in pair:
        own = [other.mask for other in found if other.color == item.color]
        masks.append(np.any(own, axis=0) if own else np.zeros(common.shape, bool))
    back, front = masks
    shares = ((front, front_at), (back, common), (back, back_at & ~common))
    return Seen(*(float((mask & place).sum() / place.sum()) for mask, place in shares))


def draw(toy, pair, edits_of, seeds) -> torch.Tensor:
    """The pictures of a pair, [seeds, H, W, 3]; edits_of(layout, sentences) -> edits."""
    model, clip, vae = toy
    case = layout_for(pair)
    positive, layout = layout_of(clip, case.prompt, case.regions)
    patched = install(model, layout, edits_of(layout, sentences(clip, case)))
    noise = torch.cat([sampling.noise_for(seed) for seed in seeds])
    latent = vae.encode(begin(pair)[None]).expand(len(noise), -1, -1, -1)
    latent = comfy.sample.sample(
        patched,
        noise,
        STEPS,
        5.0,
        "euler",
        "normal",
        positive,
        sampling.encode(clip, ""),
        latent,
        denoise=DENOISE,
        disable_pbar=True,
        seed=seeds[0],
    )
    return vae.decode(latent).float().cpu()


def score(toy, edits_of, seeds, pairs=PAIRS) -> dict:
    """Means over pairs x seeds, the CPU seconds of a picture, and the "images"."""
    start = time.process_time()
    images = [draw(toy, pair, edits_of, seeds) for pair in pairs]
    seconds = (time.process_time() - start) / (len(pairs) * len(seeds))
    found = [seen(image, pair) for pair, own in zip(pairs, images) for image in own]
    return {
        "right": float(np.mean([each.right for each in found])),
        "front whole": float(np.mean([each.front >= WHOLE for each in found])),
        "back cut": float(np.mean([each.hidden <= CUT and each.back >= THERE for each in found])),
        "front": float(np.mean([each.front for each in found])),
        "hidden": float(np.mean([each.hidden for each in found])),
        "back": float(np.mean([each.back for each in found])),
        "seconds": seconds,
        "images": images,
    }


SHOWN = ("right", "front whole", "back cut", "front", "hidden", "back", "seconds")
HEAD = "| | front whole and back cut | front whole | back cut | front's outline | back in the common part | rest of "
HEAD += "back's outline | s per picture |"


def line(name: str, found: dict) -> str:
    return f"| {name} | " + " | ".join(f"{found[key]:.3f}" for key in SHOWN) + " |"
