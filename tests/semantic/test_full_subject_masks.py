"""The rows of masks that follow the subject in docs/results.md: BOXWRIGHT_FULL=1 and pytest -s."""

import os

import numpy as np
from styles import CASES, COUPLE, FOLLOWED, HEAD, changed_background, line, score

SEEDS = range(int(os.environ.get("SEEDS", 2)))
BOXES = "couple + Region LoRA"


def test_own_style_in_the_boxes_and_what_becomes_of_their_background(toy):
    print(f"\n{HEAD}\n|---|---|---|---|---|---|---|")
    scores = {}
    for name in (COUPLE, BOXES, FOLLOWED):
        scores[name] = score(toy, name, CASES, SEEDS)
        print(line(name, scores[name]), flush=True)
    for name in (BOXES, FOLLOWED):
        changes = [
            changed_background(before, after, case.boxes)
            for case, plain, drawn in zip(CASES, scores[COUPLE]["images"], scores[name]["images"])
            for before, after in zip(plain, drawn)
        ]
        whole, pattern = np.mean(changes, axis=0)
        print(f"{name}: background inside the boxes changed by {whole:.4f}, without its common tone by {pattern:.4f}")
    assert scores[FOLLOWED]["own"] >= scores[BOXES]["own"] - 0.1
