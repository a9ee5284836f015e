"""Masks of words in pictures, against exact truth."""

from statistics import mean

from flow_edits import thing
from pack.nodes.find_word import BoxwrightFindWord
from picture_edits import defaults, edit, iou


def find(toy, number, which):
    """IoU of the mask of one of the two objects with its own area and with that of the other."""
    model, clip, vae = toy
    job = edit(number)
    phrase = thing(job.objects[which])
    mask, heat, report = BoxwrightFindWord.execute(
        model, clip, image=job.picture, vae=vae, **defaults(BoxwrightFindWord, prompt=job.source, phrase=phrase, seed=1)
    ).result
    assert mask.shape == (1, 256, 256) and heat.shape == (1, 256, 256, 3) and "4 model evaluations" in report
    return iou(mask[0], job.areas[which]), iou(mask[0], job.areas[1 - which])


def test_the_mask_lies_on_the_thing_that_the_word_names(toy):
    found = [find(toy, number, which) for number in (17, 18, 25) for which in (0, 1)]
    print("\nIoU with the thing, with the other:", [tuple(round(value, 2) for value in pair) for pair in found])
    assert mean(own for own, _ in found) >= 0.4
    assert mean(other for _, other in found) <= 0.1
