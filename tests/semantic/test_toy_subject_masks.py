"""Masks that follow the subject on the toy: they hold what is drawn in the box, and leave out most of its background.

Thresholds lie well inside what was measured (docs/results.md); styles and background: test_full_subject_masks.py.
"""

import numpy as np
from pack.attention_patches.core.masks import resized
from pack.attention_patches.methods.subject_masks import SubjectMasks
from styles import CASES, FOLLOWED, layout_of, plans, tensors
from toyworld import sampling, scorer
from toyworld.scorer import box_mask


def test_the_masks_hold_the_subject(toy, monkeypatch):
    made, original, case = [], SubjectMasks._masks, CASES[2]
    monkeypatch.setattr(SubjectMasks, "_masks", lambda self, seen: made.append(original(self, seen)) or made[-1])
    positive, layout = layout_of(toy[1], case)
    model, conditioning = plans(toy, case, positive, layout, tensors())[FOLLOWED]()
    images = sampling.sample(model, toy[2], conditioning, sampling.encode(toy[1], ""), [0, 1, 2], steps=20)
    ((masks, _),) = made
    held, left = [], []
    for image, own in zip(images, resized(masks.flatten(0, 1), tuple(images.shape[1:3])).unflatten(0, masks.shape[:2])):
        objects = scorer.find_objects(image)
        for mask, box in zip(np.asarray(own), case.boxes):
            inside = box_mask(box, mask.shape)
            thing = max((item.mask & inside for item in objects), key=np.sum, default=np.zeros_like(inside))
            if thing.sum() >= 0.05 * inside.sum():
                held.append(mask[thing].mean())
                left.append(mask[inside].mean())
                print(f"object {thing.sum() / inside.sum():.2f} of the box, mask {left[-1]:.2f}, holds {held[-1]:.2f}")
    assert len(held) >= 4 and min(held) > 0.8 and max(left) < 0.6
