"""The tables of docs/results.md; part of the suite with BOXWRIGHT_FULL=1 only, about half an hour on a quiet core.

BOXWRIGHT_FULL=1 python tools/workbench.py test -- tests/semantic/test_full_diff_edit.py -s
"""

from statistics import mean

import pytest
from picture_edits import edit, edit_picture, find_mask, round_trip, summary

EDITS = range(32)
PICTURES = range(4)  # of the round trip


def test_masks(toy):
    found = [find_mask(toy, edit(number))[0] for number in EDITS]
    own, other = zip(*found)
    print(f"\nmask: IoU with the object {mean(own):.3f} (least {min(own):.2f}), with the other one {mean(other):.3f}")
    print("IoU of each:", " ".join(f"{value:.2f}" for value in own))


def test_edits(toy):
    scores = []
    for number in EDITS:
        scores.append(edit_picture(toy, edit(number), number, steps=20))
        print(f"\n{number}: {edit(number).source} -> {edit(number).target}")
        for name, score in scores[-1].items():
            print(f"    {name}: {score}", flush=True)
    for name in scores[0]:
        summary(name, [score[name] for score in scores])


@pytest.mark.parametrize("refinements", [0, 1])
def test_round_trip(toy, refinements):
    for steps in (5, 10, 20, 30, 50):
        values = [round_trip(toy, edit(number), steps, refinements) for number in PICTURES]
        print(f"\n{steps} steps, {refinements} refinements: {mean(values):.1f} dB (least {min(values):.1f})")
