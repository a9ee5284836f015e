"""Pictures of the toy world's layouts with and without a method, scored; `pytest -s` prints the tables."""

from collections.abc import Callable, Iterable

from pack.attention_patches.host import tokenizers
from pack.attention_patches.host.run import install
from pack.attention_patches.types import Box, Layout, Region
from toyworld import sampling, scorer
from toyworld.layouts import LAYOUTS

SEEDS = tuple(range(8))
SHOWN = ("presence", "iou", "inside_mass", "leakage", "bound", "ap50")


def layout_of(clip, prompt: str, regions: Iterable[tuple[str, tuple]]) -> tuple[list, Layout]:
    """Conditioning and layout of a prompt; regions as (phrase, box) pairs."""
    return tokenizers.layout(clip, prompt, [Region(phrase, Box(*box)) for phrase, box in regions], False)


def score_layouts(toy, edits_of: Callable[[Layout], list], name: str, seeds=SEEDS) -> dict[str, tuple[float, float]]:
    """Four layouts x the seeds: {measure: (mean, standard deviation over the pictures)}."""
    model, clip, vae = toy
    scores = []
    for case in LAYOUTS:
        positive, layout = layout_of(clip, case.prompt, case.regions)
        patched = install(model, layout, edits_of(layout))
        images = sampling.sample(patched, vae, positive, sampling.encode(clip, ""), seeds)
        scores += [scorer.score_image(image, case.expected) for image in images]
    summary = scorer.summarise(scores)
    print(f"\n{name}: " + ", ".join(f"{key} {summary[key][0]:.3f} ± {summary[key][1]:.3f}" for key in SHOWN))
    return summary
