"""The table of Region LoRA in docs/results.md: BOXWRIGHT_FULL=1 and pytest -s."""

import os

from styles import CASES, HEAD, NAMES, line, score

SEEDS = range(int(os.environ.get("SEEDS", 4)))


def test_the_table(toy):
    print(f"\n{HEAD}\n|---|---|---|---|---|---|---|")
    scores = {}
    for name in sorted(NAMES, key=lambda name: "Region LoRA" not in name):
        scores[name] = score(toy, name, CASES, SEEDS)
        print(line(name, scores[name]), flush=True)
    assert scores["Region LoRA"]["own"] >= 0.85
