"""Which cells of a picture are redrawn when."""

import pytest
import torch
from pack.attention_patches.core.types import Box, BoxwrightError, Region
from pack.attention_patches.samplers.region_strength import RegionStrength, open_cells

REGIONS = (Region("sky", Box(0, 0, 1, 0.5)), Region("sun", Box(0.5, 0, 0.5, 0.5)))


def test_later_regions_lie_on_top_and_the_background_is_elsewhere():
    found = RegionStrength(0.1, 0.0).map_of(REGIONS, (0.4, 0.9), (4, 6))
    assert found[:2, :3].unique().tolist() == pytest.approx([0.4])
    assert found[:2, 3:].unique().tolist() == pytest.approx([0.9])
    assert found[2:].unique().tolist() == pytest.approx([0.1])
    weaker = RegionStrength(0.5, 0.0).map_of(REGIONS, (0.9, 0.2), (4, 6))
    assert float(weaker[0, 5]) == pytest.approx(0.2) and float(weaker[0, 0]) == pytest.approx(0.9)


def test_strengths_pass_into_each_other_over_the_feather():
    column = RegionStrength(0.0, 0.25).map_of(REGIONS[:1], (0.8,), (8, 4))[:, 0]
    torch.testing.assert_close(column, torch.tensor([0.8, 0.8, 0.8, 0.8, 0.4, 0.0, 0.0, 0.0]))
    own = (Region("sky", Box(0, 0, 1, 0.5), feather=0.0),)
    assert RegionStrength(0.0, 0.25).map_of(own, (0.8,), (8, 4))[4, 0] == 0.0


def test_a_cell_opens_at_its_own_level_and_stays_open():
    strengths = torch.tensor([0.0, 0.25, 0.5, 1.0])
    opened = [open_cells(strengths, progress).tolist() for progress in (0.0, 0.5, 0.75, 0.999999)]
    assert opened == [[0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]]


@pytest.mark.parametrize("strengths, words", [((0.5,), "1 strength for 2 regions"), ((0.5, 1.5), '"sun" is 1.5')])
def test_strengths_that_do_not_fit_are_refused(strengths, words):
    with pytest.raises(BoxwrightError, match=words):
        RegionStrength().map_of(REGIONS, strengths, (4, 4))


@pytest.mark.parametrize("numbers", [{"background": -0.1}, {"feather": 2.0}])
def test_settings_out_of_range_are_refused(numbers):
    with pytest.raises(BoxwrightError, match=next(iter(numbers))):
        RegionStrength(**numbers)
