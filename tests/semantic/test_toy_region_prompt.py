"""Region prompts on the toy model: attributes stay with their regions.

Thresholds lie well inside what was measured (docs/results.md); the full tables: full_region_prompt.py.
"""

import pytest
from attributes import HEAD, METHODS, SWAPS, line, score

FEW = (0, 1)


@pytest.fixture(scope="module")
def found(toy):
    print(f"\n{HEAD}")
    scores = {}
    for name in ("unpatched", "couple", "dense"):
        scores[name] = score(toy, METHODS[name], SWAPS[::2], FEW)
        print(line(name, scores[name]), flush=True)
    return scores


def test_the_couple_binds_attributes_to_their_regions(found):
    assert found["couple"]["bound"] >= 0.8
    assert found["couple"]["color"] > found["unpatched"]["color"] + 0.2
    assert found["couple"]["filled"] >= found["unpatched"]["filled"]
    assert found["couple"]["strange"] < 0.03


def test_dense_moves_colours_into_their_regions(found):
    assert found["dense"]["color"] > found["unpatched"]["color"] + 0.1
