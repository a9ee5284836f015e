"""What every adapter promises, on tiny random models of every supported family (architecture.md 4.2)."""

import comfy.samplers
import pytest
import tiny_models as tiny
import torch
from comfy.ldm.modules import attention
from comfy.patcher_extension import WrappersMP
from contract import assert_close, every_family, rectified, watching
from pack.attention_patches.core.seam import AttentionEdit
from pack.attention_patches.core.types import StepWindow
from pack.attention_patches.host.attention import attend
from pack.attention_patches.host.attention.call import AttentionCall
from pack.attention_patches.host.families import adapter_for
from pack.attention_patches.host.install import install
from pack.attention_patches.methods.reweight import Reweight

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


# --- how calls are batched and read ---


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
