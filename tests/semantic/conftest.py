"""What several methods are compared with."""

import pytest


@pytest.fixture(scope="session")
def unpatched(toy):
    """The toy world's layouts without any method, scored."""
    from measure import score_layouts  # here, since without a host nothing of it can be imported

    return score_layouts(toy, lambda layout: [], "unpatched")
