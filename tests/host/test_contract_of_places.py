"""The adapters' contract, where it happens: grids, areas, crops, reference pictures."""

from math import prod

import pytest
import tiny_models as tiny
import torch
from comfy_extras import nodes_model_downscale
from contract import (
    UNETS,
    conds_of_first_step,
    every_family,
    every_family_with_a_text_of_its_own,
    rectified,
    texts_edited,
    watching,
)
from pack.attention_patches.host.attention import attend
from pack.attention_patches.host.attention.calls import IncompatiblePatchError
from pack.attention_patches.host.families import adapter_for
from pack.attention_patches.host.install import install


@every_family
@pytest.mark.parametrize("size", [(16, 24), (33, 57), (8, 8)])
def test_sites_know_their_grid(models, layout, family, size, monkeypatch):
    monkeypatch.setattr(attend, "WORK_BYTES", 2**30)  # in one piece
    seen = []
    patched = install(models[family], layout, [watching(seen)])
    if tiny.FAMILIES[family].even:
        size = tuple(side + side % 2 for side in size)
    noise = tiny.latent(family, size=size, batch=4)
    out = tiny.run(family, patched, tiny.conditioning(family, layout.prompt, layout.key), noise=noise, steps=1)
    assert out.shape == noise.shape
    factors = adapter_for(models[family]).factors
    assert {site.level for site, _ in seen} == set(range(len(factors)))
    for site, shape in seen:
        factor = factors[site.level]
        assert site.grid == (-(-size[0] // factor), -(-size[1] // factor))
        assert shape[0] == 4 and shape[2] == site.grid[0] * site.grid[1] and shape[3] == 77
        assert site.view.width == pytest.approx(site.grid[1] * factor / size[1])
        assert site.levels == len(factors) and site.layout is layout
    names = {site.layer for site, _ in seen}
    expected = tiny.FAMILIES[family].layers
    assert expected <= names if family in UNETS else expected == names


@every_family
def test_an_area_conditioning_sees_its_own_part_of_the_regions(models, layout, family):
    seen = []
    patched = install(models[family], layout, [watching(seen)])
    area = (8, 12, 4, 12)  # height, width, y, x in latent cells of 16 x 24
    positive = tiny.conditioning(family, layout.prompt, layout.key, area=area, strength=1.0)
    tiny.run(family, patched, positive, steps=1)
    assert seen
    for site, _ in seen:
        assert (site.view.x, site.view.y) == (12 / 24, 4 / 16)
        assert (site.view.width, site.view.height) == pytest.approx((12 / 24, 8 / 16))


def test_an_area_with_frames_is_the_same_part_of_the_picture(models, layout):
    seen = []
    patched = install(models["qwen"], layout, [watching(seen)])
    area = (1, 8, 12, 0, 4, 12)  # frames, height, width, first frame, y, x
    tiny.run("qwen", patched, tiny.conditioning("qwen", layout.prompt, layout.key, area=area), steps=1)
    views = {(site.view.x, site.view.y, site.view.width, site.view.height) for site, _ in seen}
    assert views == {(0.5, 0.25, 0.5, 0.5)}


@every_family_with_a_text_of_its_own
@pytest.mark.parametrize("marked", [True, False])
def test_the_negative_copy_of_an_area_is_left_alone(models, layout, family, marked):
    """For an area in the positive, the host copies the entry, identity and all, into the negative."""
    seen = []
    key = layout.key if marked else None
    positive = tiny.conditioning(family, layout.prompt, key, area=(16, 12, 0, 0), strength=1.0)
    patched = install(models[family], layout, [*rectified(layout), texts_edited(seen)])
    plain = conds_of_first_step(family, models[family], positive)
    edited = conds_of_first_step(family, patched, positive)
    assert torch.equal(plain[1], edited[1]) and not torch.equal(plain[0], edited[0])
    assert len(seen) == 1 and torch.equal(seen[0], layout.prompt.embedding)


@every_family_with_a_text_of_its_own
def test_the_positive_copy_of_a_negative_area_is_edited_like_the_positive(models, layout, family):
    """The other way round: the copy has the negative's name and the positive's text, and counts in that area."""
    seen = []
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    negative = tiny.conditioning(family, tiny.text(seed=2), seed=6, area=(16, 12, 0, 0), strength=1.0)
    negative += tiny.conditioning(family, tiny.text(seed=3), seed=6)
    tiny.run(family, install(models[family], layout, [texts_edited(seen)]), positive, negative, steps=1)
    assert len(seen) == 2 and all(torch.equal(text, layout.prompt.embedding) for text in seen)


@every_family
def test_a_part_of_the_latent_that_nobody_names_is_refused(models, layout, family):
    """Tiling packs call the model on pieces of the latent; where a piece lies cannot be known."""
    model = models[family].clone()

    def tiles(apply_model, args):
        halves = [apply_model(x, args["timestep"], **args["c"]) for x in args["input"].chunk(2, dim=-1)]
        return torch.cat(halves, dim=-1)

    model.set_model_unet_function_wrapper(tiles)
    patched = install(model, layout, rectified(layout))
    with pytest.raises(IncompatiblePatchError, match="16x12 latent cells instead of 16x24"):
        tiny.run(family, patched, tiny.conditioning(family, layout.prompt, layout.key), steps=1)


@pytest.mark.parametrize("family", ["sd15", "sd2"])
@pytest.mark.parametrize("downscale", [1.5, 2.0])
def test_deep_shrink_keeps_places(models, layout, family, downscale):
    """The host's PatchModelAddDownscale shrinks features by any factor; they still show the whole image."""
    node = nodes_model_downscale.PatchModelAddDownscale
    model = node.execute(models[family], 2, downscale, 0.0, 0.9, True, "bicubic", "bicubic")[0]
    seen = []
    patched = install(model, layout, [watching(seen)])
    tiny.run(family, patched, tiny.conditioning(family, layout.prompt, layout.key), steps=1)
    assert (round(8 / downscale), round(12 / downscale)) in {site.grid for site, _ in seen}
    for site, shape in seen:
        assert shape[2] == site.grid[0] * site.grid[1]
        assert 1.0 <= site.view.width <= 1.0 + 2 / site.grid[1] and 1.0 <= site.view.height <= 1.0 + 2 / site.grid[0]


@pytest.mark.parametrize("family", [family for family in tiny.JOINT if tiny.FAMILIES[family].references])
def test_reference_images_behind_the_image_are_not_edited(models, layout, family):
    seen = []
    patched = install(tiny.probe(models[family], seen), layout, rectified(layout))
    with_reference = {"reference_latents": [tiny.latent(family, size=(8, 8))]}
    if tiny.FAMILIES[family].reference_method:
        with_reference["reference_latents_method"] = tiny.FAMILIES[family].reference_method
    positive = tiny.conditioning(family, layout.prompt, layout.key, **with_reference)
    negative = tiny.conditioning(family, tiny.text(seed=2), **with_reference)
    tiny.run(family, patched, positive, negative, steps=1)
    masks = [args[4] for args, _, _ in seen if len(args) > 4 and args[4] is not None]
    (text, start), image = tiny.places(family), prod(tiny.tokens(family))
    assert masks
    for mask in masks:
        assert mask.shape[-2:] == (start + image + prod(tiny.tokens(family, (8, 8))),) * 2
        assert (mask[..., start : start + image, text : text + 77] < -1e3).any()
        mask[..., start : start + image, text : text + 77] = 0
        assert not mask.any()


def reads_no_references(family):
    return not tiny.FAMILIES[family].references or tiny.FAMILIES[family].reference_method


@pytest.mark.parametrize("family", [family for family in tiny.JOINT if reads_no_references(family)])
def test_reference_images_elsewhere_are_unread_or_refused(models, layout, family):
    """Chroma does not read them, Krea 2 if a method is named; in Z-Image's omni layout they stand before the image."""
    patched = install(models[family], layout, rectified(layout))
    with_reference = {"reference_latents": [tiny.latent(family, size=(8, 8))]}
    positive = tiny.conditioning(family, layout.prompt, layout.key, **with_reference)
    negative = tiny.conditioning(family, tiny.text(seed=2), seed=6, **with_reference)
    if adapter_for(models[family]).references == "refused":
        with pytest.raises(IncompatiblePatchError, match="Remove the reference latents"):
            tiny.run(family, patched, positive, negative, steps=1)
        return
    plain = tiny.conditioning(family, layout.prompt, layout.key)
    assert torch.equal(
        tiny.run(family, patched, positive, negative, steps=1), tiny.run(family, patched, plain, steps=1)
    )
