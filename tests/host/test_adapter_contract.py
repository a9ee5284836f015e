"""What every adapter promises, on tiny random models of every supported family (architecture.md 4.2)."""

from dataclasses import replace
from math import prod

import comfy.model_base
import comfy.samplers
import pytest
import tiny_models as tiny
import torch
from comfy.ldm.modules import attention
from comfy.patcher_extension import WrappersMP
from comfy_extras import nodes_model_downscale
from contract import (
    RIGHT_TOP,
    TRANSFORMERS,
    UNETS,
    assert_close,
    every_family,
    every_family_with_a_text_of_its_own,
    rectified,
    texts_edited,
    watching,
)
from pack.attention_patches.core.grids import covered
from pack.attention_patches.core.seam import AttentionEdit, TextMix
from pack.attention_patches.core.types import Box, StepWindow
from pack.attention_patches.host.attention import attend
from pack.attention_patches.host.attention.call import AttentionCall
from pack.attention_patches.host.attention.calls import IncompatiblePatchError
from pack.attention_patches.host.families import adapter_for
from pack.attention_patches.host.install import install
from pack.attention_patches.methods.reweight import Reweight


@pytest.fixture(scope="module")
def models():
    return tiny.Built()


@pytest.fixture
def layout():
    return tiny.layout()


FILMS = [family for family in TRANSFORMERS if tiny.FAMILIES[family].frames]


# --- what an edit may and may not change ---


@every_family
def test_without_edits_nothing_changes(models, layout, family):
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    plain = tiny.run(family, models[family], positive)
    patched = install(models[family], layout, [])
    assert patched is not models[family]
    assert torch.equal(tiny.run(family, patched, positive), plain)


@every_family
def test_outside_its_window_an_edit_changes_nothing(models, layout, family):
    """Here the run is wrapped and the override in place, to the last bit without effect."""
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    late = AttentionEdit("late", "bias", lambda zeros, site: zeros + torch.arange(77.0), StepWindow(0.9, 1.0))
    patched = install(models[family], layout, [late])
    plain = tiny.run(family, models[family], positive, steps=4, last_step=1)
    assert torch.equal(tiny.run(family, patched, positive, steps=4, last_step=1), plain)


@every_family
@pytest.mark.parametrize("stage", ["bias", "scores", "probs"])
def test_an_edit_that_changes_nothing_changes_nothing(models, layout, family, stage):
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    edit = AttentionEdit("nothing", stage, lambda values, site: values)
    patched = install(models[family], layout, [edit])
    assert_close(tiny.run(family, patched, positive, steps=1), tiny.run(family, models[family], positive, steps=1))


@every_family
def test_the_input_model_and_other_clones_stay_as_they_were(models, layout, family):
    model, positive = models[family], tiny.conditioning(family, layout.prompt, layout.key)
    plain = tiny.run(family, model, positive)
    before = repr(model.model_options), repr(model.wrappers), repr(model.object_patches)
    first = install(model, layout, rectified(layout))
    alone = tiny.run(family, first, positive)
    second = install(first, layout, Reweight((("w1", 4.0),)).edits(layout))
    assert not torch.equal(tiny.run(family, second, positive), alone)
    assert (repr(model.model_options), repr(model.wrappers), repr(model.object_patches)) == before
    assert torch.equal(tiny.run(family, first, positive), alone)
    assert torch.equal(tiny.run(family, model, positive), plain)


@every_family
def test_a_run_leaves_nothing_behind(models, layout, family):
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    patched = install(models[family], layout, rectified(layout))
    other = tiny.build(family, seed=3)
    other_plain = tiny.run(family, other, positive)
    before = repr(patched.model_options)
    first = tiny.run(family, patched, positive)
    assert repr(patched.model_options) == before
    assert torch.equal(tiny.run(family, other, positive), other_plain)
    assert torch.equal(tiny.run(family, patched, positive), first)


@every_family
@pytest.mark.parametrize("method", ["bias", "probs"])
def test_unconditional_rows_are_bit_identical(models, layout, family, method):
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    edits = rectified(layout) if method == "bias" else Reweight((("w1", 4.0),)).edits(layout)

    def first_step(model):
        seen = []
        model = model.clone()
        model.set_model_sampler_pre_cfg_function(lambda args: seen.append(args["conds_out"]) or args["conds_out"])
        tiny.run(family, model, positive, steps=1, noise=tiny.latent(family, batch=2))
        return seen[0]

    (cond, uncond), (edited, untouched) = first_step(models[family]), first_step(install(models[family], layout, edits))
    assert torch.equal(uncond, untouched)
    assert not torch.equal(cond, edited)


@every_family
def test_outside_its_region_a_word_has_no_influence_in_any_layer(models, layout, family):
    """Replacing the values of region 0's words changes no output outside region 0, in every layer, to the last bit."""
    seen = []
    patched = install(tiny.probe(models[family], seen), layout, rectified(layout))
    tiny.run(family, patched, tiny.conditioning(family, layout.prompt, layout.key), steps=1, cfg=1.0)
    masked = [(args, kwargs) for args, kwargs, _ in seen if len(args) > 4 and args[4] is not None]
    assert masked
    text, start = tiny.places(family)
    words = layout.columns[0].nonzero()[:, 0] + text
    for args, kwargs in masked:
        q, k, v, heads, mask = args
        axis = 2 if kwargs.get("skip_reshape") else 1
        other = v.clone()
        other.index_fill_(axis, words, 1e3)
        run = attention.attention_basic
        options = {key: value for key, value in kwargs.items() if key in ("skip_reshape", "skip_output_reshape")}
        out = [run(q, k, value, heads, mask=mask, **options) for value in (v, other)]
        grid = kwargs["transformer_options"].get("activations_shape", tiny.tokens(family))[-2:]
        changed = (out[0] != out[1]).any(-1)[0, start : start + grid[0] * grid[1]]
        inside = torch.zeros(*grid, dtype=torch.bool)
        inside[:, : grid[1] // 2] = True
        changed = changed.view(*grid)
        assert not changed[~inside].any() and changed[inside].float().mean() > 0.9


# --- the three stages agree ---


@every_family
def test_a_bias_is_the_same_on_the_fused_kernel_and_explicitly(models, layout, family):
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    generator = torch.Generator().manual_seed(3)
    joint = adapter_for(models[family]).text == "joint"
    ramps = {n: torch.randn(n, 77, generator=generator) for n in (384, 96, 24)}

    def add(values, site):
        return values + ramps[site.grid[0] * site.grid[1]][site.queries]

    def multiply(probs, site):
        raised = probs * ramps[site.grid[0] * site.grid[1]][site.queries].exp()
        return raised if joint else raised / raised.sum(-1, keepdim=True)

    results = [
        tiny.run(family, install(models[family], layout, [AttentionEdit(stage, stage, fn)]), positive, steps=1)
        for stage, fn in (("bias", add), ("scores", add), ("probs", multiply))
    ]
    assert not torch.allclose(results[0], tiny.run(family, models[family], positive, steps=1))
    assert_close(results[1], results[0])
    if not joint:  # there a text edit after the softmax leaves the image's share of the row alone
        assert_close(results[2], results[0])


@every_family
@pytest.mark.parametrize("method", ["bias", "probs"])
def test_query_chunks_change_nothing(models, layout, family, method, monkeypatch):
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    edits = rectified(layout) if method == "bias" else Reweight((("w1", 4.0),), region=1).edits(layout)
    whole = tiny.run(family, install(models[family], layout, edits), positive, steps=1)
    seen = []
    monkeypatch.setattr(attend, "WORK_BYTES", 4 * 77 * 4 * 5)
    patched = install(models[family], layout, [*edits, watching(seen)])
    assert_close(tiny.run(family, patched, positive, steps=1), whole)
    assert {site.queries.start for site, _ in seen} > {0}


@every_family
def test_edits_of_several_nodes_add_up(models, layout, family):
    """Two nodes one after the other equal one node with both edits, in either order of installing."""
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    one, two = rectified(layout, strength=0.7), Reweight((("w1", 4.0),)).edits(layout)
    both = tiny.run(family, install(models[family], layout, [*one, *two]), positive)
    chained = install(install(models[family], layout, two), layout, one)
    assert_close(tiny.run(family, chained, positive), both)


@every_family
def test_the_same_node_twice_is_one_stronger_node(models, layout, family):
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    twice = install(install(models[family], layout, rectified(layout)), layout, rectified(layout))
    once = install(models[family], layout, rectified(layout))
    assert_close(tiny.run(family, twice, positive, steps=1), tiny.run(family, once, positive, steps=1))
    half = rectified(layout, strength=0.5)
    halves = install(install(models[family], layout, half), layout, half)
    three_quarters = install(models[family], layout, rectified(layout, strength=0.75))
    assert_close(tiny.run(family, halves, positive, steps=1), tiny.run(family, three_quarters, positive, steps=1))


# --- where it happens ---


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


def conds_of_first_step(family, model, positive, negative=None):
    """What the model predicts for each cond in the first step."""
    seen, model = [], model.clone()
    model.set_model_sampler_pre_cfg_function(lambda args: seen.append(args["conds_out"]) or args["conds_out"])
    tiny.run(family, model, positive, negative, steps=1)
    return seen[0]


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


@every_family
def test_a_batch_and_cfg_1_are_the_same_as_one_by_one(models, layout, family):
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    patched = install(models[family], layout, rectified(layout))
    noise = tiny.latent(family, batch=4)
    together = tiny.run(family, patched, positive, noise=noise, steps=1)
    for i in range(4):
        assert_close(tiny.run(family, patched, positive, noise=noise[i : i + 1], steps=1), together[i : i + 1])
    alone = tiny.run(family, patched, positive, noise=noise, steps=1, cfg=1.0)
    assert not torch.equal(alone, tiny.run(family, models[family], positive, noise=noise, steps=1, cfg=1.0))


@every_family
@pytest.mark.parametrize("separate", [True, False], ids=["separate calls", "one call"])
def test_one_call_or_two_are_the_same(models, layout, family, separate, monkeypatch):
    """The host batches cond and uncond when memory allows, in an order of its own; here it is made to do either."""
    calls = []
    patched = install(models[family], layout, rectified(layout))
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    reference = tiny.run(family, patched, positive, steps=1)
    monkeypatch.setattr(comfy.samplers, "can_concat_cond", lambda a, b: a is b if separate else True)
    patched = patched.clone()
    patched.add_wrapper(
        WrappersMP.APPLY_MODEL, lambda executor, *a, **k: calls.append(a[0].shape[0]) or executor(*a, **k)
    )
    assert_close(tiny.run(family, patched, positive, steps=1), reference)
    assert calls == ([1, 1] if separate else [2])


@pytest.mark.parametrize("family", UNETS)
@pytest.mark.parametrize("lengths", [(77, 154), (154, 77), (154, 231)])
def test_prompts_of_different_chunk_counts_in_one_call(models, family, lengths):
    """The host repeats the shorter prompt until the lengths match; every copy must be edited."""
    layout = tiny.layout(tiny.text(lengths[0]))
    patched = install(models[family], layout, rectified(layout))
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    negative = tiny.conditioning(family, tiny.text(lengths[1], seed=2), seed=6)
    repeats = torch.tensor([torch.tensor(lengths).prod() // torch.gcd(*torch.tensor(lengths)) // lengths[0]]).item()
    long = tiny.conditioning(family, layout.prompt, layout.key)
    long[0][0] = long[0][0].repeat(1, repeats, 1)
    together = tiny.run(family, patched, positive, negative, steps=1)
    separate = tiny.layout(tiny.text(lengths[0]))
    columns = separate.columns.repeat(1, repeats)
    tokens = separate.prompt.tokens
    wide = type(tokens)(tokens.text, tokens.spans * repeats, tokens.roles * repeats)
    prompt = type(separate.prompt)(wide, long[0][0])
    by_hand = type(separate)(prompt, separate.regions, columns, separate.region_texts, separate.key)
    patched = install(models[family], by_hand, rectified(by_hand))
    assert_close(together, tiny.run(family, patched, long, negative, steps=1))


@every_family
def test_combined_conditionings_keep_their_own_layouts(models, family):
    """Two Layout Prompts combined into one positive: each entry gets its own edits."""
    one, two = tiny.layout(tiny.text(seed=1), key="one"), tiny.layout(tiny.text(seed=9), (RIGHT_TOP,), key="two")
    seen_one, seen_two = [], []
    patched = install(install(models[family], one, [watching(seen_one)]), two, [watching(seen_two)])
    positive = tiny.conditioning(family, one.prompt, "one") + tiny.conditioning(family, two.prompt, "two", seed=8)
    tiny.run(family, patched, positive, steps=1)
    assert all(site.layout is one for site, _ in seen_one) and all(site.layout is two for site, _ in seen_two)
    assert seen_one and seen_two
    assert all(shape[0] == 1 for _, shape in seen_one + seen_two)


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


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_text_of_any_length_keeps_its_columns(models, family):
    """Edits see the prompt's own tokens, whatever the model adds: hiding all but the first is another prompt's run."""
    for length in (32, 50):
        layout, seen = tiny.layout(tiny.text(length)), []
        patched = install(tiny.probe(models[family], seen), layout, rectified(layout))
        positive = tiny.conditioning(family, layout.prompt, layout.key)
        tiny.run(family, patched, positive, steps=1, cfg=1.0)
        masks = [args[4] for args, _, _ in seen if len(args) > 4 and args[4] is not None]
        assert len(masks) == len(tiny.FAMILIES[family].layers)
        (text, start), (height, width) = tiny.places(family, length), tiny.tokens(family)
        for mask in masks:
            edited = (mask < -1e3)[0, 0]
            assert torch.equal(edited.any(0).nonzero()[:, 0], layout.columns.any(0).nonzero()[:, 0] + text)
            rows = edited[start : start + height * width].view(height, width, -1)
            first = layout.columns[0].nonzero()[0, 0] + text
            assert not rows[:, : width // 2, first].any() and rows[:, width // 2 :, first].all()
            assert not edited[:start].any() and not edited[start + height * width :].any()


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_a_negative_of_another_length_is_left_alone_in_transformers(models, layout, family):
    """The host repeats no text here: it calls the model once for each length."""
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    negative = tiny.conditioning(family, tiny.text(50, seed=2), seed=6)
    plain = conds_of_first_step(family, models[family], positive, negative)
    edited = conds_of_first_step(family, install(models[family], layout, rectified(layout)), positive, negative)
    assert torch.equal(plain[1], edited[1]) and not torch.equal(plain[0], edited[0])


@pytest.mark.parametrize("family", [family for family in TRANSFORMERS if tiny.FAMILIES[family].own_text])
def test_a_text_that_another_pack_made_longer_is_refused(models, layout, family):
    """Where the prompt's words then are, nobody says; the wrong columns would be edited without a word."""
    adapter = adapter_for(models[family])
    assert [*adapter.text_columns(77, 77)] == [slice(0, 77)]
    with pytest.raises(IncompatiblePatchError, match="154 text tokens instead of the prompt's 77"):
        adapter.text_columns(154, 77)


@pytest.mark.parametrize("family", [family for family in TRANSFORMERS if tiny.FAMILIES[family].left])
def test_a_text_that_the_host_fills_up_in_front_keeps_its_place(models, family):
    adapter, left = adapter_for(models[family]), tiny.FAMILIES[family].left
    assert [*adapter.text_columns(left, 77)] == [slice(left - 77, left)]
    assert [*adapter.text_columns(left, left)] == [slice(0, left)]
    assert [*adapter.text_columns(left + 5, left + 5)] == [slice(0, left + 5)]


@pytest.mark.parametrize("stage", ["bias", "scores", "probs", "read"])
@pytest.mark.parametrize("kind", ["image_text", "image_image"])
@pytest.mark.parametrize("in_line", [False, True])
@pytest.mark.parametrize("family", FILMS)
def test_edits_see_one_frame_at_a_time(models, layout, family, stage, kind, in_line):
    """Also where several pictures are frames (Qwen-Image); each of them has all the tokens of its grid."""
    seen, image = [], prod(tiny.tokens(family))

    def fn(values, site):
        seen.append((site.queries, values.shape[-2:]))
        return values

    model = tiny.probe(models[family], []) if in_line else models[family]
    patched = install(model, layout, [AttentionEdit("watch", stage, fn, kind=kind)])
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    noise = torch.cat([tiny.latent(family, seed=seed) for seed in (7, 8, 9)], dim=2)
    out = tiny.run(family, patched, positive, noise=noise, steps=1)
    assert seen and {(q.start, q.stop) for q, _ in seen} == {(0, image)}
    assert {tuple(shape) for _, shape in seen} == {(image, 77 if kind == "image_text" else image)}
    assert_close(out, tiny.run(family, models[family], positive, noise=noise, steps=1))


def hidden(model, family, positive, frames, **more):
    """The columns of the text that each image token may not read, [frame][row, column] of the last masked attention."""
    seen = []
    noise = torch.cat([tiny.latent(family, seed=7 + k) for k in range(frames)], dim=2)
    tiny.run(family, tiny.probe(model, seen), positive, noise=noise, steps=1, cfg=1.0, **more)
    mask = [args[4] for args, _, _ in seen if len(args) > 4 and args[4] is not None and (args[4] < -1e3).any()][-1]
    (text, start), image = tiny.places(family), prod(tiny.tokens(family))
    assert not (mask[..., :start, :] < -1e3).any()
    return [(mask < -1e3)[0, 0, start + k * image : start + (k + 1) * image, text : text + 77] for k in range(frames)]


@pytest.mark.parametrize("family", FILMS)
def test_a_region_holds_in_its_frames(models, family):
    """From start_frame to before end_frame, in pictures. In other frames nobody reads its words."""
    layout = tiny.layout()
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    always = hidden(install(models[family], layout, rectified(layout)), family, positive, 3)
    each = adapter_for(models[family]).frame  # pictures that a later latent frame makes
    assert getattr(models[family].model.latent_format, "temporal_downscale_ratio", each) == each  # newer hosts say it
    first, second = layout.regions
    timed = replace(layout, regions=(replace(first, start_frame=1, end_frame=1 + each), second))
    now = hidden(install(models[family], timed, rectified(timed)), family, positive, 3)
    assert torch.equal(now[1], always[1])
    words, others = (layout.columns[r] for r in (0, 1))
    for k in (0, 2):
        assert now[k][:, words].all() and torch.equal(now[k][:, others], always[k][:, others])
    assert each > 1 and not always[0][:, words].all()


def test_frames_do_not_count_in_a_picture(models):
    layout = tiny.layout()
    positive = tiny.conditioning("wan", layout.prompt, layout.key)
    timed = replace(layout, regions=tuple(replace(r, start_frame=5) for r in layout.regions))
    runs = [tiny.run("wan", install(models["wan"], own, rectified(own)), positive, steps=1) for own in (layout, timed)]
    assert torch.equal(*runs)


def test_frames_of_a_part_of_a_film_are_refused(models):
    """Context windows give the model some frames at a time and do not say which."""
    layout, model = tiny.layout(), models["wan"].clone()
    timed = replace(layout, regions=tuple(replace(r, start_frame=1) for r in layout.regions))

    def half(apply_model, args):
        return apply_model(args["input"][:, :, :2], args["timestep"], **args["c"]).repeat(1, 1, 2, 1, 1)

    model.set_model_unet_function_wrapper(half)
    positive = tiny.conditioning("wan", layout.prompt, layout.key)
    noise = torch.cat([tiny.latent("wan", seed=seed) for seed in range(4)], dim=2)
    with pytest.raises(IncompatiblePatchError, match="part of the film .2 latent frames"):
        tiny.run("wan", install(model, timed, rectified(timed)), positive, noise=noise, steps=1)
    assert tiny.run("wan", install(model, layout, rectified(layout)), positive, noise=noise, steps=1).isfinite().all()


@pytest.mark.parametrize("family", [f for f in tiny.SUPPORTED if tiny.FAMILIES[f].own_text and f not in tiny.JOINT])
@pytest.mark.parametrize("in_line", [False, True])
def test_another_text_that_is_read_everywhere_is_that_texts_run(models, layout, family, in_line):
    """In all frames of a film; beside a row that reads its own."""
    other = tiny.text(seed=21)
    everywhere = TextMix("mix", (other.embedding,), lambda site: torch.ones(1, site.grid[0] * site.grid[1]))
    model = tiny.probe(models[family], []) if in_line else models[family]
    noise = [tiny.latent(family, seed=seed) for seed in (7, 8, 9)]
    noise = torch.cat(noise, dim=2) if family in FILMS else noise[0]
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    mixed = tiny.run(family, install(model, layout, [everywhere]), positive, noise=noise, steps=1)
    plain = tiny.run(family, models[family], tiny.conditioning(family, other), noise=noise, steps=1)
    assert_close(mixed, plain)
    assert not torch.equal(plain, tiny.run(family, models[family], positive, noise=noise, steps=1))


def test_a_mix_may_change_from_frame_to_frame(models):
    """Read where no region is: in the first frame nowhere, later everywhere."""
    layout, other = tiny.layout(areas=(Box(0.0, 0.0, 1.0, 1.0),)), tiny.text(seed=21)
    timed = replace(layout, regions=(replace(layout.regions[0], end_frame=1),))
    seen = []

    def weigh(site):
        seen.append(site.frames)
        return 1.0 - covered(site.layout.regions[0], site).flatten()[None]

    positive = tiny.conditioning("wan", layout.prompt, layout.key)
    noise = torch.cat([tiny.latent("wan", seed=seed) for seed in (7, 8, 9)], dim=2)

    patched = install(models["wan"], timed, [TextMix("mix", (other.embedding,), weigh)])
    calls = []
    layer = models["wan"].model.diffusion_model.blocks[0].cross_attn.o
    handle = layer.register_forward_pre_hook(lambda module, args: calls.append(args[0].clone()))
    try:
        runs = (patched, positive), (models["wan"], positive), (models["wan"], tiny.conditioning("wan", other))
        for model, text in runs:
            tiny.run("wan", model, text, noise=noise, steps=1, cfg=1.0)
    finally:
        handle.remove()
    mixed, own, others = (call[0] for call in calls)
    image = prod(tiny.tokens("wan"))
    assert_close(mixed[:image], own[:image])
    assert_close(mixed[image:], others[image:])
    assert {*seen} == {(0, 1), (1, 5), (5, 9)}


@pytest.mark.parametrize("family", [family for family in TRANSFORMERS if tiny.FAMILIES[family].masks])
def test_a_mask_of_the_prompt_is_kept(models, layout, family):
    """Some encoders mask the padding of its text."""
    keep = torch.ones(1, 77, dtype=torch.long)
    keep[:, 40:] = 0
    positive = tiny.conditioning(family, layout.prompt, layout.key, attention_mask=keep)
    plain = tiny.run(family, models[family], positive, steps=1)
    for stage in ("bias", "probs"):
        seen = []

        def fn(values, site, seen=seen):
            seen.append(values.clone())
            return values

        patched = install(models[family], layout, [AttentionEdit("nothing", stage, fn)])
        assert_close(tiny.run(family, patched, positive, steps=1), plain)
        assert stage == "bias" or all(not probs[..., 40:].any() and probs[..., :40].all() for probs in seen)


@pytest.mark.parametrize("layout_of", ["parted", "flat", "mixed", "by head"])
@pytest.mark.parametrize("by_name", [True, False])
def test_a_call_is_read_by_position_or_by_name_in_any_layout(layout_of, by_name):
    """SD3 parts the heads of keys and values only, Wan names its arguments."""
    g = torch.Generator().manual_seed(0)
    heads = [torch.randn(2, 3, n, 8, generator=g) for n in (5, 7, 7)]  # [B, heads, tokens, channels]
    given, options = heads, {"skip_reshape": True}
    if layout_of != "by head":
        parted = [t.transpose(1, 2) for t in heads]
        flat = [t.flatten(2) for t in parted]
        given = {"parted": parted, "flat": flat, "mixed": [flat[0], *parted[1:]]}[layout_of]
        options = {}
    mask = torch.zeros(2, 5, 7)
    if by_name:
        call = AttentionCall.of(None, tuple(given), {**options, "mask": mask, "heads": 3})
    else:
        call = AttentionCall.of(None, (*given, 3, mask, "more"), options)
    assert call.shape == (2, 5, 7) and call.heads == 3 and call.mask.shape == (2, 1, 5, 7)
    assert call.rest == (() if by_name else ("more",)) and call.options == options
    for t, expected in zip((call.q, call.k, call.v), heads, strict=True):
        assert torch.equal(call.by_head(t), expected)
