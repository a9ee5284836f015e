"""Beside what other packs put on the same model. Their behaviour is written here as small patches of our own."""

import logging
from dataclasses import replace

import comfy.samplers
import pytest
import tiny_models as tiny
import torch
from comfy.ldm.modules import attention
from comfy_extras import nodes_advanced_samplers, nodes_custom_sampler, nodes_pag, nodes_sag
from guides import GUIDE, gradients, relative
from pack.attention_patches.core.seam import AttentionEdit
from pack.attention_patches.core.types import StepWindow
from pack.attention_patches.host.attention.calls import IncompatiblePatchError
from pack.attention_patches.host.install import install
from pack.attention_patches.host.prompt_to_prompt import edited
from pack.attention_patches.host.samplers.diff_mask import measure
from pack.attention_patches.host.samplers.flow_edit import FlowEditing, edit_by_flow
from pack.attention_patches.host.samplers.loops import schedule
from pack.attention_patches.methods.bounded_attention import BoundedAttention
from pack.attention_patches.methods.dense_diffusion import DenseDiffusion
from pack.attention_patches.methods.prompt_to_prompt import PromptToPrompt
from pack.attention_patches.methods.rectified_attention import PUBLISHED, RectifiedAttention
from pack.attention_patches.methods.region_prompt import RegionPrompt
from pack.attention_patches.methods.reweight import Reweight
from pack.attention_patches.samplers.diff_mask import DiffMask
from test_prompt_to_prompt_runs import conditioning as side_by_side
from test_prompt_to_prompt_runs import prompts_of

BOUND = BoundedAttention(StepWindow(), "all")
COUPLE = RegionPrompt(base_ratio=0.2, confine_end=0.0, window=StepWindow())
DENSE = DenseDiffusion(window=StepWindow())
RENORMALISED = Reweight((("w1", 4.0),), renormalize=True)
REWEIGHT = Reweight((("w1", 4.0),))


@pytest.fixture(scope="module")
def models():
    return {family: tiny.build(family) for family in ["sd15", "flux"]}


@pytest.fixture
def layout():
    return tiny.layout()


def run(model, layout, family="sd15", batch=1, **options):
    options.setdefault("noise", tiny.latent(family, size=(8, 12), batch=batch))
    return tiny.run(family, model, tiny.conditioning(family, layout.prompt, layout.key), **{"steps": 1, **options})


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=2e-4 * float(b.abs().max()))


def apart(a, b):
    assert not torch.allclose(a, b, rtol=0, atol=1e-3 * float(b.abs().max()))


def recording(maps):
    return AttentionEdit("look", "read", lambda probs, site: maps.append((site.layer, probs.clone())))


# --- attention that ignores masks ---


def swallowing(seen=None, change=1.0):
    """An override like those of SageAttention: a kernel that takes any keyword and does nothing with a mask."""

    def swallow(func, q, k, v, heads, mask=None, *args, **kwargs):
        if seen is not None:
            seen.append(q.shape)
        return func(q * change, k, v, heads, None, *args, **kwargs)

    return swallow


def overridden(model, override):
    model = model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    return model


@pytest.mark.parametrize("family", ["sd15", "flux"])
@pytest.mark.parametrize("method", [PUBLISHED, RENORMALISED, BOUND], ids=["rectified", "reweight", "bound"])
def test_masks_count_beside_an_override_that_ignores_them(models, layout, family, method, caplog):
    seen, plain = [], []
    model = models[family]
    run(overridden(model, swallowing(plain)), layout, family)
    patched = install(overridden(model, swallowing(seen)), layout, method.edits(layout))
    with caplog.at_level(logging.WARNING):
        out = run(patched, layout, family)
    close(out, run(install(model, layout, method.edits(layout)), layout, family))
    apart(out, run(model, layout, family))
    assert seen == plain  # as often as without us, with all rows and queries
    assert "swallowing" in caplog.text and "ignores masks" in caplog.text


def test_an_override_that_ignores_masks_and_changes_attention_is_refused(models, layout):
    patched = install(overridden(models["sd15"], swallowing(change=4.0)), layout, PUBLISHED.edits(layout))
    with pytest.raises(IncompatiblePatchError, match=r"test_other_packs.swallowing.*ignores masks"):
        run(patched, layout)


def test_an_override_that_heeds_masks_keeps_its_effect(models, layout):
    def sharper(func, q, *args, **kwargs):
        return func(q * 1.5, *args, **kwargs)

    patched = install(overridden(models["sd15"], sharper), layout, PUBLISHED.edits(layout))
    out = run(patched, layout)
    apart(out, run(overridden(models["sd15"], sharper), layout))
    apart(out, run(install(models["sd15"], layout, PUBLISHED.edits(layout)), layout))


@pytest.mark.parametrize("method", [PUBLISHED, RENORMALISED, BOUND], ids=["rectified", "reweight", "bound"])
def test_masks_count_with_the_hosts_sage_attention(models, layout, method, monkeypatch):
    """Older hosts hand every mask to the package, whose kernels take it as one more keyword."""
    expected = run(install(models["sd15"], layout, method.edits(layout)), layout)
    used = []

    def sageattn(q, k, v, is_causal=False, tensor_layout="HND", sm_scale=None, **ignored):
        used.append(1)
        heads_first = [t if tensor_layout == "HND" else t.transpose(1, 2) for t in (q, k, v)]
        out = torch.nn.functional.scaled_dot_product_attention(*heads_first, scale=sm_scale)
        return out if tensor_layout == "HND" else out.transpose(1, 2)

    monkeypatch.setattr(attention, "sageattn", sageattn, raising=False)
    monkeypatch.setattr(attention, "SAGE_ATTENTION_SUPPORTS_MASK", True, raising=False)
    monkeypatch.setattr(attention, "optimized_attention", attention.attention_sage)
    close(run(install(models["sd15"], layout, method.edits(layout)), layout), expected)
    assert used


# --- gradients ---


@pytest.mark.parametrize("moves", ["latent", "prediction"])
@pytest.mark.parametrize(
    "method",
    [
        REWEIGHT, replace(REWEIGHT, region=1), RENORMALISED, PUBLISHED, replace(PUBLISHED, end_tokens="own"),
        replace(PUBLISHED, end_tokens="hidden"), DENSE, BOUND, COUPLE,
    ],
    ids=["reweight", "in a region", "renormalised", "rectified", "own ends", "hidden ends", "dense", "bound", "couple"],
)  # fmt: skip
def test_every_method_lets_gradients_pass(models, layout, method, moves):
    """Nodes make their tensors in inference mode, as these here."""
    guide = replace(GUIDE, moves=moves)
    with_it = install(models["sd15"], layout, [*method.edits(layout), guide])
    out = run(with_it, layout)
    assert out.isfinite().all()
    apart(out, run(install(models["sd15"], layout, method.edits(layout)), layout))


def test_a_gradient_does_not_depend_on_where_factors_were_made(models, layout):
    (ours,) = gradients("sd15", install(models["sd15"], layout, REWEIGHT.edits(layout)), layout)
    with torch.inference_mode(False):
        edits = REWEIGHT.edits(layout)
    (expected,) = gradients("sd15", install(models["sd15"], layout, edits), layout)
    assert torch.equal(ours.values, expected.values)
    (plain,) = gradients("sd15", models["sd15"], layout)
    assert relative(ours.values, plain.values) > 0.01


def test_prompt_to_prompt_lets_gradients_of_another_prompt_pass(models, layout):
    """In the mode "fast" its rows run in one pass with those of a layout that is guided."""
    prompts, texts = prompts_of(1, 3)
    method = PromptToPrompt(StepWindow(), StepWindow(), weights=(("w2", 3.0),))
    positive = side_by_side("sd15", prompts, texts)
    positive += tiny.conditioning("sd15", layout.prompt, layout.key, seed=8)
    noise = tiny.latent("sd15", size=(8, 12)).repeat(2, 1, 1, 1)
    plain = edited(models["sd15"], prompts, method)
    guided = install(plain, layout, [replace(GUIDE, moves="prediction")])
    pictures = [tiny.run("sd15", model, positive, noise=noise, steps=1) for model in (guided, plain)]
    apart(*pictures)


# --- couples that multiply rows ---


def coupled(model, texts, weights, with_base=True, swap=False):
    """An attention couple as most packs write it: each prompt row's queries once for each text, results mixed."""
    model, count = model.clone(), len(texts) + with_base

    def rows_of_all(q, k, v, options):
        kinds = options["cond_or_uncond"]
        qs, ks = [], []
        for kind, queries, own in zip(kinds, q.chunk(len(kinds)), k.chunk(len(kinds)), strict=True):
            if kind == 1:
                qs, ks = [*qs, queries], [*ks, own]
                continue
            others = [text.to(own).repeat(len(queries), 1, 1) for text in texts]
            qs.append(queries.repeat(count, 1, 1))
            ks.append(torch.cat([own, *others] if with_base else others))
        ks = torch.cat(ks)
        return torch.cat(qs), ks, ks

    def mixed(out, options):
        kinds = options["cond_or_uncond"]
        size = len(out) // sum(1 if kind == 1 else count for kind in kinds)
        results = []
        for kind in kinds:
            mine, out = out.split([size * (1 if kind == 1 else count), len(out) - size * (1 if kind == 1 else count)])
            if kind != 1:
                share = torch.tensor(weights).view(count, 1, 1, 1)  # of this run: an inference tensor of theirs
                mine = (mine.unflatten(0, (count, size)) * share).sum(0)
            results.append(mine)
        return torch.cat(results[::-1] if swap else results)

    model.set_model_attn2_patch(rows_of_all)
    model.set_model_attn2_output_patch(mixed)
    return model


OTHER = tiny.text(seed=21).embedding
METHODS = pytest.mark.parametrize(
    "method", [PUBLISHED, COUPLE, REWEIGHT, DENSE], ids=["rectified", "couple", "reweight", "dense"]
)


@pytest.mark.parametrize("batch", [1, 3])
@METHODS
def test_beside_a_couple_that_leaves_everything_to_the_prompt_nothing_changes(models, layout, method, batch):
    alone = run(install(models["sd15"], layout, method.edits(layout)), layout, batch=batch)
    model = coupled(models["sd15"], [OTHER, OTHER], [1.0, 0.0, 0.0])
    close(run(install(model, layout, method.edits(layout)), layout, batch=batch), alone)


@METHODS
def test_beside_a_couple_edits_act_where_the_prompt_is_read(models, layout, method):
    model = coupled(models["sd15"], [OTHER], [0.5, 0.5])
    edited = run(install(model, layout, method.edits(layout)), layout)
    apart(edited, run(model, layout))
    apart(edited, run(install(models["sd15"], layout, method.edits(layout)), layout))


@pytest.mark.parametrize("texts, weights", [([OTHER], [1.0, 0.0]), (None, [0.5, 0.5])], ids=["other", "twice ours"])
def test_readers_and_gradients_beside_a_couple(models, layout, texts, weights):
    model = coupled(models["sd15"], texts or [layout.prompt.embedding], weights)
    maps, plain = [], []
    run(install(model, layout, [recording(maps)]), layout)
    run(install(models["sd15"], layout, [recording(plain)]), layout)
    assert [layer for layer, _ in maps] == [layer for layer, _ in plain]
    for (_, seen), (_, expected) in zip(maps, plain, strict=True):
        torch.testing.assert_close(seen, expected, atol=1e-4, rtol=1e-3)
    (found,), (expected,) = gradients("sd15", model, layout), gradients("sd15", models["sd15"], layout)
    assert relative(found.values, expected.values) < 1e-3


@pytest.mark.parametrize("moves", ["latent", "prediction"])
@pytest.mark.parametrize("batch", [1, 3])
def test_guides_beside_a_couple(models, layout, moves, batch):
    model, edits = coupled(models["sd15"], [OTHER], [1.0, 0.0]), [replace(GUIDE, moves=moves)]
    alone = run(install(models["sd15"], layout, edits), layout, batch=batch)
    torch.testing.assert_close(run(install(model, layout, edits), layout, batch=batch), alone, rtol=0, atol=2e-3)


def test_a_couple_may_repeat_the_prompt(models, layout):
    """Packs repeat texts to a common length, as the host does."""
    model = models["sd15"].clone()

    def patch(n, context, value, options):
        return n, context.repeat(1, 2, 1), value.repeat(1, 2, 1)

    model.set_model_attn2_patch(patch)
    edits = PUBLISHED.edits(layout)
    close(run(install(model, layout, edits), layout), run(install(models["sd15"], layout, edits), layout))


def test_a_couple_without_the_prompt_is_refused_by_name(models, layout):
    model = coupled(models["sd15"], [OTHER, OTHER], [0.5, 0.5], with_base=False)
    with pytest.raises(IncompatiblePatchError, match="coupled.<locals>.rows_of_all"):
        run(install(model, layout, PUBLISHED.edits(layout)), layout)


@pytest.mark.parametrize("method", [PUBLISHED, BOUND], ids=["cross", "self"])
def test_a_couple_that_swaps_the_prompts_is_refused_by_name(models, layout, method):
    model = coupled(models["sd15"], [OTHER], [0.5, 0.5], swap=True)
    with pytest.raises(IncompatiblePatchError, match="coupled.<locals>.mixed.*change places"):
        run(install(model, layout, method.edits(layout)), layout)


def test_rows_that_a_patch_adds_to_the_model_are_refused(models, layout):
    model = models["sd15"].clone()

    def twice(apply_model, args):
        doubled = {
            name: torch.cat([value, value]) if isinstance(value, torch.Tensor) else value
            for name, value in args["c"].items()
        }
        x, t = args["input"], args["timestep"]
        return apply_model(torch.cat([x, x]), torch.cat([t, t]), **doubled)[: len(x)]

    model.set_model_unet_function_wrapper(twice)
    with pytest.raises(IncompatiblePatchError, match="4 rows for 2 prompts of 1"):
        run(install(model, layout, PUBLISHED.edits(layout)), layout)


# --- attention that other packs replace ---


def image_prompt(options_too):
    """As image-prompt adapters do: the attention to the text by a call of its own, and that to an image added."""

    def patch(q, k, v, extra_options):
        heads = extra_options["n_heads"]
        image = torch.ones_like(k[:, :4]) * 0.3
        options = {"transformer_options": extra_options} if options_too else {}
        text = attention.optimized_attention(q, k, v, heads, **options)
        return text + 0.5 * attention.optimized_attention(q, image, image, heads)

    return patch


def prompted(model, patch):
    model = model.clone()
    for block in (("input", 1), ("input", 3), ("middle", 0), ("output", 3)):
        model.set_model_attn2_replace(patch, *block)
    return model


@METHODS
@pytest.mark.parametrize("batch", [1, 2])
def test_edits_act_beside_an_image_prompt(models, layout, method, batch):
    """As inside of one that calls the host's attention with its options, where they reach the attention itself."""
    model, inside = (prompted(models["sd15"], image_prompt(polite)) for polite in (False, True))
    out = run(install(model, layout, method.edits(layout)), layout, batch=batch)
    close(out, run(install(inside, layout, method.edits(layout)), layout, batch=batch))
    apart(out, run(model, layout, batch=batch))


def test_an_image_prompt_is_asked_what_it_does_until_it_has_shown_it(models, layout):
    """By two calls of its own in each layer; one that begins later does what the host does until then."""

    def calls(steps, begins, patched):
        seen = []

        def patch(q, k, v, extra_options):
            seen.append(float(extra_options["sigmas"][0]))
            late = sum(sigma > seen[-1] for sigma in extra_options["sample_sigmas"].tolist()) >= begins
            heads = extra_options["n_heads"]
            return (image_prompt(False) if late else attention_alone)(q, k, v, {"n_heads": heads})

        model = prompted(models["sd15"], patch)
        run(install(model, layout, PUBLISHED.edits(layout)) if patched else model, layout, steps=steps)
        return [seen.count(sigma) for sigma in sorted(set(seen), reverse=True)]

    def attention_alone(q, k, v, extra_options):
        return attention.optimized_attention(q, k, v, extra_options["n_heads"])

    plain = calls(4, 0, patched=False)
    assert calls(4, 0, patched=True)[1:] == plain[1:]
    asked = calls(4, 2, patched=True)
    assert asked[1] == asked[2] == plain[1] + 2 * 4 and asked[3] == plain[3]


@pytest.mark.parametrize("moves", ["latent", "prediction"])
def test_gradients_and_edits_beside_an_image_prompt(models, layout, moves):
    model = prompted(models["sd15"], image_prompt(False))
    edits = [*COUPLE.edits(layout), *REWEIGHT.edits(layout)]
    out = run(install(model, layout, [*edits, replace(GUIDE, moves=moves)]), layout)
    apart(out, run(install(model, layout, edits), layout))


@pytest.mark.parametrize("kind", ["attn1", "attn2"])
def test_attention_replaced_by_something_else_is_refused_by_name(models, layout, kind):
    model = models["sd15"].clone()

    def something_else(q, k, v, extra_options):
        return attention.optimized_attention(q, k * 0.2, v, extra_options["n_heads"])

    getattr(model, f"set_model_{kind}_replace")(something_else, "middle", 0)
    method = BOUND if kind == "attn1" else PUBLISHED
    with pytest.raises(IncompatiblePatchError, match=f"<locals>.something_else.*middle.0.0.*{kind} replace"):
        run(install(model, layout, method.edits(layout)), layout)


def prompted_each_time(model, make):
    """As packs do that put their function into the options of every call: a new one each time."""
    model = model.clone()

    def wrapper(apply_model, args):
        options = dict(args["c"]["transformer_options"])
        blocks = (("input", 1, 0), ("input", 3, 0), ("middle", 0, 0), ("output", 3, 0))
        options["patches_replace"] = {"attn2": {block: make() for block in blocks}}
        return apply_model(args["input"], args["timestep"], **args["c"] | {"transformer_options": options})

    model.set_model_unet_function_wrapper(wrapper)
    return model


@METHODS
def test_edits_act_beside_an_image_prompt_that_is_put_in_each_time(models, layout, method):
    lasting = prompted(models["sd15"], image_prompt(False))
    each_time = prompted_each_time(models["sd15"], lambda: image_prompt(False))
    expected = run(install(lasting, layout, method.edits(layout)), layout, steps=2)
    close(run(install(each_time, layout, method.edits(layout)), layout, steps=2), expected)
    apart(expected, run(each_time, layout, steps=2))


def test_attention_replaced_by_something_else_each_time_is_refused_by_name(models, layout):
    def make():
        return lambda q, k, v, extra_options: attention.optimized_attention(q, k * 0.2, v, extra_options["n_heads"])

    with pytest.raises(IncompatiblePatchError, match="make.<locals>.<lambda>"):
        run(install(prompted_each_time(models["sd15"], make), layout, PUBLISHED.edits(layout)), layout)


class Injected:
    """As Prompt to Prompt does with self-attention."""

    def edits(self, layout):
        return [AttentionEdit("inject", "probs", lambda probs, site: probs.flip(-1), kind="image_image")]


def test_attention_that_is_replaced_later_in_the_run_is_refused_then(models, layout):
    model, sigmas = models["sd15"].clone(), []

    def later(q, k, v, extra_options):
        sigmas.append(float(extra_options["sigmas"][0]))
        sharper = 3.0 if sigmas[-1] < sigmas[0] else 1.0
        return attention.optimized_attention(q, k * sharper, v, extra_options["n_heads"])

    model.set_model_attn2_replace(later, "middle", 0)
    run(install(model, layout, PUBLISHED.edits(layout)), layout)
    with pytest.raises(IncompatiblePatchError, match="<locals>.later"):
        run(install(model, layout, PUBLISHED.edits(layout)), layout, steps=3)


SELF = pytest.mark.parametrize("method", [DENSE, BOUND, Injected()], ids=["dense", "bound", "inject"])


@SELF
def test_beside_perturbed_attention_guidance(models, layout, method):
    """Its pass has an attention of its own; in all others, and in all other layers, edits act."""

    def with_pag(model, scale):
        return nodes_pag.PerturbedAttentionGuidance.execute(model, scale)[0]

    alone = run(install(models["sd15"], layout, method.edits(layout)), layout)
    close(run(install(with_pag(models["sd15"], 1e-7), layout, method.edits(layout)), layout), alone)
    guided = run(install(with_pag(models["sd15"], 3.0), layout, method.edits(layout)), layout)
    apart(guided, alone)
    apart(guided, run(with_pag(models["sd15"], 3.0), layout))


@SELF
def test_beside_self_attention_guidance(models, layout, method):
    def with_sag(model, scale):
        return nodes_sag.SelfAttentionGuidance.execute(model, scale, 2.0)[0]

    noise = tiny.latent("sd15", size=(16, 24))
    alone = run(install(models["sd15"], layout, method.edits(layout)), layout, noise=noise)
    close(run(install(with_sag(models["sd15"], 0.0), layout, method.edits(layout)), layout, noise=noise), alone)
    guided = run(install(with_sag(models["sd15"], 1.0), layout, method.edits(layout)), layout, noise=noise)
    apart(guided, alone)


@pytest.mark.parametrize("kind", ["pag", "sag"])
def test_guides_beside_other_guidance(models, layout, kind):
    if kind == "pag":
        model = nodes_pag.PerturbedAttentionGuidance.execute(models["sd15"], 3.0)[0]
    else:
        model = nodes_sag.SelfAttentionGuidance.execute(models["sd15"], 1.0, 2.0)[0]
    noise = tiny.latent("sd15", size=(16, 24))
    edits = [*BOUND.edits(layout), GUIDE]
    pictures = [run(install(model, layout, part), layout, noise=noise) for part in (edits, edits[:-1])]
    apart(*pictures)


@SELF
@pytest.mark.parametrize("kind", ["difference mask", "flow edit"])
def test_predictions_beside_a_run_know_the_pass_of_perturbed_attention(models, layout, method, kind):
    """They are asked without the sampler's guider; the host's other guidance runs beside each of them, too."""

    def found(model):
        source, other = (
            tiny.conditioning("sd15", layout.prompt, layout.key),
            tiny.conditioning("sd15", tiny.text(seed=4)),
        )
        negative, noise = tiny.conditioning("sd15", tiny.text(seed=2)), tiny.latent("sd15", size=(8, 12))
        if kind == "difference mask":
            settings = DiffMask(draws=2, noise_level=0.9)
            return measure(model, noise, source, other, settings, 3, mode="cfg", negative=negative, cfg=4.0).heat
        settings = FlowEditing("FlowEdit", source_cfg=1.5)
        sigmas = schedule(model, "normal", 2, 0.9)
        return edit_by_flow(model, noise, source, other, negative, settings, 4.0, sigmas, None, 1)[0]

    edits = method.edits(layout)
    guided = nodes_pag.PerturbedAttentionGuidance.execute(install(models["sd15"], layout, edits), 3.0)[0]
    apart(found(guided), found(nodes_pag.PerturbedAttentionGuidance.execute(models["sd15"], 3.0)[0]))


# --- samplers that enlarge the latent ---


@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_a_latent_that_grows_is_followed(models, layout, family):
    seen = []
    edit = AttentionEdit("look", "read", lambda probs, site: seen.append((site.grid, site.view)))
    sampler = nodes_advanced_samplers.SamplerLCMUpscale.execute(2.0, -1, "bislerp")[0]
    grown(install(models[family], layout, [edit, *RectifiedAttention().edits(layout)]), layout, family, sampler)
    sizes = {grid for grid, view in seen if view.width == pytest.approx(1.0, abs=0.2)}
    finest = {"sd15": [(8, 12), (16, 24)], "flux": [(4, 6), (8, 12)]}[family]
    assert sizes.issuperset(finest)
    assert all(view.x == view.y == 0 and view.width < 1.5 for _, view in seen)


def grown(model, layout, family, sampler, batch=1, positive=None):
    guider = nodes_custom_sampler.Guider_Basic(model)
    guider.set_conds(positive or tiny.conditioning(family, layout.prompt, layout.key))
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 3)
    noise = tiny.latent(family, size=(8, 12), batch=batch)
    return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=1)


def test_prompts_side_by_side_keep_the_same_noise_in_a_latent_that_grows(models):
    prompts, texts = prompts_of(1, 1)
    model = edited(models["sd15"], prompts, PromptToPrompt())
    sampler = nodes_advanced_samplers.SamplerLCMUpscale.execute(1.5, -1, "bislerp")[0]
    out = grown(model, prompts.layout, "sd15", sampler, 2, side_by_side("sd15", prompts, texts))
    close(out[0], out[1])


def test_a_guide_follows_a_latent_that_grows(models, layout):
    sampler = nodes_advanced_samplers.SamplerLCMUpscale.execute(1.5, -1, "bislerp")[0]
    moved = grown(install(models["sd15"], layout, [GUIDE]), layout, "sd15", sampler)
    apart(moved, grown(models["sd15"], layout, "sd15", sampler))


def test_a_latent_that_shrinks_is_refused_for_what_it_is(models, layout):
    """Half of the latent may as well be a tile of it."""
    sampler = nodes_advanced_samplers.SamplerLCMUpscale.execute(0.5, -1, "bislerp")[0]
    with pytest.raises(IncompatiblePatchError, match="or the sampler, runs the model on"):
        grown(install(models["sd15"], layout, PUBLISHED.edits(layout)), layout, "sd15", sampler)


def test_a_patch_that_is_a_pair_of_a_layer_and_its_handler(models, layout):
    """set_model_forward_timestep_embed_patch, as the host's own SUPIR uses it."""
    model = models["sd15"].clone()
    model.set_model_forward_timestep_embed_patch((torch.nn.Bilinear, lambda layer, x, *rest: x))
    positive = tiny.conditioning("sd15", layout.prompt, layout.key)
    edits = RectifiedAttention().edits(layout)
    beside = tiny.run("sd15", install(model, layout, edits), positive)
    assert torch.equal(beside, tiny.run("sd15", install(models["sd15"], layout, edits), positive))


@pytest.mark.parametrize("family", ["flux", "chroma", "qwen", "sd3"])
def test_a_whole_block_of_a_transformer_that_is_replaced(layout, family):
    """One that calls the original is followed; one that does not is refused, whatever it does instead."""
    positive, edits = tiny.conditioning(family, layout.prompt, layout.key), RectifiedAttention().edits(layout)

    def around(args, extra):
        return extra["original_block"](args)

    def instead(args, extra):
        return {name: args[name] for name in ("img", "txt")}

    model = tiny.build(family)
    expected = tiny.run(family, install(model, layout, edits), positive, steps=1)
    for patch in (around, instead):
        other = model.clone()
        other.set_model_patch_replace(patch, "dit", "double_block", 0)
        tiny.run(family, other, positive, steps=1)
        patched = install(other, layout, edits)
        if patch is around:
            assert torch.equal(tiny.run(family, patched, positive, steps=1), expected)
        else:
            with pytest.raises(IncompatiblePatchError, match="test_other_packs.*instead.*replaces blocks of"):
                tiny.run(family, patched, positive, steps=1)
