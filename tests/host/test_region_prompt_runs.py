"""Region prompts in the host: what the layers return, and that it does not matter how the rows come to them."""

from dataclasses import replace

import comfy.samplers
import pytest
import tiny_models as tiny
import torch
from comfy.ldm.modules import attention
from comfy_extras import nodes_custom_sampler, nodes_perpneg
from coupling import NO_BASE, WHOLE, close, cond_and_uncond, coupled, run
from guides import slopes
from pack.attention_patches.core.grids import coverage
from pack.attention_patches.core.seam import AttentionEdit
from pack.attention_patches.core.types import Box, StepWindow, UnsupportedModelError
from pack.attention_patches.host.attention import attend
from pack.attention_patches.host.attention.calls import IncompatiblePatchError
from pack.attention_patches.host.install import install
from pack.attention_patches.methods.bounded_attention import BoundedAttention
from pack.attention_patches.methods.box_constraint import preset
from pack.attention_patches.methods.dense_diffusion import DenseDiffusion
from pack.attention_patches.methods.rectified_attention import PUBLISHED
from pack.attention_patches.methods.region_prompt import RegionPrompt

FAMILIES = ["sd15", "sd2", "sdxl"]  # sd2 predicts v
every_family = pytest.mark.parametrize("family", FAMILIES)


# --- exactness ---


@every_family
def test_a_whole_image_region_that_reads_the_prompt_is_no_patch(models, family):
    layout = tiny.layout(areas=(WHOLE,))
    plain = run(family, models[family], layout)
    texts = [layout.prompt.embedding]
    for method in (NO_BASE, RegionPrompt()):
        close(run(family, coupled(models[family], layout, method, texts=texts), layout), plain)
    assert not torch.allclose(run(family, coupled(models[family], layout), layout), plain, atol=1e-2)


def test_strength_0_is_the_unpatched_picture_to_the_last_bit(models, layout):
    plain = run("sd15", models["sd15"], layout)
    for method in (RegionPrompt(strength=0.0), DenseDiffusion(strength=0.0)):
        assert torch.equal(run("sd15", install(models["sd15"], layout, method.edits(layout)), layout), plain)


def hand_wired(model, prompt, texts, weights_of):
    """Every cross-attention by the book, its keys and values from the layer's own projections: an attn2 replace."""
    model = model.clone()
    unet = model.model.diffusion_model
    layers = {}
    parts = {"input": unet.input_blocks, "middle": [unet.middle_block], "output": unet.output_blocks}
    for part, blocks in parts.items():
        for number, block in enumerate(blocks):
            for layer in block:
                for index, inner in enumerate(getattr(layer, "transformer_blocks", ())):
                    layers[part, number, index] = inner.attn2

    def replaced(q, k, v, extra):
        block, heads = extra["block"], extra["n_heads"]
        layer = layers[block[0], block[1], extra.get("block_index", 0)]
        heads_of = lambda t: t.unflatten(-1, (heads, -1)).transpose(1, 2).double()  # noqa: E731

        def attend_to(q, k, v):
            scores = heads_of(q) @ heads_of(k).transpose(-1, -2) * heads_of(q).shape[-1] ** -0.5
            return (scores.softmax(-1) @ heads_of(v)).transpose(1, 2).flatten(2)

        out = attend_to(q, k, v)
        size = q.shape[0] // len(extra["cond_or_uncond"])
        weights = weights_of(extra["activations_shape"][-2:]).double()
        for chunk, kind in enumerate(extra["cond_or_uncond"]):
            rows = slice(chunk * size, (chunk + 1) * size)
            if kind == 0:
                mixed = (1 - weights.sum(0))[:, None] * out[rows]
                for text, weight in zip(texts, weights, strict=True):
                    text = text.expand(size, -1, -1)
                    mixed += weight[:, None] * attend_to(q[rows], layer.to_k(text), layer.to_v(text))
                out[rows] = mixed
        return out.to(q)

    for block in {(part, number) for part, number, _ in layers}:
        model.set_model_attn2_replace(replaced, *block)
    return model


def halves(grid):
    left = (torch.arange(grid[0] * grid[1]) % grid[1] < grid[1] // 2).float()
    return torch.stack([left, 1 - left])


@every_family
@pytest.mark.parametrize("lengths", [(77, 77), (154, 77)])
def test_two_halves_equal_the_layers_computed_by_hand(models, layout, family, lengths):
    texts = [tiny.text(n, seed=50 + n).embedding for n in lengths]
    method = RegionPrompt(base_ratio=0.25, confine_end=0.0)
    expected = run(
        family,
        hand_wired(models[family], layout.prompt, texts, lambda grid: 0.75 * halves(grid)),
        layout,
        noise=tiny.latent(family, batch=2),
    )
    patched = coupled(models[family], layout, method, texts=texts)
    close(run(family, patched, layout, noise=tiny.latent(family, batch=2)), expected)


@every_family
def test_a_regions_text_has_no_influence_outside_it_in_any_layer(models, layout, family):
    """Asserted on what the attention layers return for the same queries: other keys and values for the left region."""
    results = []
    for seed in (1, 2):
        texts = [tiny.text(seed=seed + 10).embedding, tiny.text(seed=20).embedding]
        found, patched = {}, coupled(models[family], layout, texts=texts)
        queries = {}

        def note(n, extra, found=found):
            block = extra["block"]
            found[block[0], block[1], extra.get("block_index", 0)] = (n.clone(), tuple(extra["activations_shape"][-2:]))
            return n

        # Every layer gets the queries of an unpatched run, so that earlier layers cannot carry the text over.
        patched.set_model_attn2_output_patch(note)
        patched.set_model_attn2_patch(_queries_of(queries, results[0][1] if results else None))
        run(family, patched, layout, cfg=1.0)
        results.append((found, queries))
    (one, _), (two, _) = results
    assert one.keys() == two.keys() and len(one) >= 5
    for key, (out, grid) in one.items():
        changed = (out != two[key][0]).any(-1)[0]
        left = halves(grid)[0].bool()
        assert not changed[~left].any() and changed[left].all(), key


def _queries_of(noted, given):
    """An attn2 patch that notes the image's side of each layer, or puts back what was noted in another run."""

    def patch(n, context, value, extra):
        key = (*extra["block"], extra.get("block_index", 0))
        if given is not None:
            n = given[key].clone()
        noted[key] = n.clone()
        return n, context, value

    return patch


@pytest.mark.parametrize("overlap", ["order", "blend"])
def test_permuting_regions_permutes_nothing_else(models, overlap):
    layout = tiny.layout()
    turned = replace(
        layout, regions=layout.regions[::-1], columns=layout.columns.flip(0), region_texts=layout.region_texts[::-1]
    )
    method = RegionPrompt(overlap=overlap)
    first, second = (run("sd15", coupled(models["sd15"], lay, method), lay) for lay in (layout, turned))
    close(first, second)
    assert not torch.allclose(first, run("sd15", models["sd15"], layout), atol=1e-2)


# --- how the rows come ---


@every_family
def test_each_picture_of_a_batch_is_the_same_as_alone(models, layout, family):
    noise = tiny.latent(family, batch=4)
    patched = coupled(models[family], layout, RegionPrompt())
    together = run(family, patched, layout, noise=noise)
    for row in (0, 3):
        close(run(family, patched, layout, noise=noise[row : row + 1]), together[row : row + 1])
    assert not torch.allclose(together, run(family, models[family], layout, noise=noise), atol=1e-2)


@every_family
@pytest.mark.parametrize("length", [77, 154, 231])
def test_the_negative_prompts_length_and_place_do_not_matter(models, layout, family, length, monkeypatch):
    """Together in one call (the text repeated to match), in two calls, and in the other order."""
    negative = tiny.conditioning(family, tiny.text(length, seed=2), seed=6)
    patched = coupled(models[family], layout, RegionPrompt())
    together = run(family, patched, layout, negative=negative)
    reference = comfy.samplers._calc_cond_batch

    def apart(model, conds, x, timestep, options):
        rows = [[entries if i == j else None for j, entries in enumerate(conds)] for i in range(len(conds))]
        return [reference(model, row, x, timestep, options)[i] for i, row in enumerate(rows)]

    def turned(model, conds, x, timestep, options):
        return reference(model, conds[::-1], x, timestep, options)[::-1]

    for other in (apart, turned):
        monkeypatch.setattr(comfy.samplers, "_calc_cond_batch", other)
        close(run(family, patched, layout, negative=negative), together)
    assert not torch.allclose(together, run(family, models[family], layout, negative=negative), atol=1e-2)


@every_family
def test_long_prompts_and_texts(models, family):
    layout = tiny.layout(prompt=tiny.text(154))
    texts = [tiny.text(77, seed=31).embedding, tiny.text(231, seed=32).embedding]
    expected = hand_wired(models[family], layout.prompt, texts, halves)
    close(run(family, coupled(models[family], layout, texts=texts), layout), run(family, expected, layout))


def test_the_negatives_rows_stay_without_negative_phrases(models, layout):
    plain = cond_and_uncond("sd15", models["sd15"], layout, noise=tiny.latent("sd15", batch=2))
    edited = cond_and_uncond("sd15", coupled(models["sd15"], layout), layout, noise=tiny.latent("sd15", batch=2))
    close(edited[1], plain[1])
    assert not torch.allclose(edited[0], plain[0], atol=1e-2)


@pytest.mark.parametrize("guider", ["cfg", "dual", "perpneg"])
def test_guiders_with_more_conds(models, layout, guider):
    """The prompt's prediction is that of the ordinary guider, whatever stands beside it."""
    positive = tiny.conditioning("sd15", layout.prompt, layout.key)
    negative, other = (tiny.conditioning("sd15", tiny.text(seed=s), seed=6) for s in (2, 3))

    def of(model):
        seen, model = [], model.clone()
        model.set_model_sampler_pre_cfg_function(lambda args: seen.append(args["conds_out"]) or args["conds_out"])
        if guider == "dual":
            made = nodes_custom_sampler.Guider_DualCFG(model)
            made.set_conds(positive, other, negative)
            made.set_cfg(3.0, 2.0)
        elif guider == "perpneg":
            made = nodes_perpneg.Guider_PerpNeg(model)
            made.set_conds(positive, negative, other)
            made.set_cfg(3.0, 1.0)
        else:
            made = comfy.samplers.CFGGuider(model)
            made.set_conds(positive, negative)
            made.set_cfg(3.0)
        noise = tiny.latent("sd15")
        out = made.sample(
            noise,
            torch.zeros_like(noise),
            comfy.samplers.ksampler("euler"),
            comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 1),
        )
        return out, seen

    patched = coupled(models["sd15"], layout)
    out, _ = of(patched)
    plain, _ = of(models["sd15"])
    expected, _ = of(hand_positive(models["sd15"], layout, guider))
    assert not torch.allclose(out, plain, atol=1e-3)
    close(out, expected)


def hand_positive(model, layout, guider):
    """The layers by hand, for a guider in which the prompt is cond 0 (DualCFG: the last of three)."""
    index = {"cfg": 0, "dual": 2, "perpneg": 0}[guider]
    patched = hand_wired(model, layout.prompt, [text.embedding for text in layout.region_texts], halves)
    slots = patched.model_options["transformer_options"]["patches_replace"]["attn2"]
    for key, fn in list(slots.items()):

        def turned(q, k, v, extra, fn=fn):
            kinds = [0 if kind == index else 1 for kind in extra["cond_or_uncond"]]
            return fn(q, k, v, {**extra, "cond_or_uncond": kinds})

        slots[key] = turned
    return patched


def test_an_area_reads_its_own_part_of_the_regions(models, layout):
    """The right half as an area: every one of its tokens is in the right region."""
    area = dict(area=(16, 12, 0, 12), strength=1.0)
    positive = tiny.conditioning("sd15", layout.prompt, layout.key, **area)
    out = tiny.run("sd15", coupled(models["sd15"], layout), positive, steps=1, cfg=1.0)
    right = [[layout.region_texts[1].embedding, dict(positive[0][1])]]
    right[0][1].pop("boxwright_layout")
    close(out[..., 12:], tiny.run("sd15", models["sd15"], right, steps=1, cfg=1.0)[..., 12:])


# --- negatives ---


def test_negative_phrases_count_in_the_negatives_rows_and_only_there(models, layout):
    against = tiny.text(seed=40)
    opposed = replace(layout, region_negatives=(None, against))
    alone = cond_and_uncond("sd15", coupled(models["sd15"], layout), layout)
    both = cond_and_uncond("sd15", coupled(models["sd15"], opposed), opposed)
    close(both[0], alone[0])
    swapped = replace(layout, prompt=tiny.text(seed=2), region_texts=(tiny.text(seed=2), against))
    # The same as the couple of a positive prompt that is the negative one's text.
    positive = tiny.conditioning("sd15", swapped.prompt, swapped.key, seed=6)
    seen, model = [], coupled(models["sd15"], swapped)
    model.set_model_sampler_pre_cfg_function(lambda args: seen.append(args["conds_out"]) or args["conds_out"])
    tiny.run("sd15", model, positive, steps=1)
    close(both[1], seen[0][0])
    assert not torch.allclose(both[1], alone[1], atol=1e-2)


def test_the_empty_prompt_of_perp_neg_is_no_negative(models, layout):
    """At a scale of 0 the negative has no effect; nor may its phrases have one through the empty prompt."""

    def out(lay):
        model = coupled(models["sd15"], lay)
        guider = nodes_perpneg.Guider_PerpNeg(model)
        negative, empty = (tiny.conditioning("sd15", tiny.text(seed=s), seed=6) for s in (2, 3))
        guider.set_conds(tiny.conditioning("sd15", lay.prompt, lay.key), negative, empty)
        guider.set_cfg(3.0, 0.0)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 1)
        noise = tiny.latent("sd15")
        return guider.sample(noise, torch.zeros_like(noise), comfy.samplers.ksampler("euler"), sigmas)

    close(out(replace(layout, region_negatives=(None, tiny.text(seed=40)))), out(layout))


def test_without_a_negative_prompt_that_is_said(models, layout):
    said = []
    opposed = replace(layout, region_negatives=(None, tiny.text(seed=40)))
    patched = install(models["sd15"], opposed, NO_BASE.edits(opposed), said.append)
    run("sd15", patched, opposed)
    assert said == []
    run("sd15", patched, opposed, cfg=1.0)
    assert len(said) == 1 and "CFG 1" in said[0]


def test_guiders_with_scales_of_their_own_do_hear_the_negative(models, layout):
    """The host's DualCFG leaves the one of its base class at 1."""
    said = []
    opposed = replace(layout, region_negatives=(None, tiny.text(seed=40)))
    guider = nodes_custom_sampler.Guider_DualCFG(install(models["sd15"], opposed, NO_BASE.edits(opposed), said.append))
    middle, negative = (tiny.conditioning("sd15", tiny.text(seed=s), seed=6) for s in (2, 3))
    guider.set_conds(tiny.conditioning("sd15", opposed.prompt, opposed.key), middle, negative)
    guider.set_cfg(5.0, 5.0)
    noise = tiny.latent("sd15")
    guider.sample(noise, torch.zeros_like(noise), comfy.samplers.ksampler("euler"), torch.tensor([5.0, 0.0]))
    assert said == []


def test_a_guide_moves_the_prompts_rows_only(models, layout):
    """Negative phrases tie the layout to the negative's rows too; the gradient is that of the prompt's."""
    opposed = replace(layout, region_negatives=(tiny.text(seed=40), None))
    guides = preset("standard", "boxdiff").guides
    both = [*NO_BASE.edits(opposed), *guides(opposed)]
    first = run("sd15", install(models["sd15"], opposed, both), opposed, cfg=1.0)
    plain = [*NO_BASE.edits(layout), *guides(layout)]
    assert torch.equal(first, run("sd15", install(models["sd15"], layout, plain), layout, cfg=1.0))


# --- with others ---


def test_windows_let_the_rest_of_the_schedule_alone(models, layout):
    late = coupled(models["sd15"], layout, RegionPrompt(window=StepWindow(0.9, 1.0)))
    first = {"steps": 4, "last_step": 2}
    assert torch.equal(run("sd15", late, layout, **first), run("sd15", models["sd15"], layout, **first))


@pytest.mark.parametrize("ours_first", [True, False])
def test_another_packs_override_sees_the_calls_it_would_see_without_us(models, layout, ours_first):
    plain, seen = [], []
    run("sd15", tiny.probe(models["sd15"], plain), layout)
    if ours_first:
        patched = tiny.probe(coupled(models["sd15"], layout), seen)
    else:
        patched = coupled(tiny.probe(models["sd15"], seen), layout)
    out = run("sd15", patched, layout)
    close(out, run("sd15", coupled(models["sd15"], layout), layout))
    shapes = [[t.shape for t in call[0][:3]] for call in seen]
    assert shapes == [[t.shape for t in call[0][:3]] for call in plain]


def test_texts_follow_what_another_patch_makes_of_the_prompt(models, layout):
    """A patch that doubles the values of the text sees the prompt alone, not the regions' texts."""
    model, lengths = models["sd15"].clone(), set()

    def double(n, context, value, extra):
        lengths.add(context.shape[1])
        return n, context, value * 2

    model.set_model_attn2_patch(double)
    run("sd15", coupled(model, layout), layout)
    assert lengths == {77}


def test_a_replaced_attention_is_refused(models, layout):
    model = models["sd15"].clone()
    model.set_model_attn2_replace(
        lambda q, k, v, extra: attention.optimized_attention(q, k, 2.0 * v, extra["n_heads"]), "middle", 0
    )
    with pytest.raises(IncompatiblePatchError, match="middle.0.0"):
        run("sd15", coupled(model, layout), layout)


def test_the_couple_stands_on_what_other_edits_make_of_the_prompt(models, layout):
    """Rectified attention changes what the prompt's share reads; at no share it changes nothing inside the regions."""
    rectified = PUBLISHED.edits(layout)

    def with_edits(method):
        return run("sd15", install(models["sd15"], layout, [*rectified, *method.edits(layout)]), layout)

    close(with_edits(NO_BASE), run("sd15", coupled(models["sd15"], layout), layout))
    half = RegionPrompt(base_ratio=0.5, confine_end=0.0)
    assert not torch.allclose(with_edits(half), run("sd15", coupled(models["sd15"], layout, half), layout), atol=1e-3)


@every_family
@pytest.mark.parametrize("mode", ["boxdiff", "fast"])
def test_a_guide_moves_the_picture_beside_the_couple(models, layout, family, mode):
    edits = [*RegionPrompt().edits(layout), *BoundedAttention().edits(layout), *preset("standard", mode).guides(layout)]
    guided = run(family, install(models[family], layout, edits), layout, steps=2)
    unguided = run(family, coupled(models[family], layout, RegionPrompt()), layout, steps=2)
    assert guided.isfinite().all() and not torch.allclose(guided, unguided, atol=1e-4)


@every_family
def test_gradients_pass_through_the_couple(models, layout, family, monkeypatch):
    """The loss grows as its gradient says, by what the couple passes on, too."""
    model = install(models[family], layout, [*RegionPrompt().edits(layout), *BoundedAttention().edits(layout)])
    grown, expected = slopes(family, model, layout, monkeypatch)
    assert expected == pytest.approx(grown, rel=0.03)


def test_half_precision(layout):
    model = tiny.build("sd15", dtype=torch.bfloat16)
    plain = run("sd15", model, layout)
    for method in (RegionPrompt(), DenseDiffusion()):
        edited = run("sd15", install(model, layout, method.edits(layout)), layout)
        assert edited.isfinite().all() and not torch.equal(edited, plain)


# --- dense and bound ---


@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux"])
def test_dense_in_pieces_of_any_size(models, layout, family, monkeypatch):
    patched = install(models[family], layout, DenseDiffusion().edits(layout))
    whole = run(family, patched, layout)
    assert not torch.allclose(whole, run(family, models[family], layout), atol=1e-3)
    monkeypatch.setattr(attend, "WORK_BYTES", 20_000)
    close(run(family, patched, layout), whole)


@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_bound_acts_in_both_halves_of_guidance(models, layout, family):
    edits = BoundedAttention(StepWindow(), "all").edits(layout)
    bounded = cond_and_uncond(family, install(models[family], layout, edits), layout)
    plain = cond_and_uncond(family, models[family], layout)
    one = cond_and_uncond(family, install(models[family], layout, edits[:1]), layout)
    assert not torch.allclose(bounded[0], plain[0], atol=1e-3) and not torch.allclose(bounded[1], plain[1], atol=1e-3)
    close(one[1], plain[1])
    close(one[0], bounded[0])


def test_bounded_regions_do_not_see_each_other(models, layout):
    """Readers see probabilities of exactly 0 from the one half to the other, on every grid."""
    seen = []
    look = AttentionEdit("look", "read", lambda p, s: seen.append((s, p.clone())), kind="image_image")
    edits = [*BoundedAttention(StepWindow(), "all").edits(layout), look]
    run("sd15", install(models["sd15"], layout, edits), layout)
    assert len({site.grid for site, _ in seen}) == 3
    for site, probs in seen:
        left = halves(site.grid)[0].bool()
        assert probs[..., left[site.queries], :][..., ~left].max() == 0 and probs[..., left].max() > 0


@pytest.mark.parametrize("kind", ["image_text", "image_image"])
def test_dense_moves_scores_within_their_own_range_whatever_is_hidden(models, kind):
    """What a bias hides has no score of its own: taken for the row's least, it would hide all the rest too. So the odds
    between what stays visible are those of dense alone."""
    lay = tiny.layout(areas=(Box(0.0, 0.0, 0.4, 1.0), Box(0.6, 0.0, 0.4, 1.0)))
    hidden = PUBLISHED.edits(lay) if kind == "image_text" else BoundedAttention(StepWindow(), "all").edits(lay)

    def first_layer(*more):
        seen = []
        look = AttentionEdit("look", "read", lambda p, s: seen.append((s, p.clone())), kind=kind)
        edits = [*DenseDiffusion(own_phrases=False).edits(lay), *more, look]
        run("sd15", install(models["sd15"], lay, edits), lay, steps=1)
        return seen[0]

    (site, alone), (_, both) = first_layer(), first_layer(*hidden)
    left, right = (coverage(region.area, site.grid).flatten() for region in lay.regions)
    here = (left > 0.5)[site.queries]
    own, nobodys = (lay.columns[0], slice(0, 1)) if kind == "image_text" else (left > 0.5, (left + right) == 0)
    odds = [p[..., here, :][..., nobodys].sum(-1) / p[..., here, :][..., own].sum(-1) for p in (alone, both)]
    assert odds[0].min() > 0 and both[..., here, :].min() == 0
    torch.testing.assert_close(odds[1], odds[0], rtol=1e-3, atol=0)


def test_models_whose_texts_cannot_stand_side_by_side_are_refused_with_a_way_out(models, layout):
    with pytest.raises(UnsupportedModelError, match="Region Conditioning"):
        coupled(tiny.build("hunyuan_video"), layout)
