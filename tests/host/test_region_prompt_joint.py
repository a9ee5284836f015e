"""Region prompts where one attention holds text and image: what each token reads, and that the rest stays as it is."""

from dataclasses import replace

import comfy.samplers
import pytest
import tiny_models as tiny
import torch
from coupling import NO_BASE, WHOLE, close, cond_and_uncond, coupled, run
from guides import slopes
from pack.attention_patches.core.seam import AttentionEdit
from pack.attention_patches.core.types import Box, StepWindow
from pack.attention_patches.host.attention import attend
from pack.attention_patches.host.attention.calls import IncompatiblePatchError
from pack.attention_patches.host.families import adapter_for
from pack.attention_patches.host.install import install
from pack.attention_patches.host.run.inputs import rows_of
from pack.attention_patches.methods.bounded_attention import BoundedAttention
from pack.attention_patches.methods.box_constraint import preset
from pack.attention_patches.methods.dense_diffusion import DenseDiffusion
from pack.attention_patches.methods.rectified_attention import PUBLISHED
from pack.attention_patches.methods.region_prompt import RegionPrompt
from pack.attention_patches.methods.reweight import Reweight

TAKEN = ("flux", "flux2", "chroma", "qwen", "zimage", "lumina2", "krea2", "sd3", "auraflow")
COUPLED = [family for family in tiny.JOINT if family in TAKEN]
every_family = pytest.mark.parametrize("family", COUPLED)
# Those whose text is the first of all tokens, 77 of them, and whose picture is 8 x 12: for tests that look into masks.
PLAIN = [family for family in COUPLED if family not in ("flux2", "auraflow")]
plain_family = pytest.mark.parametrize("family", PLAIN)
RIGHT = Box(0.5, 0.0, 0.5, 1.0)


@pytest.mark.parametrize("family", tiny.JOINT)
def test_what_declares_how_texts_stand_side_by_side_is_tested_here(models, family):
    assert (adapter_for(models[family]).beside is not None) == (family in TAKEN)


# --- identities ---


@every_family
@pytest.mark.parametrize("length", [64, 96, 77])
def test_one_region_over_everything_is_its_text_alone(models, family, length):
    """Also with another text between it and the image: of a region that is nowhere."""
    layout, alone = tiny.layout(areas=(WHOLE, torch.zeros(4, 4))), tiny.text(length, seed=44)
    texts = [alone.embedding, tiny.text(50, seed=45).embedding]
    noise = tiny.latent(family, (15, 23), 2)
    found = run(family, coupled(models[family], layout, texts=texts), layout, noise=noise)
    close(found, tiny.run(family, models[family], tiny.conditioning(family, alone), steps=1, noise=noise))


@every_family
def test_texts_that_are_the_prompt_change_nothing_where_they_see_the_same(models, family):
    """A region over everything that reads the prompt, by any share."""
    layout = tiny.layout(areas=(WHOLE,))
    plain, texts = run(family, models[family], layout), [layout.prompt.embedding]
    for method in (NO_BASE, replace(NO_BASE, base_ratio=0.3), replace(NO_BASE, strength=0.5)):
        close(run(family, coupled(models[family], layout, method, texts=texts), layout), plain)
    assert not torch.allclose(run(family, coupled(models[family], layout), layout), plain, atol=1e-2)


def test_strength_0_is_the_unpatched_picture_to_the_last_bit(models, layout):
    for family in COUPLED:
        off = coupled(models[family], layout, RegionPrompt(strength=0.0))
        assert torch.equal(run(family, off, layout), run(family, models[family], layout))


@every_family
def test_outside_its_window_nothing_changes(models, layout, family):
    late = coupled(models[family], layout, RegionPrompt(window=StepWindow(0.9, 1.0)))
    first = {"steps": 4, "last_step": 2}
    assert torch.equal(run(family, late, layout, **first), run(family, models[family], layout, **first))


# --- who reads whom ---


def attended(args, kwargs):
    """What each token of an attention call gives to each, by the definition: float64 [rows, heads, N, N]."""
    q, k, mask = args[0], args[1], kwargs.get("mask", args[4] if len(args) > 4 else None)
    heads = args[3] if len(args) > 3 else kwargs["heads"]
    if not kwargs.get("skip_reshape"):
        q, k = ((t if t.ndim == 4 else t.unflatten(-1, (heads, -1))).transpose(1, 2) for t in (q, k))
    scores = q.double() @ k.double().transpose(-1, -2) * q.shape[-1] ** -0.5
    return (scores + mask.double()).softmax(-1)


@plain_family
def test_tokens_read_each_other_as_promised(models, family):
    """From the masks that an override is given, layer by layer: texts are apart, and regions read their own."""
    lengths, layout = (40, 77), tiny.layout()
    texts = [tiny.text(n, seed=50 + n).embedding for n in lengths]
    seen = []
    patched = coupled(tiny.probe(models[family], seen), layout, replace(NO_BASE, base_ratio=0.25), texts=texts)
    run(family, patched, layout, cfg=1.0)
    adapter = adapter_for(models[family])
    starts, sizes = [0], [77]
    for length in lengths:  # each filled up by itself
        size = -(-length // adapter.multiple) * adapter.multiple
        starts.append(starts[-1] + sizes[-1])
        sizes.append(size)
    total = -(-sum(sizes) // adapter.multiple) * adapter.multiple
    calls = [(args, kwargs) for args, kwargs, _ in seen if _mask(args, kwargs) is not None]
    assert len(calls) == len(adapter.layers)
    left = torch.arange(96) % 12 < 6
    for args, kwargs in calls:
        probs = attended(args, kwargs)[0].mean(0)
        image = slice(total, total + 96)
        own = torch.zeros(probs.shape[0], dtype=torch.bool)
        own[:77], own[sum(sizes) : total] = True, True
        columns = [own]
        for start, size in zip(starts[1:], sizes[1:], strict=True):
            columns.append(torch.zeros_like(own).index_fill_(0, torch.arange(start, start + size), True))
        for number, mine in enumerate(columns):
            others = torch.stack([c for n, c in enumerate(columns) if n != number]).any(0)
            assert probs[mine][:, others].max() == 0 and probs[mine][:, mine].min() > 0
        for number, region in ((1, left), (2, ~left)):
            mine, seen_by_image = columns[number], probs[image]
            assert seen_by_image[~region][:, mine].max() == 0 and seen_by_image[region][:, mine].min() > 0
            to_image = probs[mine][:, image]
            assert to_image[:, ~region].max() == 0 and to_image[:, region].min() > 0
        assert probs[image][:, own].min() > 0 and probs[own][:, image].min() > 0


def _mask(args, kwargs):
    mask = kwargs.get("mask", args[4] if len(args) > 4 else None)
    return mask if mask is not None and mask.shape[-1] >= 250 else None


@plain_family
def test_weights_are_shares_of_one_softmax(models, layout, family):
    """Where both read the same scores, a text of weight w has w / (1 - w) times the odds: by the masks' own numbers."""
    seen = []
    method = RegionPrompt(base_ratio=0.25, confine_end=0.0)
    run(family, coupled(tiny.probe(models[family], seen), layout, method), layout, cfg=1.0)
    masks = [_mask(args, kwargs) for args, kwargs, _ in seen]
    masks = [mask for mask in masks if mask is not None]
    assert masks
    for mask in masks:
        start = mask.shape[-1] - 96
        image = mask[0, 0, start:].exp()
        left = torch.arange(96) % 12 < 6
        torch.testing.assert_close(image[left][:, [0, 77]], torch.tensor([0.25, 0.75]).expand(48, 2))
        torch.testing.assert_close(image[~left][:, [0, 77]], torch.tensor([0.25, 0.0]).expand(48, 2))
        assert (image[:, start:] == 1).all()


# --- how the rows come ---


def apart(reference):
    """The host's evaluation of all conds, one after the other."""

    def each(model, conds, x, timestep, options):
        rows = [[entries if i == j else None for j, entries in enumerate(conds)] for i in range(len(conds))]
        return [reference(model, row, x, timestep, options)[i] for i, row in enumerate(rows)]

    return each


@every_family
def test_the_negatives_rows_are_bit_identical(models, layout, family, monkeypatch):
    """As the host computes them alone: the couple's rows are longer, and leave them to a call of their own."""
    noise = tiny.latent(family, (15, 23), batch=2)
    edited = cond_and_uncond(family, coupled(models[family], layout, RegionPrompt()), layout, noise=noise)
    monkeypatch.setattr(comfy.samplers, "_calc_cond_batch", apart(comfy.samplers._calc_cond_batch))
    plain = cond_and_uncond(family, models[family], layout, noise=noise)
    assert torch.equal(edited[1], plain[1])
    assert not torch.allclose(edited[0], plain[0], atol=1e-2)


@every_family
@pytest.mark.parametrize("length", [77, 50])
def test_the_negative_prompts_length_and_place_do_not_matter(models, layout, family, length, monkeypatch):
    """Together in one call, in two calls, and in the other order."""
    negative = tiny.conditioning(family, tiny.text(length, seed=2), seed=6)
    patched = coupled(models[family], layout, RegionPrompt())
    together = run(family, patched, layout, negative=negative)
    reference = comfy.samplers._calc_cond_batch

    def turned(model, conds, x, timestep, options):
        return reference(model, conds[::-1], x, timestep, options)[::-1]

    for other in (apart(reference), turned):
        monkeypatch.setattr(comfy.samplers, "_calc_cond_batch", other)
        close(run(family, patched, layout, negative=negative), together)


@every_family
def test_each_picture_of_a_batch_is_the_same_as_alone(models, layout, family):
    noise, patched = tiny.latent(family, (33, 17), batch=3), coupled(models[family], layout, RegionPrompt())
    together = run(family, patched, layout, noise=noise)
    for row in (0, 2):
        close(run(family, patched, layout, noise=noise[row : row + 1]), together[row : row + 1])
    assert not torch.allclose(together, run(family, models[family], layout, noise=noise), atol=1e-2)


@every_family
def test_negative_phrases_count_in_the_negatives_rows_and_only_there(models, layout, family):
    """Over everything, at no share: the negative's rows are those of the phrase alone."""
    against, whole = tiny.text(60, seed=40), tiny.layout(areas=(WHOLE,))
    opposed = replace(whole, region_negatives=(against,))
    alone = cond_and_uncond(family, coupled(models[family], whole), whole)
    both = cond_and_uncond(family, coupled(models[family], opposed), opposed)
    close(both[0], alone[0])
    negative = tiny.conditioning(family, against, seed=6)
    close(both[1], cond_and_uncond(family, models[family], whole, negative=negative)[1])
    assert not torch.allclose(both[1], alone[1], atol=1e-2)


@every_family
def test_an_area_reads_its_own_part_of_the_regions(models, layout, family):
    """The right half as an area: every one of its tokens is in the right region."""
    area = dict(area=(16, 12, 0, 12), strength=1.0)
    positive = tiny.conditioning(family, layout.prompt, layout.key, **area)
    out = tiny.run(family, coupled(models[family], layout), positive, steps=1, cfg=1.0)
    right = [[layout.region_texts[1].embedding, dict(positive[0][1])]]
    right[0][1].pop("boxwright_layout")
    close(out[..., 12:], tiny.run(family, models[family], right, steps=1, cfg=1.0)[..., 12:])


@pytest.mark.parametrize("family", ["flux", "flux2", "qwen"])
def test_reference_images_are_read_as_by_the_text_alone(models, family):
    layout, alone = tiny.layout(areas=(WHOLE,)), tiny.text(60, seed=44)
    references = [tiny.latent(family, size=(6, 10), seed=8), tiny.latent(family, size=(8, 8), seed=9)]
    positive = tiny.conditioning(family, layout.prompt, layout.key, reference_latents=references)
    found = tiny.run(family, coupled(models[family], layout, texts=[alone.embedding]), positive, steps=1)
    expected = tiny.run(family, models[family], tiny.conditioning(family, alone, reference_latents=references), steps=1)
    close(found, expected)


def test_a_mask_of_the_texts_own_tokens_lets_the_regions_texts_through(models):
    """Qwen-Image's conditioning may say which of its tokens count."""
    layout, alone = tiny.layout(areas=(WHOLE,)), tiny.text(60, seed=44)
    mask = torch.ones(1, 77, dtype=torch.long)
    mask[:, 50:] = 0
    positive = tiny.conditioning("qwen", layout.prompt, layout.key, attention_mask=mask)
    found = tiny.run("qwen", coupled(models["qwen"], layout, texts=[alone.embedding]), positive, steps=1, cfg=1.0)
    close(found, tiny.run("qwen", models["qwen"], tiny.conditioning("qwen", alone), steps=1, cfg=1.0))
    with pytest.raises(IncompatiblePatchError, match="attention mask of 1x173x173"):
        shape = dict(attention_mask=torch.ones(1, 173, 173), attention_mask_img_shape=(8, 12))
        positive = tiny.conditioning("flux", layout.prompt, layout.key, **shape)
        tiny.run("flux", coupled(models["flux"], layout), positive, steps=1)


def test_rows_that_run_apart_take_their_inputs_with_them():
    rows, options = torch.arange(6), {"uuids": ["a", "b", "c"], "cond_or_uncond": [0, 1, 0], "sigmas": torch.ones(2)}
    control = {"input": [rows[:, None], None], "output": [torch.ones(1, 6)]}
    given = (rows, control, options), {"references": [rows], "n": 3}
    (x, passed, fewer), named = rows_of(given, slice(1, 3), 6, options)
    assert x.tolist() == [2, 3, 4, 5] == named["references"][0].tolist() and named["n"] == 3
    assert passed["input"][0][:, 0].tolist() == [2, 3, 4, 5] and passed["input"][1] is None
    assert passed["output"][0].shape == (1, 6)  # of no row
    assert fewer["uuids"] == ["b", "c"] and fewer["cond_or_uncond"] == [1, 0] and len(fewer["sigmas"]) == 2
    assert options["uuids"] == ["a", "b", "c"]


# --- which blocks ---


@plain_family
def test_elsewhere_the_image_reads_the_prompt_alone(models, layout, family):
    """Every second block, from the first on; and in none, all is as it was."""
    seen = []
    method = replace(NO_BASE, every=2)
    run(family, coupled(tiny.probe(models[family], seen), layout, method), layout, cfg=1.0)
    masks = [mask for mask in (_mask(args, kwargs) for args, kwargs, _ in seen) if mask is not None]
    assert len(masks) == len(adapter_for(models[family]).layers)
    for number, mask in enumerate(masks):
        image = mask[0, 0, -96:].exp()
        acts = number % 2 == 0
        assert bool(image[:, 0].max() == 0) == acts and bool(image[:, 77].max() > 0) == acts
    off = replace(NO_BASE, blocks=StepWindow(0.99, 1.0))  # no block begins there
    close(run(family, coupled(models[family], layout, off), layout), run(family, models[family], layout))


# --- with others ---


@plain_family
@pytest.mark.parametrize("ours_first", [True, False])
def test_another_packs_override_still_runs_everywhere(models, layout, family, ours_first):
    seen, method = [], RegionPrompt(base_ratio=0.3)
    if ours_first:
        patched = tiny.probe(coupled(models[family], layout, method), seen)
    else:
        patched = coupled(tiny.probe(models[family], seen), layout, method)
    close(run(family, patched, layout, cfg=1.0), run(family, coupled(models[family], layout, method), layout, cfg=1.0))
    queries = [args[0].shape[2 if kwargs.get("skip_reshape") else 1] for args, kwargs, _ in seen]
    assert sum(count >= 231 + 96 for count in queries) == len(adapter_for(models[family]).layers)


def test_an_override_that_ignores_masks_is_left_out(models, layout):
    model = models["flux"].clone()

    def override(func, q, k, v, heads, mask=None, **kwargs):
        return func(q, k, v, heads, mask=None, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = override
    for method in (RegionPrompt(), NO_BASE):
        expected = run("flux", coupled(models["flux"], layout, method), layout)
        close(run("flux", coupled(model, layout, method), layout), expected)


def test_a_painted_region_of_cells_that_all_differ(models):
    """No two tokens read alike: with one mask of all by all, in one piece and in many."""
    painted = torch.rand(8, 12, generator=torch.Generator().manual_seed(1))
    layout, method, seen = tiny.layout(areas=(painted, RIGHT)), replace(NO_BASE, base_ratio=0.3), []
    with_one_mask = run("flux", coupled(tiny.probe(models["flux"], seen), layout, method), layout)
    whole = run("flux", coupled(models["flux"], layout, method), layout)
    close(whole, with_one_mask)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attend, "WORK_BYTES", 20_000)
        close(run("flux", coupled(models["flux"], layout, method), layout), whole)


EDITS = {
    "rectified": PUBLISHED.edits,
    "dense": DenseDiffusion().edits,
    "bound": BoundedAttention(StepWindow(), "all").edits,
    "reweight": Reweight((("w1", 4.0),)).edits,
}


@every_family
@pytest.mark.parametrize("name", EDITS)
def test_edits_of_the_prompt_compose_and_pieces_of_any_size_are_the_same(models, layout, family, name, monkeypatch):
    soft = RegionPrompt(base_ratio=0.3, feather=0.3)
    patched = install(models[family], layout, [*soft.edits(layout), *EDITS[name](layout)])
    both = run(family, patched, layout)
    assert not torch.allclose(both, run(family, coupled(models[family], layout, soft), layout), atol=1e-3)
    monkeypatch.setattr(attend, "WORK_BYTES", 40_000)
    close(run(family, patched, layout), both)
    other_order = install(install(models[family], layout, EDITS[name](layout)), layout, soft.edits(layout))
    close(run(family, other_order, layout), both)


@plain_family
def test_probabilities_that_readers_see_are_those_of_the_attention(models, layout, family):
    """The same numbers by the definition, from what an override is given; further texts take their share."""
    seen, calls = [], []
    look = AttentionEdit("look", "read", lambda p, s: seen.append(p.clone()))
    method = RegionPrompt(base_ratio=0.3, confine_end=0.0)
    patched = install(tiny.probe(models[family], calls), layout, [*method.edits(layout), look])
    run(family, patched, layout, cfg=1.0)
    calls = [(args, kwargs) for args, kwargs, _ in calls if _mask(args, kwargs) is not None]
    assert len(seen) == len(calls) > 0
    for found, (args, kwargs) in zip(seen, calls, strict=True):
        torch.testing.assert_close(found.double(), attended(args, kwargs)[:, :, -96:, :77], atol=1e-5, rtol=1e-3)


@every_family
@pytest.mark.parametrize("mode", ["boxdiff", "fast"])
def test_a_guide_moves_the_picture_beside_the_couple(models, layout, family, mode):
    edits = [*RegionPrompt().edits(layout), *preset("standard", mode).guides(layout)]
    guided = run(family, install(models[family], layout, edits), layout, steps=2)
    unguided = run(family, coupled(models[family], layout, RegionPrompt()), layout, steps=2)
    assert guided.isfinite().all() and not torch.allclose(guided, unguided, atol=1e-4)


@every_family
def test_gradients_pass_through_the_couple(models, layout, family, monkeypatch):
    """The loss grows as its gradient says, by what the couple passes on, too."""
    model = install(models[family], layout, RegionPrompt().edits(layout))
    grown, expected = slopes(family, model, layout, monkeypatch)
    assert expected == pytest.approx(grown, rel=0.03)


@every_family
def test_half_precision(layout, family):
    model = tiny.build(family, dtype=torch.bfloat16)
    plain = run(family, model, layout)
    edited = run(family, coupled(model, layout, RegionPrompt()), layout)
    assert edited.isfinite().all() and not torch.equal(edited, plain)


@every_family
def test_the_model_is_left_as_it_was(models, layout, family):
    """Also after a run that ended with an error."""
    plain = run(family, models[family], layout)
    patched = coupled(models[family], layout, RegionPrompt(), texts=[tiny.text(40).embedding, tiny.text(50).embedding])
    first = run(family, patched, layout)

    def fail(func, *args, **kwargs):
        raise RuntimeError("stop")

    broken = models[family].clone()
    broken.model_options["transformer_options"]["optimized_attention_override"] = fail
    with pytest.raises(RuntimeError, match="stop"):
        run(family, coupled(broken, layout, RegionPrompt(), texts=[tiny.text(40).embedding] * 2), layout)
    assert torch.equal(run(family, models[family], layout), plain) and torch.equal(run(family, patched, layout), first)
    assert not any(module._forward_hooks for module in models[family].model.diffusion_model.modules())


# --- dense and bound, on every model with joint attention ---


@pytest.mark.parametrize("family", tiny.JOINT)
def test_dense_in_pieces_of_any_size(models, layout, family, monkeypatch):
    dense = DenseDiffusion(own_phrases=adapter_for(models[family]).own_text)
    patched = install(models[family], layout, dense.edits(layout))
    whole = run(family, patched, layout, cfg=1.0)
    assert not torch.allclose(whole, run(family, models[family], layout, cfg=1.0), atol=1e-3)
    monkeypatch.setattr(attend, "WORK_BYTES", 100_000)
    close(run(family, patched, layout, cfg=1.0), whole)


@pytest.mark.parametrize("family", tiny.JOINT)
def test_bounded_regions_do_not_see_each_other(models, layout, family):
    """Readers see probabilities of exactly 0 from the one half to the other, in every layer."""
    seen = []
    look = AttentionEdit("look", "read", lambda p, s: seen.append((s, p.clone())), kind="image_image")
    edits = [*BoundedAttention(StepWindow(), "all").edits(layout), look]
    run(family, install(models[family], layout, edits), layout, cfg=1.0)
    assert {site.layer for site, _ in seen} >= tiny.FAMILIES[family].layers
    for site, probs in seen:
        left = torch.arange(site.grid[0] * site.grid[1]) % site.grid[1] < site.grid[1] // 2
        assert probs[..., left[site.queries], :][..., ~left].max() == 0 and probs[..., left].max() > 0
