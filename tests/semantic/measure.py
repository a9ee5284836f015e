"""Pictures of the toy world's layouts with and without a method, scored; `pytest -s` prints the tables.

Two seeds for each layout, or with BOXWRIGHT_FULL=1 the eight of docs/results.md.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from pack.attention_patches.core.types import Box, Layout, Region
from pack.attention_patches.host.install import install
from pack.attention_patches.host.text.layout import encode_layout
from torch import Tensor
from toyworld import sampling, scorer
from toyworld.layouts import LAYOUTS

FULL = bool(os.environ.get("BOXWRIGHT_FULL"))
SEEDS = tuple(range(8 if FULL else 2))
# The same layouts turned half round: other boxes of the same sizes.
ELSEWHERE = [
    replace(case, regions=tuple((phrase, (1 - x - w, 1 - y - h, w, h)) for phrase, (x, y, w, h) in case.regions))
    for case in LAYOUTS
]
SHOWN = ("presence", "iou", "inside_mass", "leakage", "bound", "ap50", "unexpected")


def layout_of(clip, prompt: str, regions: Iterable[tuple[str, tuple]]) -> tuple[list, Layout]:
    """Conditioning and layout of a prompt; regions as (phrase, box) pairs."""
    return encode_layout(clip, prompt, [Region(phrase, Box(*box)) for phrase, box in regions], False)


def draw(toy, edits_of: Callable[[Layout], list], seeds=SEEDS, layouts=LAYOUTS) -> list[Tensor]:
    """The pictures of each layout, [seeds, H, W, 3]."""
    model, clip, vae = toy
    pictures = []
    for case in layouts:
        positive, layout = layout_of(clip, case.prompt, case.regions)
        patched = install(model, layout, edits_of(layout))
        pictures.append(sampling.sample(patched, vae, positive, sampling.encode(clip, ""), seeds))
    return pictures


def score(pictures: Sequence[Tensor], name: str, layouts=LAYOUTS) -> dict[str, tuple[float, float]]:
    """{measure: (mean, standard deviation)} over the pictures; "strange" is the share of pixels of no known colour,
    "background" of those of the background that the prompt names."""
    scores = [scorer.score_image(image, case.expected) for case, own in zip(layouts, pictures) for image in own]
    summary = scorer.summarise(scores)
    print(f"\n{name}: " + ", ".join(f"{key} {summary[key][0]:.3f} ± {summary[key][1]:.3f}" for key in SHOWN), end="")
    strange = [scorer.off_palette(image) for own in pictures for image in own]
    summary["strange"] = (float(np.mean(strange)), float(np.std(strange)))
    ground = [scorer.background_share(image, case.background) for case, own in zip(layouts, pictures) for image in own]
    summary["background"] = (float(np.mean(ground)), float(np.std(ground)))
    print(
        f", strange {summary['strange'][0]:.4f} (most {max(strange):.3f}), "
        f"background {summary['background'][0]:.3f} (least {min(ground):.2f})"
    )
    return summary


def score_layouts(toy, edits_of: Callable[[Layout], list], name: str, seeds=SEEDS) -> dict[str, tuple[float, float]]:
    """Four layouts x the seeds."""
    return score(draw(toy, edits_of, seeds), name)
