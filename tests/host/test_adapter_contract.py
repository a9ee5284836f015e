"""What every adapter promises, on tiny random models of every supported family (architecture.md 4.2)."""

import inspect
import re
import sys
from dataclasses import replace
from math import prod

import comfy.model_base
import comfy.samplers
import pytest
import tiny_models as tiny
import torch
from comfy.ldm.modules import attention
from comfy.patcher_extension import WrappersMP
from comfy_extras import nodes_custom_sampler, nodes_model_downscale, nodes_perpneg
from pack.attention_patches.core.grids import covered
from pack.attention_patches.core.seam import NEVER, AttentionEdit, ContextEdit, TextMix
from pack.attention_patches.core.types import Box, BoxwrightError, EncodedText, StepWindow, UnsupportedModelError
from pack.attention_patches.host.attention import attend
from pack.attention_patches.host.attention.cache import BiasCache
from pack.attention_patches.host.attention.call import AttentionCall
from pack.attention_patches.host.attention.calls import Chunk, IncompatiblePatchError, Installed, ModelCall, Place
from pack.attention_patches.host.attention.edited import edited_attention
from pack.attention_patches.host.families import FAMILIES, adapter_for
from pack.attention_patches.host.install import install
from pack.attention_patches.host.run.schedule import progress_of
from pack.attention_patches.methods.rectified_attention import PUBLISHED
from pack.attention_patches.methods.reweight import Reweight

UNETS = tiny.UNETS
TRANSFORMERS = [family for family in tiny.SUPPORTED if family not in UNETS]
FILMS = [family for family in TRANSFORMERS if tiny.FAMILIES[family].frames]
every_family = pytest.mark.parametrize("family", tiny.SUPPORTED)
every_family_with_a_text_of_its_own = pytest.mark.parametrize(
    "family", [family for family in tiny.SUPPORTED if tiny.FAMILIES[family].own_text]
)


@pytest.fixture(scope="module")
def models():
    return tiny.Built()


@pytest.fixture
def layout():
    return tiny.layout()


def rectified(layout, strength=1.0):
    return replace(PUBLISHED, strength=strength).edits(layout)


def watching(seen, window=StepWindow()):
    """An edit that changes nothing and notes its sites."""

    def fn(values, site):
        seen.append((site, tuple(values.shape)))
        return values

    return AttentionEdit("watch", "probs", fn, window)


def assert_close(a, b):
    """Equal but for the rounding of another order of summation; the tiny models amplify it step by step."""
    torch.testing.assert_close(a, b, rtol=0, atol=2e-4 * float(b.abs().max()))


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


def texts_edited(seen):
    """A ContextEdit that notes the encoded text of the rows it is given."""
    return ContextEdit("note", lambda context, layout: seen.append(context.clone()) or context)


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


RIGHT_TOP = Box(0.5, 0.0, 0.5, 0.5)


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


# --- what only some families have ---


def masks_of(family, model, positive, **more):
    """The masks that the model's attention is given, as bool, where anything is hidden."""
    seen = []
    tiny.run(family, tiny.probe(model, seen), positive, steps=1, cfg=1.0, **more)
    masks = [args[4] < -1e3 for args, _, _ in seen if len(args) > 4 and args[4] is not None]
    return [mask[0, 0] for mask in masks if mask.any()]


def with_columns(layout, tokens, columns):
    """The layout for a model whose image tokens read these columns, and not those of the conditioning alone."""
    prompt = EncodedText(tokens, layout.prompt.embedding)
    return replace(layout, prompt=prompt, columns=columns)


def test_hidream_hides_a_word_wherever_its_blocks_read_it(models, layout):
    """Behind T5's columns stand those of the language model's last layer, and of the layer that is the block's own."""
    tokens, more = layout.prompt.tokens, tiny.text(20, words=9).tokens
    tokens = replace(tokens, spans=tokens.spans + 2 * more.spans, roles=tokens.roles + 2 * more.roles)
    columns = torch.cat([layout.columns, layout.columns[:, :20], layout.columns[:, :20]], dim=1)
    whole = with_columns(layout, tokens, columns)
    positive = tiny.conditioning("hidream", whole.prompt, whole.key)
    masks = masks_of("hidream", install(models["hidream"], whole, rectified(whole)), positive)
    assert len(masks) == 4 and all(mask.shape == (96 + 77 + 40,) * 2 for mask in masks)
    for mask in masks:
        assert torch.equal(mask.any(0).nonzero()[:, 0], 96 + columns.any(0).nonzero()[:, 0])
        assert not mask[96:].any()
    longer = tiny.conditioning("hidream", whole.prompt, whole.key)
    longer[0][0] = torch.cat([longer[0][0], tiny.text(seed=8).embedding], dim=1)
    with pytest.raises(BoxwrightError, match="154 text tokens, its layout 77.*reads more behind it"):
        tiny.run("hidream", install(models["hidream"], whole, rectified(whole)), longer, steps=1)


def test_anima_hides_the_columns_that_it_makes_of_the_words(models):
    """Its adapter turns a text of its language model into a column for each T5 token, 512 at least."""
    layout = tiny.layout(tiny.text(20))
    made = tiny.layout(tiny.text(512))
    whole = with_columns(layout, made.prompt.tokens, made.columns)
    ids = torch.arange(30, dtype=torch.int)
    extra = {"t5xxl_ids": ids, "t5xxl_weights": torch.ones(30)}
    positive = tiny.conditioning("anima", whole.prompt, whole.key, **extra)
    masks = masks_of("anima", install(models["anima"], whole, rectified(whole)), positive)
    assert len(masks) == 2 and all(mask.shape == (96, 512) for mask in masks)
    assert all(torch.equal(mask.any(0), made.columns.any(0)) for mask in masks)


@pytest.mark.parametrize("more, before, behind", [
    ({}, 0, 0),
    ({"reference_latents": (16, 24)}, 96, 0),
    ({"time_dim_concat": (16, 24)}, 0, 96),
    ({"reference_latents": (16, 24), "context_latents": (8, 12)}, 96, 24),
])
def test_wan_finds_the_image_between_other_pictures(layout, monkeypatch, more, before, behind):
    """A reference picture stands in front of it as a frame, further pictures behind."""
    if "context_latents" in more and "context_latents" not in inspect.getsource(comfy.model_base.WAN21.extra_conds):
        behind = 0  # an older host, which leaves these out
    known = tiny.FAMILIES["wan"]
    with_reference = replace(known, settings={**known.settings, "in_dim_ref_conv": 16})
    monkeypatch.setitem(tiny.FAMILIES, "wan_reference", with_reference)
    model = tiny.build("wan_reference")
    pictures = {name: tiny.latent("wan", size=size, seed=17) for name, size in more.items()}
    pictures = {name: value if name == "time_dim_concat" else [value] for name, value in pictures.items()}
    positive = tiny.conditioning("wan_reference", layout.prompt, layout.key, **pictures)
    masks = masks_of("wan_reference", install(model, layout, rectified(layout)), positive)
    assert len(masks) == 2
    for mask in masks:
        assert mask.shape == (before + 96 + behind, 77)
        assert mask[before : before + 96].any() and not mask[:before].any() and not mask[before + 96 :].any()


@pytest.mark.parametrize("frames", [1, 3])
def test_wan_of_another_latent_is_the_same_family(layout, monkeypatch, frames):
    """Wan 2.2 5B: 48 channels, and a noise level for each frame."""
    known = tiny.FAMILIES["wan"]
    settings = {**known.settings, "in_dim": 48, "out_dim": 48}
    monkeypatch.setitem(tiny.FAMILIES, "wan22", replace(known, config="WAN22_T2V", settings=settings, channels=48))
    model, positive = tiny.build("wan22"), tiny.conditioning("wan22", layout.prompt, layout.key)
    assert adapter_for(model).name == adapter_for(tiny.build("wan")).name
    noise = torch.cat([tiny.latent("wan22", seed=seed) for seed in range(frames)], dim=2)
    keep_first = torch.ones(1, 1, frames, 16, 24)
    keep_first[:, :, :-1] = 0.0
    for more in ({}, {"noise_mask": keep_first}):
        masks = masks_of("wan22", install(model, layout, rectified(layout)), positive, noise=noise, **more)
        assert len(masks) == 2 and all(mask.shape == (96 * frames, 77) for mask in masks)


@pytest.mark.parametrize("with_picture", [True, False])
def test_wan_tells_the_text_from_a_picture_as_long(models, layout, with_picture):
    """Its image-to-video models read the picture's features first; without a picture they read the text there, too."""
    positive = tiny.conditioning("wan_i2v", layout.prompt, layout.key)
    if not with_picture:
        del positive[0][1]["clip_vision_output"]
    seen = []
    patched = install(tiny.probe(models["wan_i2v"], seen), layout, rectified(layout))
    tiny.run("wan_i2v", patched, positive, steps=1, cfg=1.0)
    masked = [len(args) > 4 and args[4] is not None for args, _, _ in seen]
    assert masked == [False, not with_picture, True] * 2
    assert [args[1].shape[1] for args, _, _ in seen] == [96, 77, 77] * 2


@pytest.mark.parametrize("family, more", [
    ("hidream", {"concat_latent_image": (16, 24)}),
    ("hunyuan_video", {"ref_latent": (16, 24)}),
    ("ltxv", {"keyframe_idxs": (16, 24)}),
])
def test_pictures_among_the_images_tokens_are_refused(models, layout, family, more):
    pictures = {name: tiny.latent(family, size=size) for name, size in more.items()}
    positive = tiny.conditioning(family, layout.prompt, layout.key, **pictures)
    patched = install(models[family], layout, rectified(layout))
    with pytest.raises(IncompatiblePatchError, match=f"{re.escape(adapter_for(patched).name)} .*Remove the"):
        tiny.run(family, patched, positive, steps=1)


# --- when it happens ---


@every_family
@pytest.mark.parametrize("scheduler", ["simple", "karras", "normal"])
@pytest.mark.parametrize("steps", [4, 11])
def test_windows_are_fractions_of_the_schedule_in_sigma(models, layout, family, scheduler, steps):
    seen, sigmas = [], []
    window = StepWindow(0.25, 0.6)
    model = models[family].clone()
    model.set_model_sampler_pre_cfg_function(
        lambda args: sigmas.append(float(args["sigma"].flatten()[0])) or args["conds_out"]
    )
    patched = install(model, layout, [watching(seen, window)])
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    tiny.run(family, patched, positive, steps=steps, scheduler=scheduler)
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    end, start = (to_sigma(edge) * (1 + 1e-6) for edge in (0.6, 0.25))  # a step on an edge, but for its rounding
    inside = [sigma for sigma in sigmas if end < sigma <= start]
    progress = {site.progress for site, _ in seen}
    assert len(progress) == max(1, len(set(inside))) < steps
    for value in progress if inside else ():
        assert 0.25 <= value < 0.6
        assert min(abs(to_sigma(value) - sigma) for sigma in inside) < 1e-3 * max(inside)


@every_family
@pytest.mark.parametrize("window", [(0.0, 0.2), (0.3, 0.45), (0.55, 0.6), (0.9, 1.0)])
def test_a_run_of_few_steps_has_one_for_every_window(models, layout, family, window):
    """Distilled models take 4 steps, and a window may lie between two."""
    seen = []
    patched = install(models[family], layout, [watching(seen, StepWindow(*window))])
    tiny.run(family, patched, tiny.conditioning(family, layout.prompt, layout.key), steps=4, cfg=1.0)
    found = {site.progress for site, _ in seen}
    assert len(found) >= 1
    assert len(found) == 1 or all(window[0] <= value < window[1] for value in found)


def test_progress_inverts_percent_to_sigma_and_saturates(models):
    for family in tiny.SUPPORTED:
        sampling = models[family].get_model_object("model_sampling")
        for percent in (0.1, 0.25, 0.5, 0.9):
            assert progress_of(sampling)(sampling.percent_to_sigma(percent)) == pytest.approx(percent, abs=1e-5)
        assert progress_of(sampling)(1e9) == 0.0
        assert progress_of(sampling)(0.0) == 1.0


@pytest.mark.parametrize("sampler", comfy.samplers.KSAMPLER_NAMES + ["ddim", "uni_pc", "uni_pc_bh2"])
def test_every_sampler(models, layout, sampler):
    """Runs, obeys, and leaves the unpatched model's run as it was."""
    positive = tiny.conditioning("sd15", layout.prompt, layout.key)
    noise = tiny.latent("sd15", size=(8, 8))
    plain = tiny.run("sd15", models["sd15"], positive, noise=noise, steps=3, sampler=sampler)
    patched = install(models["sd15"], layout, rectified(layout))
    edited = tiny.run("sd15", patched, positive, noise=noise, steps=3, sampler=sampler)
    assert not torch.equal(plain, edited)
    assert torch.equal(plain, tiny.run("sd15", models["sd15"], positive, noise=noise, steps=3, sampler=sampler))


@every_family
def test_a_slice_of_the_schedule_means_the_same_as_the_whole(models, layout, family):
    """KSamplerAdvanced and img2img run the tail of a schedule: its steps lie where they lay in the full run."""
    positive = tiny.conditioning(family, layout.prompt, layout.key)

    def steps_seen(**part):
        seen = []
        tiny.run(family, install(models[family], layout, [watching(seen)]), positive, steps=4, **part)
        return sorted({site.progress for site, _ in seen})

    whole = steps_seen()
    assert len(whole) == 4 and whole[0] == pytest.approx(0.0, abs=1e-5)
    assert steps_seen(start_step=2) == whole[2:]
    assert steps_seen(last_step=2) == whole[:2]


@every_family_with_a_text_of_its_own
@pytest.mark.parametrize("kind", ["dual cfg", "perp neg", "basic"])
def test_guiders_with_other_conds_in_another_order(models, layout, family, kind):
    """However many conds a guider has and in whatever order it passes them, the layout's rows are the edited ones."""
    seen = []
    patched = install(models[family], layout, [texts_edited(seen)])
    ours = tiny.conditioning(family, layout.prompt, layout.key)
    others = [tiny.conditioning(family, tiny.text(seed=seed), seed=seed) for seed in (11, 12)]
    if kind == "dual cfg":
        guider = nodes_custom_sampler.Guider_DualCFG(patched)
        guider.set_conds(ours, *others)
        guider.set_cfg(4.0, 2.0)
    elif kind == "perp neg":
        guider = nodes_perpneg.Guider_PerpNeg(patched)
        guider.set_conds(ours, *others)
        guider.set_cfg(4.0, 1.0)
    else:
        guider = nodes_custom_sampler.Guider_Basic(patched)
        guider.set_conds(ours)
    noise = tiny.latent(family)
    sigmas = comfy.samplers.calculate_sigmas(patched.get_model_object("model_sampling"), "simple", 1)
    guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True)
    assert len(seen) == 1 and torch.equal(seen[0], layout.prompt.embedding)


@pytest.mark.parametrize("family", [family for family in tiny.SUPPORTED if tiny.FAMILIES[family].inpaints])
def test_inpainting(models, layout, family):
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    mask = torch.zeros(1, 1, 16, 24)
    mask[..., :12] = 1.0
    runs = [
        tiny.run(family, model, positive, noise_mask=mask)
        for model in (models[family], install(models[family], layout, rectified(layout)))
    ]
    assert not torch.equal(*runs)
    assert torch.equal(runs[0][..., 12:], runs[1][..., 12:])


@every_family
@pytest.mark.parametrize("backend", ["attention_basic", "attention_sub_quad", "attention_split", "attention_pytorch"])
def test_every_attention_backend(models, layout, family, backend, monkeypatch):
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    patched = install(models[family], layout, rectified(layout))
    reference = tiny.run(family, patched, positive, steps=1, noise=tiny.latent(family, batch=2))
    chosen, used = getattr(attention, backend), []

    def backend_in_use(*args, **kwargs):
        used.append(1)
        return chosen(*args, **kwargs)

    for name in ("optimized_attention", "optimized_attention_masked"):
        host = getattr(attention, name)
        for module in [module for path, module in sys.modules.items() if path.startswith("comfy.ldm.")]:
            if getattr(module, name, None) is host:
                monkeypatch.setattr(module, name, backend_in_use)
    assert_close(tiny.run(family, patched, positive, steps=1, noise=tiny.latent(family, batch=2)), reference)
    assert used


@pytest.mark.parametrize("family", [family for family in tiny.SUPPORTED if not tiny.FAMILIES[family].own_text])
def test_other_texts_cannot_stand_in_where_the_model_makes_more_of_them(models, layout, family):
    assert not adapter_for(models[family]).own_text
    for edit in (texts_edited([]), TextMix("mix", (layout.region_texts[0].embedding,), None)):
        with pytest.raises(UnsupportedModelError, match="Use Region Conditioning"):
            install(models[family], layout, [edit])


@every_family_with_a_text_of_its_own
def test_context_edits_reach_their_rows_only(models, layout, family):
    seen = []

    def blank(context, layout):
        seen.append(tuple(context.shape))
        return torch.zeros_like(context)

    positive = tiny.conditioning(family, layout.prompt, layout.key)
    patched = install(models[family], layout, [ContextEdit("blank", blank)])
    zeros = [[torch.zeros_like(positive[0][0]), positive[0][1]]]
    assert_close(tiny.run(family, patched, positive, steps=1), tiny.run(family, models[family], zeros, steps=1))
    assert set(seen) == {(1, 77, tiny.CONTEXT)}


# --- other packs ---


@every_family
@pytest.mark.parametrize("ours_first", [True, False])
def test_another_packs_override_still_runs_everywhere(models, layout, family, ours_first):
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    plain, seen = [], []
    tiny.run(family, tiny.probe(models[family], plain), positive, steps=1)
    if ours_first:
        patched = tiny.probe(install(models[family], layout, rectified(layout)), seen)
    else:
        patched = install(tiny.probe(models[family], seen), layout, rectified(layout))
    edited = tiny.run(family, patched, positive, steps=1)
    assert_close(edited, tiny.run(family, install(models[family], layout, rectified(layout)), positive, steps=1))
    # As often as without us, and with all rows and queries: another pack may count on their number.
    assert [call[0][0].shape for call in seen] == [call[0][0].shape for call in plain]


# Not where a call before the text's looks the same: what this other pack masks, it tells by the lengths.
@pytest.mark.parametrize("family", [family for family in tiny.SUPPORTED if not tiny.FAMILIES[family].others])
def test_a_mask_that_another_pack_adds_is_kept(models, layout, family):
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    (text, start), known = tiny.places(family), tiny.FAMILIES[family]
    hide, image = slice(text + 20, text + 77), prod(tiny.tokens(family))
    model = models[family].clone()

    def override(func, q, k, v, heads, mask=None, **kwargs):
        axis = 2 if kwargs.get("skip_reshape") else 1
        if known.joint:  # a refiner's call is shorter, and one within the image, too
            of_text = q.shape[axis] > image + text + 20 * (not known.image_first)
        else:
            of_text = k.shape[axis] != q.shape[axis]
        if of_text:
            extra = q.new_zeros(q.shape[axis], k.shape[axis])
            extra[start : start + image if known.joint else None, hide] = NEVER  # image queries only
            mask = extra if mask is None else mask + extra
        return func(q, k, v, heads, mask=mask, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = override

    def hidden(values, site):
        values = values.clone()
        values[..., 20:77] += NEVER
        return values

    # The other pack masks the unconditional rows too; CFG 1 leaves those out.
    theirs = tiny.run(family, install(model, layout, rectified(layout)), positive, steps=1, cfg=1.0)
    edits = [*rectified(layout), AttentionEdit("hide", "bias", hidden)]
    assert_close(theirs, tiny.run(family, install(models[family], layout, edits), positive, steps=1, cfg=1.0))


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("stage", ["bias", "probs"])
@pytest.mark.parametrize("in_one_piece", [True, False])
@pytest.mark.parametrize("per_head", [True, False])
def test_a_mask_of_the_model_itself_is_kept(layout, kind, stage, in_one_piece, per_head):
    """Some call sites pass a mask already. Rows 0 and 1 of a joint attention, only row 1 with an edit."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, 77 + 24, 32, generator=g) for _ in range(3))
    keep = torch.rand(2, 1, 77 + 24, 77 + 24, generator=g) > 0.3
    floats = torch.zeros(keep.shape).masked_fill_(~keep, NEVER)
    bias = torch.randn(24, 77, generator=g)
    fns = {"bias": lambda zeros, site: zeros + bias, "probs": lambda probs, site: probs * bias.exp()}
    edit = Installed(layout, AttentionEdit(stage, stage, fns[stage]))
    chunks = (Chunk(slice(0, 1), (), 77, (0, 0)), Chunk(slice(1, 2), (edit,), 77, (0, 0)))
    call = ModelCall(chunks, (8, 12), (8, 12), 77, (), 0.0, 1, lambda length, own: [slice(0, own)])
    place = Place("double.0", (4, 6), (8, 12), 0, queries=slice(77, 101), text=slice(0, 77), image=slice(77, 101))
    host = attention.attention_pytorch
    mask = keep if kind == "bool" else floats
    options = {"skip_reshape": True, "mask": mask if per_head else mask[:, 0]}
    out = edited_attention(AttentionCall.of(host, (q, k, v, 2), options), call, place, BiasCache(), in_one_piece)

    scores = (q.double() @ k.double().transpose(-1, -2)) * 32**-0.5 + floats.double()
    if stage == "bias":
        scores[1, :, 77:, :77] += bias
    probs = scores.softmax(-1)
    if stage == "probs":
        probs[1, :, 77:, :77] *= bias.exp()
    expected = (probs @ v.double()).transpose(1, 2).flatten(2).float()
    torch.testing.assert_close(out, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", UNETS)
def test_an_attn2_replace_that_bypasses_the_host_is_refused(models, layout, family):
    model = models[family].clone()

    def bypass(q, k, v, extra_options):
        return attention.optimized_attention(q, k, 2.0 * v, extra_options["n_heads"])

    model.set_model_attn2_replace(bypass, "middle", 0)
    patched = install(model, layout, rectified(layout))
    with pytest.raises(IncompatiblePatchError, match="middle.0.0"):
        tiny.run(family, patched, tiny.conditioning(family, layout.prompt, layout.key), steps=1)


@pytest.mark.parametrize("family", UNETS)
def test_an_attn2_replace_that_calls_the_host_composes(models, layout, family):
    model, positive = models[family].clone(), tiny.conditioning(family, layout.prompt, layout.key)

    def polite(q, k, v, extra_options):
        return attention.optimized_attention(
            q, k, v, extra_options["n_heads"], transformer_options=extra_options
        )

    model.set_model_attn2_replace(polite, "middle", 0)
    assert_close(
        tiny.run(family, install(model, layout, rectified(layout)), positive, steps=1),
        tiny.run(family, install(models[family], layout, rectified(layout)), positive, steps=1),
    )


@pytest.mark.parametrize("family", UNETS)
def test_a_patch_that_changes_the_tokens_is_refused(models, layout, family):
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    longer = models[family].clone()
    longer.set_model_attn2_patch(
        lambda n, context, value, extra: (n, *(torch.cat([t, t.flip(1)], dim=1) for t in (context, value)))
    )
    with pytest.raises(IncompatiblePatchError, match="test_adapter_contract.*154"):
        tiny.run(family, install(longer, layout, rectified(layout)), positive, steps=1)


@pytest.mark.parametrize("family", UNETS)
def test_self_attention_with_merged_tokens_composes(models, layout, family):
    """HyperTile and token merging change the self-attention only; the text is still where it was."""
    model, positive = models[family].clone(), tiny.conditioning(family, layout.prompt, layout.key)

    def halve(n, context, value, extra):
        return n, context[:, ::2], value[:, ::2]

    model.set_model_attn1_patch(halve)
    plain = tiny.run(family, model, positive, steps=1)
    assert not torch.equal(tiny.run(family, install(model, layout, rectified(layout)), positive, steps=1), plain)


def test_text_as_long_as_the_image_is_not_mistaken(models):
    """77 image tokens and 77 text tokens: the shapes alone do not tell self- from cross-attention."""
    layout, seen = tiny.layout(), []
    patched = install(models["sd15"], layout, [watching(seen)])
    positive = tiny.conditioning("sd15", layout.prompt, layout.key)
    tiny.run("sd15", patched, positive, noise=tiny.latent("sd15", size=(7, 11)), steps=1)
    finest = [site.layer for site, _ in seen if site.grid == (7, 11)]
    assert sorted(finest) == ["input.1.0", "output.4.0", "output.5.0"]


# --- what is refused ---


def test_an_unsupported_model_raises_and_says_what_is_supported():
    class Other(torch.nn.Module):
        diffusion_model = torch.nn.Linear(1, 1)

    class Patcher:
        model = Other()

    with pytest.raises(UnsupportedModelError, match="Other.*Linear.*SD 1.x.*Flux.1"):
        adapter_for(Patcher())


UNREACHABLE = [name for name in ("PixArt", "HunyuanDiT", "ErnieImage") if hasattr(comfy.model_base, name)]


@pytest.mark.parametrize("name", UNREACHABLE)
def test_models_that_the_host_gives_no_options_are_refused_with_that_reason(name):
    kind = getattr(comfy.model_base, name)

    class Patcher:
        model = object.__new__(type(name, (kind,), {}))

    Patcher.model.__dict__["_modules"] = {}
    with pytest.raises(UnsupportedModelError, match=f"{name}.*without the options that edits travel in"):
        adapter_for(Patcher())


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_relatives_that_no_adapter_was_tested_on_are_refused(models, family):
    """Flux.2 derives from Flux, MageFlow from Qwen-Image: other tokens in other places."""
    model = models[family].model
    other = object.__new__(type("Relative", (type(model),), {}))
    other.__dict__.update(model.__dict__)
    assert any(known.supports(model) for known in FAMILIES)
    assert not any(known.supports(other) for known in FAMILIES)


def test_unets_whose_self_attention_reads_the_text_are_refused():
    """SDXS and the x4 upscaler: some of their text attention would be left unedited."""
    model = tiny.build("sd15")
    next(m for m in model.model.modules() if hasattr(m, "disable_self_attn")).disable_self_attn = True
    with pytest.raises(UnsupportedModelError):
        adapter_for(model)


@every_family
def test_a_compiled_model_is_refused(models, layout, family):
    model = models[family].clone()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "torch.compile", lambda executor, *a, **k: executor(*a, **k))
    patched = install(model, layout, rectified(layout))
    with pytest.raises(IncompatiblePatchError, match="Remove TorchCompileModel"):
        tiny.run(family, patched, tiny.conditioning(family, layout.prompt, layout.key), steps=1)


@every_family
def test_one_prompt_with_two_layouts_keeps_them_apart(models, family):
    """The same words with other boxes, each for its part of the schedule."""
    one, two = tiny.layout(key="one"), tiny.layout(areas=(RIGHT_TOP,), key="two")
    seen_one, seen_two = [], []
    patched = install(install(models[family], one, [watching(seen_one)]), two, [watching(seen_two)])
    positive = tiny.conditioning(family, one.prompt, "one", start_percent=0.0, end_percent=0.5)
    positive += tiny.conditioning(family, two.prompt, "two", start_percent=0.5, end_percent=1.0)
    tiny.run(family, patched, positive, steps=4)
    first, second = ({site.progress for site, _ in seen} for seen in (seen_one, seen_two))
    assert first and second and max(first) <= 0.5 <= min(second)


@every_family
def test_another_prompt_is_refused(models, layout, family):
    patched = install(models[family], layout, rectified(layout))
    other = tiny.conditioning(family, tiny.text(154, seed=4))
    with pytest.raises(BoxwrightError, match="77 text tokens; the run has 154.*same Layout Prompt"):
        tiny.run(family, patched, other)
    same_length = tiny.conditioning(family, tiny.text(seed=4))
    with pytest.raises(BoxwrightError, match="same Layout Prompt"):
        tiny.run(family, patched, same_length)


@every_family
def test_the_same_prompt_from_another_node_is_accepted(models, layout, family):
    patched = install(models[family], layout, rectified(layout))
    marked = tiny.run(family, patched, tiny.conditioning(family, layout.prompt, layout.key))
    assert torch.equal(tiny.run(family, patched, tiny.conditioning(family, layout.prompt)), marked)


@every_family
def test_a_shortened_conditioning_is_refused_and_a_longer_one_keeps_its_words(models, layout, family):
    patched = install(models[family], layout, rectified(layout))
    short = tiny.conditioning(family, layout.prompt, layout.key)
    short[0][0] = short[0][0][:, :40]
    with pytest.raises(BoxwrightError, match="40 text tokens, its layout 77"):
        tiny.run(family, patched, short)
    seen = []
    watched = install(models[family], layout, [watching(seen)])
    longer = tiny.conditioning(family, layout.prompt, layout.key)
    longer[0][0] = torch.cat([longer[0][0], tiny.text(seed=8).embedding], dim=1)
    if tiny.FAMILIES[family].extra:
        longer[0][1].update(tiny.FAMILIES[family].extra(154))
    tiny.run(family, watched, longer, steps=1)
    assert seen and all(shape[3] == 77 for _, shape in seen)


@every_family
def test_the_negative_prompt_never_counts_as_the_layouts(models, layout, family):
    """A layout wired into the negative only is a mistake, said aloud."""
    patched = install(models[family], layout, rectified(layout))
    ours = tiny.conditioning(family, layout.prompt, layout.key)
    with pytest.raises(BoxwrightError, match="same Layout Prompt"):
        tiny.run(family, patched, tiny.conditioning(family, tiny.text(seed=4)), ours)


@every_family
def test_half_precision(layout, family):
    model = tiny.build(family, dtype=torch.bfloat16)
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    plain = tiny.run(family, model, positive, steps=1)
    for edits in (rectified(layout), Reweight((("w1", 4.0),)).edits(layout)):
        edited = tiny.run(family, install(model, layout, edits), positive, steps=1)
        assert edited.isfinite().all() and not torch.equal(plain, edited)
