"""Region prompts on the toy model: attributes stay with their regions.

Thresholds lie well inside what was measured (docs/results.md); the full tables: test_full_region_prompt.py.
"""

import pytest
from attributes import HEAD, METHODS, SWAPS, line, score

FEW = (0,)


@pytest.fixture(scope="module")
def found(toy):
    print(f"\n{HEAD}")
    scores = {}
    for name in ("unpatched", "couple"):
        scores[name] = score(toy, METHODS[name], SWAPS[::2], FEW)
        print(line(name, scores[name]), flush=True)
    return scores


def test_what_a_region_shows_has_the_attributes_of_its_phrase(found):
    assert found["couple"]["filled"] >= 0.4
    assert found["couple"]["bound"] >= 0.8
    assert found["couple"]["strange"] < 0.02


def test_colours_stay_in_their_regions(found):
    assert found["couple"]["leakage"] < found["unpatched"]["leakage"] - 0.3
