"""The tables of docs/results.md; part of the suite with BOXWRIGHT_FULL=1 only, about 40 minutes on a quiet core.

BOXWRIGHT_FULL=1 python tools/workbench.py test -- tests/semantic/test_full_region_prompt.py -s
"""

import pytest
from attributes import CASES, HEAD, METHODS, line, score

SEEDS = {"layouts": range(8), "swaps": range(4)}


@pytest.mark.parametrize("kind", CASES)
def test_table(toy, kind):
    print(f"\n{kind}\n{HEAD}")
    found = {}
    for name, edits in METHODS.items():
        found[name] = score(toy, edits, CASES[kind], SEEDS[kind])
        print(line(name, found[name]), flush=True)
    best = max(found[name]["iou"] for name in METHODS if name != "couple + box constraint")
    assert found["couple + box constraint"]["iou"] > best
    assert found["couple"]["bound"] >= 0.95
