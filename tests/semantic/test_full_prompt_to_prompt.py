"""The tables of docs/results.md; part of the suite with BOXWRIGHT_FULL=1 only, about half an hour on a quiet core.

BOXWRIGHT_FULL=1 python tools/workbench.py test -- tests/semantic/test_full_prompt_to_prompt.py -s
"""

import pytest
from edits import SWAPS, right_sources, score_edit, score_plain, summary
from test_toy_prompt_to_prompt import DIALS, dial, peaks

TRIED = tuple(range(6))  # seeds, of which the first USED whose source is drawn right are edited
USED = 2


@pytest.mark.parametrize("kind", SWAPS)
def test_swaps(toy, kind):
    rows = {"with local blend": [], "without local blend": [], "plain re-prompting": []}
    for pair in SWAPS[kind]:
        right = right_sources(toy, pair[0], TRIED)
        print(f"\n{pair[0]} -> {pair[1]}: source right with seeds {list(right)} of {len(TRIED)}", flush=True)
        sources = dict(list(right.items())[:USED])
        if sources:
            rows["with local blend"] += score_edit(toy, kind, pair, list(sources))
            rows["without local blend"] += score_edit(toy, kind, pair, list(sources), blend=False)
            rows["plain re-prompting"] += score_plain(toy, kind, pair, sources)
    for name, scores in rows.items():
        for one in scores:
            print(one)
        summary(f"{kind}, {name}", scores)


@pytest.mark.parametrize("word", DIALS)
def test_a_words_factor(toy, word):
    dial(toy, word, (-2.0, 0.0, 1.0, 2.0, 4.0), [0, 1])


def test_heatmaps(toy):
    peaks(toy, (0, 1, 2, 3))
