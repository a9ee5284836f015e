"""What several methods are compared with."""

import pytest
from measure import score_layouts


@pytest.fixture(scope="session")
def unpatched(toy):
    """The toy world's layouts without any method, scored."""
    return score_layouts(toy, lambda layout: [], "unpatched")
