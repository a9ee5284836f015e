"""The table of Flow Edit in docs/results.md; part of the suite with BOXWRIGHT_FULL=1 only, an hour on a quiet core.

BOXWRIGHT_FULL=1 python tools/workbench.py test -- tests/semantic/test_full_flow_edit.py -s
"""

import pytest
from flow_edits import METHODS, Batch
from picture_edits import summary


@pytest.fixture(scope="module")
def batches(toy):
    return [Batch(toy, tuple(range(first, first + 8))) for first in range(0, 32, 8)]


@pytest.mark.parametrize("method, mask", [
    ("FlowEdit", "difference"), ("FlowEdit", "word"), ("FlowEdit", None), ("FlowAlign", "word"), ("Uni-Edit", "word"),
    ("image to image", "word"), ("FlowAlign", None), ("Uni-Edit", None), ("image to image", None),
])  # fmt: skip
def test_edits(batches, method, mask):
    scores = []
    for batch in batches:
        own, cost = batch.flow_edit(method, mask) if method in METHODS else batch.image_to_image(mask)
        for number, score in zip(batch.numbers, own):
            print(f"\n{number}: {score}", end="", flush=True)
        scores += own
    line = summary(f"{method}, {f'mask of the {mask}' if mask else 'everywhere'}", scores)
    print(f"{cost:g} model evaluations for each picture", flush=True)
    assert "32 edits" in line
