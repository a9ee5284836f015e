"""The adapters' contract beside other packs, and what is refused."""

from math import prod

import comfy.model_base
import comfy.samplers
import pytest
import tiny_models as tiny
import torch
from comfy.ldm.modules import attention
from comfy.patcher_extension import WrappersMP
from contract import RIGHT_TOP, TRANSFORMERS, UNETS, assert_close, every_family, rectified, watching
from pack.attention_patches.core.seam import NEVER, AttentionEdit
from pack.attention_patches.core.types import BoxwrightError, UnsupportedModelError
from pack.attention_patches.host.attention.cache import BiasCache
from pack.attention_patches.host.attention.call import AttentionCall
from pack.attention_patches.host.attention.calls import Chunk, IncompatiblePatchError, Installed, ModelCall, Place
from pack.attention_patches.host.attention.edited import edited_attention
from pack.attention_patches.host.families import FAMILIES, adapter_for
from pack.attention_patches.host.install import install
from pack.attention_patches.methods.reweight import Reweight

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
        return attention.optimized_attention(q, k, v, extra_options["n_heads"], transformer_options=extra_options)

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
    with pytest.raises(IncompatiblePatchError, match="test_contract_beside_others.*154"):
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
