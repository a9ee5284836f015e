"""Beside attention that other packs replace, image prompts and other guidance among them."""

from dataclasses import replace

import pytest
import tiny_models as tiny
import torch
from beside_others import BOUND, COUPLE, DENSE, METHODS, REWEIGHT, apart, close, run
from comfy.ldm.modules import attention
from comfy_extras import nodes_pag, nodes_sag
from guides import GUIDE
from pack.attention_patches.core.seam import AttentionEdit
from pack.attention_patches.host.attention.calls import IncompatiblePatchError
from pack.attention_patches.host.install import install
from pack.attention_patches.host.samplers.diff_mask import measure
from pack.attention_patches.host.samplers.flow_edit import FlowEditing, edit_by_flow
from pack.attention_patches.host.samplers.loops import schedule
from pack.attention_patches.methods.rectified_attention import PUBLISHED
from pack.attention_patches.samplers.diff_mask import DiffMask


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


def test_attention_put_in_each_time_that_becomes_something_else_is_refused_then(models, layout):
    """The first answer counts in later steps, and is compared with what the function does in them."""
    sigmas = []

    def make():
        def later(q, k, v, extra_options):
            sigmas.append(float(extra_options["sigmas"][0]))
            factor = 1.0 if sigmas[-1] == sigmas[0] else 0.2
            return attention.optimized_attention(q, k * factor, v, extra_options["n_heads"])

        return later

    model = install(prompted_each_time(models["sd15"], make), layout, PUBLISHED.edits(layout))
    run(model, layout, steps=1)
    with pytest.raises(IncompatiblePatchError, match="later"):
        run(model, layout, steps=3)
    assert len(set(sigmas)) == 3  # of both runs


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
