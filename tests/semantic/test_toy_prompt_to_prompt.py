"""Prompt-to-Prompt and the recorder on the toy model; the tables: test_full_prompt_to_prompt.py.

Thresholds lie well inside what was measured (docs/results.md).
"""

import numpy as np
import pytest
from edits import STEPS, SWAPS, draw, right_sources, score_edit, score_plain, things_in
from measure import layout_of
from pack.attention_patches.core.masks import resized
from pack.attention_patches.core.types import StepWindow
from pack.attention_patches.host.recorder import recorded
from pack.attention_patches.methods.prompt_to_prompt import PromptToPrompt
from pack.attention_patches.methods.recorder import Recording, Records
from toyworld import sampling, scorer
from toyworld.layouts import LAYOUTS

# Word -> a prompt with it, and what of the picture it should move (shares of the picture).
DIALS = {
    "striped": ("a large striped red heart on a black background", lambda x: (x.amin(-1) > 0.6).float().mean()),
    "large": ("a large blue circle on a white background", lambda x: sum(t.mean() for t in things_in(x))),
}


@pytest.mark.parametrize("kind, number", [("color", 2), ("texture", 3)])
def test_swapped_words_change_the_thing_and_keep_its_place(toy, kind, number):
    pair = SWAPS[kind][number]
    sources = right_sources(toy, pair[0], [0])
    (after,), (plain,) = score_edit(toy, kind, pair, [0]), score_plain(toy, kind, pair, sources)
    print(f"\n{pair[1]}: edited {after}, re-prompted {plain}")
    assert after.changed and after.iou >= 0.75 and after.psnr >= 35
    assert plain.iou < 0.65


def test_a_words_factor_is_a_dial(toy):
    less, more = dial(toy, "striped", (-2.0, 4.0), [0])
    assert more > 1.1 * less > 0


def test_a_phrases_heatmap_peaks_in_its_thing(toy):
    hits = peaks(toy, (0,))
    assert len(hits) >= 5 and np.mean(hits) >= 0.8


def dial(toy, word, factors, seeds):
    """What a word's factor in the target does while the source has it at 1: the mean measure for each factor."""
    prompt, measure = DIALS[word]
    found = []
    for factor in factors:
        method = PromptToPrompt(StepWindow(), None, weights=((word, factor),))
        found.append(float(np.mean([measure(image) for image in draw(toy, prompt, prompt, method, seeds)[1::2]])))
    print(f"\n{word}: {', '.join(f'{factor:g}: {value:.4f}' for factor, value in zip(factors, found))}", flush=True)
    return found


def peaks(toy, seeds):
    """Whether the heatmap of each phrase of the layouts is highest inside a thing of its colour, where there is one."""
    model, clip, vae = toy
    hits = []
    for case in LAYOUTS:
        positive, layout = layout_of(clip, case.prompt, [])
        records = Records(layout.prompt.tokens, Recording())
        patched, negative = recorded(model, layout, records), sampling.encode(clip, "")
        images = sampling.sample(patched, vae, positive, negative, seeds, steps=STEPS)
        for phrase, box in case.regions:
            maps = resized(records.latest.map_of(phrase), (256, 256))
            color = scorer.expected_object(phrase, box).color
            for image, single in zip(images, maps, strict=True):
                boxes = [found.box for found in scorer.find_objects(image) if found.color == color]
                if boxes:
                    y, x = divmod(int(single.argmax()), 256)
                    hits.append(any(scorer.box_mask(box, (256, 256))[y, x] for box in boxes))
    print(f"\nheatmap peaks inside the thing: {sum(hits)} of {len(hits)}")
    return hits
