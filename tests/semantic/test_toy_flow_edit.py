"""Flow Edit on the toy model, against exact truth (table: test_full_flow_edit.py)."""

import pytest
from flow_edits import Batch
from picture_edits import summary


@pytest.fixture(scope="module")
def batch(toy):
    return Batch(toy, (17, 18))


@pytest.mark.parametrize("mask", ["difference", "word"])
def test_the_named_object_changes_and_the_rest_stays(batch, mask):
    scores, cost = batch.flow_edit("FlowEdit", mask, steps=10)
    summary(f"FlowEdit, mask of the {mask}", scores)
    assert cost == 30
    assert all(score.changed and score.kept and score.psnr >= 40 for score in scores)


def test_strength_is_how_much_may_change(batch):
    """One strength means the same for all methods: with hardly any noise the rest stays, with much of it less so."""
    for method in ("FlowEdit", "Uni-Edit"):
        low, high = (batch.flow_edit(method, None, steps=6, strength=strength)[0] for strength in (0.1, 0.8))
        assert min(score.psnr for score in low) > max(score.psnr for score in high)
