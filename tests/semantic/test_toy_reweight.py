"""Reweighting on the toy model: the more a word counts, the more of what it says is in the picture."""

import numpy as np
import pytest
from measure import FULL, layout_of
from pack.attention_patches.host.install import install
from pack.attention_patches.methods.reweight import Reweight
from toyworld import sampling, scorer

WHOLE = (0.0, 0.0, 1.0, 1.0)
FACTORS = (-1.0, 0.0, 0.5, 1.0, 2.0) if FULL else (-1.0, 2.0)
SEEDS = range(8 if FULL else 4)


def mean_of(measure: str, images) -> float:
    """The mean of a property of the largest object over the pictures that have one."""
    found = [max(objects, key=lambda o: o.area) for objects in map(scorer.find_objects, images) if objects]
    assert len(found) >= 0.8 * len(images)
    return float(np.mean([getattr(o, measure) for o in found]))


@pytest.mark.parametrize(
    "prompt, word, measure, rise",
    [
        ("a striped red heart on a white background", "striped", "light", 0.1),
        ("a large blue circle on a white background", "large", "area", 0.02),
    ],
    ids=["texture", "size"],
)
def test_a_words_property_follows_its_factor(toy, prompt, word, measure, rise):
    model, clip, vae = toy
    phrase = prompt.split(" on ")[0].removeprefix("a ")
    positive, layout = layout_of(clip, prompt, [(phrase, WHOLE)])
    negative = sampling.encode(clip, "")
    values = []
    for factor in FACTORS:
        patched = install(model, layout, Reweight(((word, factor),)).edits(layout))
        values.append(mean_of(measure, sampling.sample(patched, vae, positive, negative, SEEDS)))
    print(f"\n{word}: {measure} " + " ".join(f"{value:.4f}" for value in values))
    assert values == sorted(values)
    assert values[-1] - values[0] > rise
