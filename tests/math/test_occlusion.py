"""Who stands in front, against the paper's sums written out number by number, and against what must hold of any."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from oracles import LEFT, layout, site
from pack.attention_patches.core.types import Box
from pack.attention_patches.methods.dense_diffusion import DenseDiffusion, fading
from pack.attention_patches.methods.occlusion import occluded
from pack.attention_patches.methods.region_prompt import RegionPrompt

WORDS = ["a", "red", "heart", "and", "a", "blue", "star"]
OWNED = [[2, 3], [6, 7]]
MIDDLE = Box(0.25, 0.0, 0.5, 1.0)
OPACITIES = [1.0, 0.8, 0.0, 0.35, 1.0]


def faded(density, place):
    """e^(-d M), for an infinite density too."""
    return 1.0 if place == 0 else math.exp(-density * place)


def paper(opacities, maps):
    """LaRender's weights of one cell, by its formula in the densities: of each object; the last one is in front."""
    densities = [math.inf if o == 1.0 else -math.log(1.0 - o) for o in opacities]
    weights = []
    for i, (density, place) in enumerate(zip(densities, maps)):
        through = math.prod(faded(d, m) for d, m in zip(densities[i + 1 :], maps[i + 1 :]))
        weights.append(through * (1.0 - faded(density, 1.0)) * place)
    return weights


@pytest.mark.parametrize("opacities", [*itertools.product([0.0, 0.6, 1.0], repeat=3)])
def test_the_papers_weights_with_the_prompt_as_the_last_behind_all(opacities):
    for inside in itertools.product([0.0, 1.0], repeat=3):
        weights = paper([1.0, *opacities], [1.0, *inside])
        expected = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        shares, rest = occluded(torch.tensor(inside).double()[:, None], torch.tensor(opacities).double())
        torch.testing.assert_close(torch.cat([rest, shares])[:, 0], expected)


def test_a_cell_that_is_covered_in_part_has_the_mean_over_its_points():
    """Each point of the cell lies in a region or does not: the formula's mean over all ways, as likely as they are."""
    g = torch.Generator().manual_seed(0)
    cover = torch.rand(5, 7, generator=g, dtype=torch.float64)
    shares, rest = occluded(cover, torch.tensor(OPACITIES).double())
    for cell in range(7):
        mean, left = torch.zeros(5, dtype=torch.float64), 0.0
        for inside in itertools.product([0.0, 1.0], repeat=5):
            chance = math.prod(c if i else 1 - c for c, i in zip(cover[:, cell].tolist(), inside))
            mean += chance * torch.tensor(paper(OPACITIES, inside), dtype=torch.float64)
            left += chance * math.prod(1.0 - o for o, i in zip(OPACITIES, inside) if i)
        torch.testing.assert_close(shares[:, cell], mean)
        assert rest[0, cell] == pytest.approx(left)


@pytest.mark.parametrize("count", [1, 2, 64])
def test_any_regions_share_out_the_whole(count):
    g = torch.Generator().manual_seed(1)
    cover, opacity = torch.rand(count, 30, generator=g), torch.rand(count, generator=g).round(decimals=1)
    cover[:, :3], cover[:, 3:6] = 0.0, 1.0
    shares, rest = occluded(cover, opacity)
    assert shares.min() >= 0 and rest.min() >= 0
    torch.testing.assert_close(shares.sum(0) + rest[0], torch.ones(30))


# In the methods


def two(opacities, areas=(LEFT, MIDDLE), **options):
    lay = layout(list(areas), OWNED, WORDS)
    pairs = zip(lay.regions, opacities, strict=True)
    return replace(lay, regions=tuple(replace(region, opacity=o, **options) for region, o in pairs))


def rows(method, lay, **where):
    place = site(lay, **where)
    return method.weights(place).view(len(lay.regions) + 1, *place.grid)[:, 0]


def couple(**settings):
    return RegionPrompt(**{"base_ratio": 0.0, "overlap": "occlude", **settings})


def test_the_later_region_is_in_front_and_hides_by_its_opacity():
    """The middle box covers the second cell of the left one."""
    expected = torch.tensor([[1.0, 0.4, 0.0, 0.0], [0.0, 0.6, 0.6, 0.0], [0.0, 0.0, 0.4, 1.0]])
    torch.testing.assert_close(rows(couple(), two([1.0, 0.6])), expected)
    expected = torch.tensor([[0.3, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.7, 0.0, 0.0, 1.0]])
    torch.testing.assert_close(rows(couple(), two([0.3, 1.0])), expected)
    torch.testing.assert_close(rows(couple(base_ratio=0.25), two([0.3, 1.0])), 0.75 * expected)


def test_opaque_regions_lie_on_each_other_as_in_order():
    for settings in ({}, {"feather": 0.3}, {"strength": 0.7}):
        expected = rows(RegionPrompt(base_ratio=0.0, overlap="order", **settings), two([1.0, 1.0]))
        torch.testing.assert_close(rows(couple(**settings), two([1.0, 1.0])), expected)


def test_other_choices_know_no_opacity():
    for overlap in ("order", "blend"):
        method = RegionPrompt(base_ratio=0.0, overlap=overlap)
        assert torch.equal(rows(method, two([0.2, 0.4])), rows(method, two([1.0, 1.0])))


def test_what_is_hidden_of_a_region_hides_its_words_in_the_prompt_too():
    """Bias on the scores of the prompt's own words, while they are confined: T of their region, in its box."""

    def odds(overlap, opacities):
        edit = RegionPrompt(overlap=overlap, confine_end=1.0).edits(two(opacities))[0]
        return edit.fn(torch.zeros(1, 1, 16, 16), site(two(opacities))).exp()[0, 0].view(4, 4, 16)[0]

    order, clear = odds("order", [1.0, 0.6]), odds("occlude", [1.0, 0.6])
    back, front, free = OWNED[0], OWNED[1], [1, 4, 5]
    torch.testing.assert_close(clear[:, back], torch.tensor([1.0, 0.4, 0.0, 0.0])[:, None].expand(-1, 2))
    assert torch.equal(clear[:, front], order[:, front]) and torch.equal(clear[:, free], order[:, free])
    assert order[1, back].tolist() == [1.0, 1.0]
    assert odds("occlude", [1.0, 1.0])[1, back].tolist() == [0.0, 0.0]


def scores(kind):
    return torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(3)) * 3


def dense(lay, kind, overlap):
    (edit,) = (e for e in DenseDiffusion(overlap=overlap, own_phrases=False).edits(lay) if e.kind == kind)
    return edit.fn(scores(kind), replace(site(lay), kind=kind, progress=0.1))[0]


@pytest.mark.parametrize("kind", ["image_text", "image_image"])
def test_dense_with_opaque_regions_is_as_in_order(kind):
    lay = two([1.0, 1.0])
    torch.testing.assert_close(dense(lay, kind, "occlude"), dense(lay, kind, "order"))


@pytest.mark.parametrize("kind", ["image_text", "image_image"])
def test_dense_goes_to_a_place_between_the_ends_of_a_row(kind):
    """Number by number: a cell has shares of segments, and a word (or cell) as much of them as belongs to it."""
    lay, weight = two([1.0, 0.6]), {"image_text": 1.0, "image_image": 0.3}[kind]
    columns = [[1.0, 0.4, 0.0, 0.0], [0.0, 0.6, 0.6, 0.0], [0.0, 0.0, 0.4, 1.0]]  # of every row of cells
    cells = [[own[i % 4] for i in range(16)] for own in columns]
    sizes = [sum(own) / 16 for own in cells]
    owner = {column: segment for segment, own in enumerate([*OWNED, [1, 4, 5]]) for column in own}
    found, before = dense(lay, kind, "occlude"), scores(kind)[0]
    for head, q in itertools.product(range(2), range(16)):
        row = before[head, q]
        shares = [own[q] for own in cells]
        amount = weight * fading(0.1) * (1.0 - sum(size * share for size, share in zip(sizes, shares)))
        for k in range(16):
            if kind == "image_text":
                place = shares[owner[k]] if k in owner else 0.0
            else:
                place = sum(math.sqrt(share * own[k]) for share, own in zip(shares, cells))
            target = row.min() + place * (row.max() - row.min())
            assert found[head, q, k] == pytest.approx(float(row[k] + amount * (target - row[k])), abs=1e-5)
