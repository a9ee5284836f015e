"""The table of Flow Edit in docs/results.md; part of the suite with BOXWRIGHT_FULL=1 only, an hour on a quiet core.

    BOXWRIGHT_FULL=1 python tools/workbench.py test -- tests/semantic/test_full_flow_edit.py -s
"""

import pytest
from flow_edits import METHODS, Batch
from picture_edits import summary


@pytest.fixture(scope="module")
def batches(toy):
    return [Batch(toy, tuple(range(first, first + 8))) for first in range(0, 32, 8)]


@pytest.mark.parametrize("method, masked", [
    ("FlowEdit", True), ("FlowEdit", False), ("FlowAlign", True), ("Uni-Edit", True), ("image to image", True),
    ("FlowAlign", False), ("Uni-Edit", False), ("image to image", False),
])  # fmt: skip
def test_edits(batches, method, masked):
    scores = []
    for batch in batches:
        own, cost = batch.flow_edit(method, masked) if method in METHODS else batch.image_to_image(masked)
        for number, score in zip(batch.numbers, own):
            print(f"\n{number}: {score}", end="", flush=True)
        scores += own
    line = summary(f"{method}, {'masked' if masked else 'everywhere'}", scores)
    print(f"{cost:g} model evaluations for each picture", flush=True)
    assert "32 edits" in line
