"""What several methods are compared with; and which files draw tables of hours, for docs/results.md alone."""

import os

import pytest

collect_ignore_glob = [] if os.environ.get("BOXWRIGHT_FULL") else ["test_full_*.py"]


@pytest.fixture(scope="session")
def unpatched(toy):
    """The toy world's layouts without any method, scored."""
    from measure import score_layouts  # here, since without a host nothing of it can be imported

    return score_layouts(toy, lambda layout: [], "unpatched")
