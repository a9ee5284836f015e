"""What the regions of a toy picture show, attribute by attribute; layouts with swapped attributes; the methods."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from measure import layout_of
from pack.attention_patches.host.install import install
from pack.attention_patches.methods.bounded_attention import BoundedAttention
from pack.attention_patches.methods.box_constraint import preset
from pack.attention_patches.methods.dense_diffusion import DenseDiffusion
from pack.attention_patches.methods.region_prompt import RegionPrompt
from torch import Tensor
from toyworld import sampling, scorer
from toyworld.layouts import LAYOUTS, Layout
from toyworld.scenes import COLORS, TEXTURES
from toyworld.scorer import MIN_AREA, box_mask

LEFT, RIGHT = (0.08, 0.33, 0.34, 0.34), (0.58, 0.33, 0.34, 0.34)
TEXTURE_EDGES = (0.08, 0.28)  # whiteness between plain and dotted, between dotted and striped


def _swapped(left: str, right: str, background: str) -> list[Layout]:
    """Two things side by side, and the same with colour and texture exchanged."""
    (texture, color, shape), (other_texture, other_color, other_shape) = left.split(), right.split()
    pairs = [(left, right), (f"{other_texture} {other_color} {shape}", f"{texture} {color} {other_shape}")]
    return [
        Layout(f"{a} | {b}", f"a {a} and a {b} on a {background} background", ((a, LEFT), (b, RIGHT))) for a, b in pairs
    ]


SWAPS = (
    *_swapped("striped red heart", "dotted blue house", "white"),
    *_swapped("striped green circle", "plain yellow square", "gray"),
    *_swapped("dotted blue square", "plain red star", "white"),
    *_swapped("striped purple house", "plain green heart", "gray"),
)


def boxed(layout, _):
    return preset("standard", "boxdiff").guides(layout)


def coupled(layout, texts, **settings):
    return RegionPrompt(**settings).edits(layout, texts)


# Name -> (layout, a sentence for each region, encoded) -> edits.
METHODS: dict[str, Callable] = {
    "unpatched": lambda layout, texts: [],
    "couple": coupled,
    "dense": lambda layout, texts: DenseDiffusion().edits(layout),
    "couple + bound": lambda layout, texts: [*coupled(layout, texts), *BoundedAttention().edits(layout)],
    "box constraint": boxed,
    "couple + box constraint": lambda layout, texts: [*coupled(layout, texts), *boxed(layout, texts)],
}


def sentences(clip, case: Layout) -> list[Tensor]:
    """What a user writes into a region: "a red circle on a white background", encoded. Phrases alone are no sentences
    to this model: it was trained on whole ones."""
    background = case.prompt[case.prompt.index(" on a ") :]
    articles = ["an" if phrase[0] in "aeiou" else "a" for phrase, _ in case.regions]
    texts = [f"{article} {phrase}{background}" for article, (phrase, _) in zip(articles, case.regions)]
    return [sampling.encode(clip, text)[0][0] for text in texts]


@dataclass(frozen=True)
class Shown:
    """The largest object inside a region's box, and which of the phrase's attributes it has."""

    color: bool
    texture: bool  # true too where the phrase names none

    @property
    def bound(self) -> bool:
        return self.color and self.texture


def texture_of(item: scorer.FoundObject) -> str:
    return TEXTURES[(0, 2, 1)[sum(item.light > edge for edge in TEXTURE_EDGES)]]


def shown(found: list[scorer.FoundObject], phrase: str, box: tuple) -> Shown | None:
    """What a region shows; None where it holds no object."""
    inside = {id(item): (item.mask & box_mask(box, item.mask.shape)).mean() for item in found}
    found = [item for item in found if inside[id(item)] >= MIN_AREA]
    if not found:
        return None
    item = max(found, key=lambda item: inside[id(item)])
    words = phrase.split()
    (color,) = (word for word in words if word in COLORS)
    texture = next((word for word in words if word in TEXTURES), None)
    return Shown(item.color == color, texture in (None, texture_of(item)))


def score(toy, edits_of: Callable, cases, seeds) -> dict[str, float]:
    """Means over cases x seeds, and the CPU seconds of a picture; pictures are kept under "images"."""
    model, clip, vae = toy
    scores, regions, images = [], [], []
    start = time.process_time()
    for case in cases:
        positive, layout = layout_of(clip, case.prompt, case.regions)
        patched = install(model, layout, edits_of(layout, sentences(clip, case)))
        drawn = sampling.sample(patched, vae, positive, sampling.encode(clip, ""), list(seeds))
        images.append(drawn)
        for image in drawn:
            scores.append(scorer.score_image(image, case.expected))
            found = scorer.find_objects(image)
            regions += [shown(found, phrase, box) for phrase, box in case.regions]
    seconds = (time.process_time() - start) / len(scores)
    filled = [region for region in regions if region is not None]
    summary = scorer.summarise(scores)
    return {
        "presence": summary["presence"][0],
        "filled": len(filled) / len(regions),
        "bound": float(np.mean([region.bound for region in filled])),
        "color": float(np.mean([region.color for region in filled])),
        "texture": float(np.mean([region.texture for region in filled])),
        "iou": summary["iou"][0],
        "leakage": summary["leakage"][0],
        "strange": float(np.mean([scorer.off_palette(image) for drawn in images for image in drawn])),
        "seconds": seconds,
        "images": images,
    }


def line(name: str, found: dict) -> str:
    """A row of a table in markdown."""
    shown_keys = ("presence", "filled", "bound", "color", "texture", "iou", "leakage", "strange")
    return f"| {name} | " + " | ".join(f"{found[key]:.3f}" for key in shown_keys) + f" | {found['seconds']:.1f} |"


HEAD = "| | presence | boxes filled | bound | colour | texture | IoU | leakage | strange pixels | s per picture |"
CASES = {"layouts": LAYOUTS, "swaps": SWAPS}
