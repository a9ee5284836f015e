"""Flow Edit on the toy model, against exact truth (table: test_full_flow_edit.py)."""

import pytest
from flow_edits import Batch
from picture_edits import summary


@pytest.fixture(scope="module")
def batch(toy):
    return Batch(toy, (17, 18))


def test_the_named_object_changes_and_the_rest_stays(batch):
    scores, cost = batch.flow_edit("FlowEdit", True, steps=10)
    summary("FlowEdit", scores)
    assert cost == 30
    assert all(score.changed and score.kept and score.psnr >= 40 for score in scores)


def test_strength_goes_from_nothing_to_another_thing(batch):
    """One strength means the same for all: hardly any noise changes hardly anything, much of it the object."""
    for method in ("FlowEdit", "Uni-Edit"):
        low, high = (batch.flow_edit(method, False, steps=6, strength=strength)[0] for strength in (0.1, 0.8))
        assert min(score.psnr for score in low) > max(score.psnr for score in high)
        assert not any(score.changed for score in low)
