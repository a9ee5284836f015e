"""Guides, of the latent or the prediction, in the real host: beside others, and what can go wrong."""

from dataclasses import replace

import comfy.model_management
import comfy.samplers
import pytest
import tiny_models as tiny
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrappersMP
from comfy_extras import nodes_custom_sampler, nodes_model_downscale
from guides import FAST, GUIDE, gradients, left_mass, relative, run
from pack.attention_patches.core.seam import AttentionEdit
from pack.attention_patches.core.types import BoxwrightError, StepWindow
from pack.attention_patches.host.install import install
from pack.attention_patches.methods.box_constraint import BoxConstraint
from pack.attention_patches.methods.rectified_attention import RectifiedAttention
from tiny_control import Control


@pytest.mark.parametrize("moves", ["latent", "prediction"])
def test_the_loss_sees_where_the_model_itself_wants_a_phrase(models, layout, moves):
    """Confined to their boxes by another method, the phrases would leave the loss nothing to say."""
    outside = []

    def loss(maps, site):
        outside.append(float(maps.detach()[:, 2, :, site.grid[1] // 2 :].sum()))
        return left_mass(maps, site)

    confined = RectifiedAttention(window=StepWindow(), feather=0.0).edits(layout)
    guide = replace(GUIDE, loss=loss, moves=moves)
    run("sd15", install(models["sd15"], layout, [*confined, guide]), layout, steps=1)
    assert outside and min(outside) > 0.01


@pytest.mark.parametrize("moves", ["latent", "prediction"])
@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_with_rectified_attention_loras_and_other_wrappers(models, layout, moves, cfg):
    """The gradient pass leaves others' wrappers alone, and is made with the other edits in force."""
    guide = replace(GUIDE, moves=moves)
    calls = []

    def other(executor, *args, **kwargs):
        calls.append(torch.is_inference_mode_enabled())
        return executor(*args, **kwargs)

    base = models["sd15"].clone()
    base.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "other", other)
    rectified = install(base, layout, RectifiedAttention().edits(layout))
    alone = run("sd15", rectified, layout, cfg=cfg)
    plain_calls, both = len(calls), run("sd15", install(rectified, layout, [guide]), layout, cfg=cfg)
    assert not torch.equal(both, alone)
    if moves == "latent":
        assert len(calls) == 2 * plain_calls and all(calls)
    guided = install(base, layout, [guide])
    assert not torch.equal(both, run("sd15", guided, layout, cfg=cfg))


@pytest.mark.parametrize("moves", ["latent", "prediction"])
def test_readers_hear_of_the_ordinary_pass_only_and_without_a_graph(models, layout, moves):
    seen = []
    watch = AttentionEdit("watch", "read", lambda probs, site: seen.append(probs))
    run("sd15", install(models["sd15"], layout, [watch]), layout, steps=2)
    alone = len(seen)
    seen.clear()
    run("sd15", install(models["sd15"], layout, [watch, replace(GUIDE, moves=moves)]), layout, steps=2)
    assert len(seen) == alone and not any(probs.requires_grad for probs in seen)


@pytest.mark.parametrize("moves", ["latent", "prediction"])
def test_with_score_edits_that_need_their_input_in_the_backward(models, layout, moves):
    """DenseDiffusion's kind."""
    squash = AttentionEdit("squash", "scores", lambda scores, site: scores * torch.tanh(scores))
    model = install(models["sd15"], layout, [squash])
    guide = replace(GUIDE, moves=moves)
    assert not torch.equal(run("sd15", install(model, layout, [guide]), layout), run("sd15", model, layout))


@pytest.mark.parametrize("moves", ["latent", "prediction"])
def test_with_deep_shrink(models, layout, moves):
    """Layers of one level then have grids of several sizes."""
    node = nodes_model_downscale.PatchModelAddDownscale
    model = node.execute(models["sd15"], 1, 1.5, 0.0, 0.35, True, "bicubic", "bicubic")[0]
    guide, options = replace(GUIDE, moves=moves), {"noise": tiny.latent("sd15", size=(64, 64)), "steps": 1}
    guided = run("sd15", install(model, layout, [guide]), layout, **options)
    assert bool(guided.isfinite().all()) and not torch.equal(guided, run("sd15", model, layout, **options))


@pytest.mark.parametrize("moves", ["latent", "prediction"])
def test_with_a_controlnet(models, layout, moves):
    """Its weights are inference tensors and its output is added in place: the pass with gradients can have neither."""
    positive = tiny.conditioning("sd15", layout.prompt, layout.key, control=Control(), control_apply_to_uncond=True)
    plain = tiny.run("sd15", models["sd15"], positive)
    assert not torch.equal(plain, run("sd15", models["sd15"], layout)), "the ControlNet does nothing"
    guided = tiny.run("sd15", install(models["sd15"], layout, [replace(GUIDE, moves=moves)]), positive)
    assert not torch.equal(guided, plain)


def test_with_an_image_prompt_that_replaces_the_cross_attention(models, layout):
    """IPAdapter's way; the guide reads its queries and keys, and the gradient passes through it."""

    def image_prompt(q, k, v, extra_options):
        heads = extra_options["n_heads"]
        image = torch.ones_like(k[:, :4])
        return optimized_attention(q, k, v, heads) + 0.3 * optimized_attention(q, image, image, heads)

    model = models["sd15"].clone()
    for block in (("input", 1), ("input", 2), ("input", 4), ("input", 5), ("middle", 0)):
        model.set_model_attn2_replace(image_prompt, *block)
    (with_it,), (without,) = gradients("sd15", model, layout), gradients("sd15", models["sd15"], layout)
    assert relative(with_it.values, without.values) > 0.01
    assert not torch.equal(run("sd15", install(model, layout, [GUIDE]), layout), run("sd15", model, layout))


def test_a_foreign_prompt_is_refused(models, layout):
    patched = install(models["sd15"], layout, [GUIDE])
    with pytest.raises(BoxwrightError, match="No positive conditioning"):
        tiny.run("sd15", patched, tiny.conditioning("sd15", tiny.text(seed=8)))


def test_the_negative_is_never_guided(models, layout):
    """Not even where it was encoded with the same layout: only the positive's entry is differentiated."""
    positive, negative = (tiny.conditioning("sd15", layout.prompt, layout.key) for _ in range(2))
    seen = []

    def spy(executor, x, timestep, options, seed):
        attached = options["transformer_options"]["boxwright_run"]
        seen.append((attached.conditioning(attached.installed[0]), attached.guider.conds["positive"]))
        return executor(x, timestep, options, seed)

    patched = install(models["sd15"], layout, [GUIDE])
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "spy", spy)
    tiny.run("sd15", patched, positive, negative=negative, steps=1)
    [(guided, positives)] = seen
    assert [entry["uuid"] for entry in guided] == [entry["uuid"] for entry in positives]


@pytest.mark.parametrize("guider", ["dual", "perp"])
def test_guiders_that_order_their_prompts_differently(models, layout, guider):
    from comfy_extras import nodes_perpneg

    positive = tiny.conditioning("sd15", layout.prompt, layout.key)
    other = tiny.conditioning("sd15", tiny.text(seed=2), seed=6)
    third = tiny.conditioning("sd15", tiny.text(seed=3), seed=7)

    def sample(model):
        if guider == "dual":
            made = nodes_custom_sampler.Guider_DualCFG(model)
            made.set_conds(positive, third, other)
            made.set_cfg(4.0, 2.0)
        else:
            made = nodes_perpneg.Guider_PerpNeg(model)
            made.set_conds(positive, other, third)
            made.set_cfg(4.0, 1.0)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 2)
        first = []
        out = made.sample(
            tiny.latent("sd15"),
            torch.zeros(1, 4, 16, 24),
            comfy.samplers.ksampler("euler"),
            sigmas,
            callback=lambda step, denoised, x, total: first.append(denoised.clone()),
            disable_pbar=True,
            seed=1,
        )
        return out, first[0]

    plain, prediction = sample(models["sd15"])
    assert not torch.equal(sample(install(models["sd15"], layout, [GUIDE]))[0], plain)
    _, moved = sample(install(models["sd15"], layout, [replace(FAST, max_change=0.7)]))
    assert float((moved - prediction).abs().max()) == pytest.approx(0.7, rel=1e-3), "however prompts are combined"


# --- what can go wrong ---


def test_interrupting_stops_at_once(models, layout):
    steps = []

    def interrupting(maps, site):
        steps.append(1)
        comfy.model_management.interrupt_current_processing()
        return left_mass(maps, site)

    patched = install(models["sd15"], layout, [replace(GUIDE, loss=interrupting, iterations=10)])
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run("sd15", patched, layout)
    assert len(steps) == 1


@pytest.mark.parametrize("mode", ["boxdiff", "fast"])
def test_the_report_names_every_phrase_and_the_worst(models, layout, mode):
    lines = []
    guides = BoxConstraint(mode=mode).guides(layout)
    run("sd15", install(models["sd15"], layout, guides, lines.append), layout, steps=2)
    assert lines and lines[0].startswith("step 1 of 2") and lines[0].count("(worst)") == 1
    assert all(region.phrase in lines[0] for region in layout.regions)
