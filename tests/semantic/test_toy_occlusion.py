"""Region prompts on the toy model: of two things that overlap, the front one is whole and the back one cut.

Four pairs, or with BOXWRIGHT_FULL=1 the table of docs/results.md. Thresholds lie inside what was measured.
"""

import pytest
from measure import FULL
from overlaps import HEAD, PAIRS, line, score
from pack.attention_patches.methods.region_prompt import RegionPrompt

SEEDS = (0,)


@pytest.fixture(scope="module")
def found(toy):
    """By overlap; "unpatched" = without region prompts."""
    print(f"\n{HEAD}")
    scores = {}
    for overlap in ("unpatched", "blend", "order", "occlude") if FULL else ("blend", "occlude"):

        def edits(layout, texts, overlap=overlap):
            return [] if overlap == "unpatched" else RegionPrompt(overlap=overlap).edits(layout, texts)

        scores[overlap] = score(toy, edits, SEEDS, PAIRS if FULL else PAIRS[:4])
        print(line(overlap, scores[overlap]), flush=True)
    return scores


def test_what_is_in_front_has_what_both_could_have(found):
    assert found["occlude"]["hidden"] <= 0.1
    assert found["occlude"]["front"] >= 0.8
    assert found["occlude"]["right"] >= 0.5


def test_where_all_count_nobody_is_in_front(found):
    assert found["blend"]["right"] <= found["occlude"]["right"] - 0.25
