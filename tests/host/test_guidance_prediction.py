"""Samplers whose prediction is moved along a gradient in the real host."""

import types
from dataclasses import replace

import comfy.context_windows
import comfy.samplers
import pytest
import tiny_models as tiny
import torch
from comfy.patcher_extension import WrappersMP
from guides import FAST, UNETS, left_mass, relative, run
from pack.attention_patches.core.types import BoxwrightError
from pack.attention_patches.host.guidance import prediction as predicting
from pack.attention_patches.host.guidance.gradient import loss_gradient
from pack.attention_patches.host.install import install


def prediction(family, model, layout, positive=None, **options):
    """What the sampler is told of the first step: the denoised latent."""
    seen = []
    positive = positive or tiny.conditioning(family, layout.prompt, layout.key)
    tiny.run(family, model, positive, steps=1, callback=lambda step, out, x, total: seen.append(out.clone()), **options)
    return seen[0]


@pytest.mark.parametrize("family", UNETS)
def test_the_prediction_moves_by_the_gradient_of_the_ordinary_pass(models, layout, family):
    """iLGD's change of the predicted noise, as a change of the denoised latent."""
    found = []

    def spy(executor, x, timestep, options, seed):
        attached = options["transformer_options"]["boxwright_run"]
        (item,) = attached.installed
        found.append((float(timestep[0]), loss_gradient(attached, item, item.edit.loss, x, timestep, options).values))
        return executor(x, timestep, options, seed)

    guided = install(models[family], layout, [replace(FAST, step_size=lambda p: 1.0)])
    guided.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "a spy", spy)
    moved = prediction(family, guided, layout) - prediction(family, models[family], layout)
    ((sigma, gradient),) = found
    expected = (-1.0 * sigma**2 * (1 + sigma**2) ** 0.5 * gradient).clamp(-predicting.MOST, predicting.MOST)
    assert expected.abs().max() > 0.1
    assert relative(moved, expected) < 0.01


@pytest.mark.parametrize("cfg", [1.0, 2.0, 5.0, 12.0])
def test_the_move_of_the_prediction_does_not_grow_with_cfg(models, layout, cfg):
    guided = install(models["sd15"], layout, [replace(FAST, max_change=0.7)])
    plain, moved = (prediction("sd15", model, layout, cfg=cfg) for model in (models["sd15"], guided))
    assert float((moved - plain).abs().max()) == pytest.approx(0.7, rel=1e-3)


def test_what_others_evaluate_in_the_same_step_moves_nothing_more(models, layout):
    """PAG and SAG evaluate the prompt again, beside the guider's own evaluation."""

    def again(args):
        out, *_ = comfy.samplers.calc_cond_batch(
            args["model"], [args["cond"]], args["input"], args["sigma"], args["model_options"]
        )
        return args["denoised"] + 2.0 * (args["cond_denoised"] - out)

    model = models["sd15"].clone()
    model.set_model_sampler_post_cfg_function(again)
    guided = [install(m, layout, [replace(FAST, max_change=0.7)]) for m in (models["sd15"], model)]
    alone, beside = (prediction("sd15", model, layout) for model in guided)
    torch.testing.assert_close(alone, beside, rtol=0, atol=1e-4)


def test_a_patch_that_evaluates_the_prompts_by_itself_is_refused(models, layout):
    model = models["sd15"].clone()
    model.model_options["sampler_calc_cond_batch_function"] = lambda args: [torch.zeros_like(args["input"])] * 2
    run("sd15", model, layout)
    with pytest.raises(BoxwrightError, match="evaluates the prompts by itself.*boxdiff"):
        run("sd15", install(model, layout, [FAST]), layout)


@pytest.mark.parametrize("limit", [0.0, 0.3])
def test_the_move_of_the_prediction_is_bounded_at_every_sigma(models, layout, limit):
    """The step grows with the cube of sigma: zero terminal SNR begins at thousands."""
    guide = replace(FAST, step_size=lambda p: 1000.0, max_change=limit)
    guider = types.SimpleNamespace(inner_model=models["sd15"].model)
    attached = types.SimpleNamespace(progress=lambda level: 0.0, guider=guider)
    gradient = torch.randn(1, 4, 16, 24)
    for level in (4518.0, 14.6, 1.0, 0.1):
        change = predicting.prediction_change(attached, guide, gradient, level)
        assert float(change.abs().max()) == pytest.approx((limit or predicting.MOST) * min(level, 1.0))


def test_zero_terminal_snr_does_not_explode(layout):
    model = tiny.build("sd2")
    from comfy_extras import nodes_model_advanced

    model = nodes_model_advanced.ModelSamplingDiscrete().patch(model, "v_prediction", True)[0]
    plain = run("sd2", model, layout, steps=1)
    guided = run("sd2", install(model, layout, [replace(FAST, step_size=lambda p: 1000.0)]), layout, steps=1)
    assert 0 < float((guided - plain).abs().max()) <= predicting.MOST / model.model.latent_format.scale_factor * 1.01


def test_the_graph_ends_at_the_last_layer_that_is_read(models, layout):
    """Behind it nothing is kept for a backward pass that does not come there."""
    tracked = []
    handles = [
        layer.register_forward_hook(lambda *_, name=name: tracked.append((name, torch.is_grad_enabled())))
        for name, layer in models["sd15"].model.diffusion_model.named_modules()
        if name.endswith("attn2")
    ]
    try:
        run("sd15", install(models["sd15"], layout, [replace(FAST, smallest_side=8)]), layout, steps=1, cfg=1.0)
    finally:
        for handle in handles:
            handle.remove()
    graph = [on for _, on in tracked]
    assert graph == sorted(graph, reverse=True) and True in graph and False in graph


@pytest.mark.parametrize("entries", [1, 2])
def test_entries_of_one_layout_share_the_move_of_the_prediction(models, layout, entries):
    """As in the other modes: it does not grow with their number."""
    positive = [*tiny.conditioning("sd15", layout.prompt, layout.key)] * entries
    guided = install(models["sd15"], layout, [replace(FAST, max_change=0.7)])
    plain, moved = (prediction("sd15", model, layout, positive) for model in (models["sd15"], guided))
    assert float((moved - plain).abs().max()) == pytest.approx(0.7, rel=1e-3)


def test_two_guides_of_one_pass_each_move_the_prediction(models, layout):
    def right_mass(maps, site):
        return left_mass(maps.flip(-1), site)

    guided = install(models["sd15"], layout, [replace(FAST, max_change=0.7)])
    both = install(guided, layout, [replace(FAST, loss=right_mass, max_change=0.2)])
    one, two = (prediction("sd15", model, layout) for model in (guided, both))
    assert float((two - one).abs().max()) == pytest.approx(0.2, rel=1e-2)


def test_the_prediction_is_not_moved_in_parts(models, layout):
    """The host's context windows run the guider's evaluation once for each part of the batch."""
    windows, model = comfy.context_windows, models["sd15"].clone()
    model.model_options["context_handler"] = windows.IndexListContextHandler(
        windows.get_matching_context_schedule(windows.ContextSchedules.STATIC_STANDARD),
        windows.get_matching_fuse_method(windows.ContextFuseMethods.FLAT),
        context_length=2,
        context_overlap=1,
    )
    with pytest.raises(BoxwrightError, match='Context windows .*mode "fast"'):
        run("sd15", install(model, layout, [FAST]), layout, noise=tiny.latent("sd15", batch=4))
