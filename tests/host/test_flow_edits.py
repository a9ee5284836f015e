"""FlowEdit, FlowAlign and Uni-Edit inside the host's own sampling, on tiny models."""

import logging
from functools import partial

import comfy.model_management
import comfy.sample
import comfy.samplers
import editing
import pytest
import tiny_models
import torch
from editing import INF, NAN, close, every_family, every_size, left_mask, pictures, prompt
from pack.attention_patches.core.seam import AttentionEdit
from pack.attention_patches.core.types import BoxwrightError, StepWindow
from pack.attention_patches.host.install import install
from pack.attention_patches.host.samplers.flow_edit import METHODS, FlowEditing, edit_by_flow, flow_edit_sampler
from pack.attention_patches.host.samplers.loops import OTHER_NOISE, levels_of, schedule
from pack.attention_patches.samplers.noise import seeded

every_method = pytest.mark.parametrize("method", METHODS)
sample = partial(editing.sample, positive=4)


def settings_of(method, **settings):
    return FlowEditing(method, **({"source_cfg": 1.5} | settings))


def flow_edit(models, family, method, latent=None, mask=None, strength=0.8, source=1, steps=3, settings=(), **kw):
    model, latent = models[family], pictures(family) if latent is None else latent
    sampler = flow_edit_sampler(prompt(family, source), settings_of(method, **dict(settings)), mask)
    return sample(model, family, sampler, schedule(model, "normal", steps, strength), latent, **kw)


@every_family
def test_flow_edit_with_equal_prompts_and_guidance_returns_the_picture(models, family):
    edited = flow_edit(models, family, "FlowEdit", source=4, cfg=2.0, settings={"source_cfg": 2.0})
    torch.testing.assert_close(edited, pictures(family), atol=1e-4, rtol=0)
    moved = flow_edit(models, family, "FlowEdit", source=4, cfg=3.0, settings={"source_cfg": 2.0})
    assert (moved - pictures(family)).abs().mean() > 1e-3


@every_family
@every_method
def test_a_step_is_that_of_the_hosts_own_predictions(models, family, method):
    """One step from a noise level to the picture, with clean latents from the host's guider for every prompt."""
    model, latent, cfg = models[family], pictures(family), 3.0
    sigma = 0.6 if family == "flux" else 4.0
    model_sampling = model.get_model_object("model_sampling")
    level = levels_of(model_sampling)(sigma)
    process_in = model.model.process_latent_in
    x0, noise = process_in(latent), seeded(5 + OTHER_NOISE)(latent)

    def clean(positive, negative, x, scale):
        def predict(model_k, _, sigmas, extra_args, **unused):
            return model_k(x, sigmas[:1], **extra_args)

        found = comfy.sample.sample_custom(
            model,
            torch.zeros_like(latent),
            scale,
            comfy.samplers.KSAMPLER(predict),
            torch.tensor([sigma, 0.0]),
            prompt(family, positive),
            prompt(family, negative),
            latent,
            disable_pbar=True,
        )
        return process_in(found)

    q = x0 * level.signal + noise * level.noise
    if method == "FlowEdit":
        expected = x0 + clean(4, 2, q, cfg) - clean(1, 2, q, 1.5)
    elif method == "FlowAlign":
        difference = clean(4, 1, q, cfg) - clean(1, 1, q, 1.0)
        expected = x0 + 0.99 * difference
    else:
        eps = (x0 - clean(1, 1, x0, 1.0)) / sigma
        x = x0 + eps * sigma
        eps = (x - clean(1, 1, x, 1.0)) / sigma
        x = x0 + eps * sigma
        shown, wanted = ((x - clean(name, 1, x, 1.0)) / sigma for name in (1, 4))
        g = wanted - shown
        m = g.abs().mean(1, keepdim=True)
        m = (m - m.amin()) / (m.amax() - m.amin())
        expected = x - sigma * (cfg * (1 + m) * g + m * wanted + (1 - m) * shown)
    sampler = flow_edit_sampler(prompt(family, 1), settings_of(method))
    edited = sample(model, family, sampler, torch.tensor([sigma, 0.0]), latent, cfg=cfg)
    close(process_in(edited), expected, 2e-3)


@every_size
@every_method
def test_outside_the_mask_the_latent_comes_back(models, family, size, method):
    latent, middle = pictures(family, 2, size), size[1] // 2 + 1
    edited = flow_edit(models, family, method, latent, left_mask(size))
    close(edited[..., middle:], latent[..., middle:], 1e-5)
    assert (edited[..., : middle - 2] - latent[..., : middle - 2]).abs().mean() > 0.02
    noisy = flow_edit(models, family, method, latent, left_mask(size), noise=torch.randn_like(latent))
    assert torch.equal(edited, noisy)


@every_family
@every_method
def test_a_batch_is_single_runs_with_seeds_that_follow(models, family, method):
    latent = pictures(family, 3)
    together = flow_edit(models, family, method, latent, seed=20, cfg=1.5)
    for row in range(3):
        alone = flow_edit(models, family, method, latent[row : row + 1], seed=20 + row, cfg=1.5)
        close(alone, together[row : row + 1], 0.02)
    again = flow_edit(models, family, method, latent, seed=20, cfg=1.5)
    assert torch.equal(together, again)
    other = flow_edit(models, family, method, latent, seed=30, cfg=1.5)
    assert torch.equal(together, other) == (method == "Uni-Edit")


@every_method
@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("source_cfg", [1.0, 1.5])
def test_evaluations_are_those_announced_and_logged(models, method, cfg, source_cfg, caplog):
    settings = settings_of(method, source_cfg=source_cfg, draws=2, finish=0.4)
    latent, sigmas = pictures("sd15", 2), schedule(models["sd15"], "normal", 5, 1.0)
    with caplog.at_level(logging.INFO):
        sample(models["sd15"], "sd15", flow_edit_sampler(prompt("sd15", 1), settings), sigmas, latent, cfg=cfg)
    assert f"{method}: 5 steps, {2 * settings.evaluations(5, cfg)} model evaluations" in caplog.text


@every_method
def test_one_run_is_the_sampler(models, method):
    model, latent = models["sd15"], pictures("sd15", 2)
    sigmas, settings = schedule(model, "normal", 3, 0.8), settings_of(method)
    found, evaluations = edit_by_flow(
        model, latent, prompt("sd15", 1), prompt("sd15", 4), prompt("sd15", 2), settings, 3.0, sigmas, left_mask(), 5
    )
    close(found, flow_edit(models, "sd15", method, latent, left_mask()), 1e-5)
    assert evaluations == 2 * settings.evaluations(3, 3.0)


@pytest.mark.parametrize("settings", [{"draws": 2}, {"finish": 0.5}, {"source_cfg": 1.0}], ids=str)
def test_every_setting_counts(models, settings):
    plain = flow_edit(models, "sd15", "FlowEdit", steps=4)
    assert not torch.allclose(flow_edit(models, "sd15", "FlowEdit", steps=4, settings=settings), plain, atol=1e-3)


@every_method
def test_the_latents_own_noise_mask_counts(models, method):
    cells = torch.zeros(1, 1, 8, 12)
    cells[..., :6] = 1.0
    given = flow_edit(models, "sd15", method, noise_mask=cells)
    close(given, flow_edit(models, "sd15", method, mask=left_mask()), 1e-5)


@every_method
def test_progress_goes_from_the_first_to_the_last_step_and_previews_are_pictures(models, method):
    seen = []
    flow_edit(
        models,
        "sd15",
        method,
        steps=4,
        callback=lambda step, x0, x, total: seen.append((step, total, tuple(x0.shape), bool(x0.isfinite().all()))),
    )
    assert seen == [(step, 4, (1, 4, 8, 12), True) for step in range(4)]


@every_method
def test_it_can_be_interrupted(models, method):
    def stop(step, x0, x, total):
        comfy.model_management.interrupt_current_processing()
        comfy.model_management.throw_exception_if_processing_interrupted()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        flow_edit(models, "sd15", method, callback=stop)


# Beside other nodes


@every_method
def test_a_guider_without_negative_is_guidance_1(models, method):
    import comfy_extras.nodes_custom_sampler as custom

    model, latent = models["flux"], pictures("flux")
    sigmas = schedule(model, "normal", 3, 0.8)
    settings = settings_of(method, source_cfg=1.0)
    guider = custom.Guider_Basic(model)
    guider.set_conds(prompt("flux", 4))
    sampler = flow_edit_sampler(prompt("flux", 1), settings)
    found = guider.sample(torch.zeros_like(latent), latent, sampler, sigmas, disable_pbar=True, seed=5)
    close(found, flow_edit(models, "flux", method, cfg=1.0, settings={"source_cfg": 1.0}), 1e-4)
    if method == "FlowEdit":
        with pytest.raises(BoxwrightError, match="source_cfg 1.5 needs a negative prompt"):
            sampler = flow_edit_sampler(prompt("flux", 1), settings_of(method))
            guider.sample(torch.zeros_like(latent), latent, sampler, sigmas, disable_pbar=True, seed=5)


@every_method
def test_a_guider_of_its_own_kind_serves_flow_edit_alone(models, method):
    import comfy_extras.nodes_custom_sampler as custom

    model, latent = models["sd15"], pictures("sd15")
    guider = custom.Guider_DualCFG(model)
    guider.set_conds(prompt("sd15", 4), prompt("sd15", 3), prompt("sd15", 2))
    guider.set_cfg(2.0, 1.5)
    sampler = flow_edit_sampler(prompt("sd15", 1), settings_of(method))

    def go():
        return guider.sample(
            torch.zeros_like(latent), latent, sampler, schedule(model, "normal", 2, 0.8), disable_pbar=True, seed=5
        )

    if method == "FlowEdit":
        assert (go() - latent).abs().mean() > 0.01
    else:
        with pytest.raises(BoxwrightError, match="combines its prompts in a way of its own"):
            go()


def test_patches_on_guidance_count_and_the_guider_is_left_as_it_was(models):
    """FlowAlign and Uni-Edit ask the guider with other conditionings and guidance; it may be used again."""
    model, latent = models["sd15"].clone(), pictures("sd15")
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(prompt("sd15", 4), prompt("sd15", 2))
    guider.set_cfg(3.0)
    sigmas = schedule(model, "normal", 2, 0.8)

    def go(method):
        sampler = flow_edit_sampler(prompt("sd15", 1), settings_of(method))
        return guider.sample(torch.zeros_like(latent), latent, sampler, sigmas, disable_pbar=True, seed=5)

    before = {method: go(method) for method in METHODS}
    assert guider.cfg == 3.0 and all(torch.equal(go(method), before[method]) for method in METHODS)
    model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 0.5)
    assert not any(torch.allclose(go(method), before[method], atol=1e-2) for method in METHODS)


@every_method
def test_nothing_stays_on_the_model(models, method):
    model = models["sd15"]
    before = tiny_models.run("sd15", model, prompt("sd15", 1))
    options = {**model.model_options, "transformer_options": dict(model.model_options["transformer_options"])}
    flow_edit(models, "sd15", method)
    assert model.model_options == options
    assert torch.equal(tiny_models.run("sd15", model, prompt("sd15", 1)), before)


@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_edits_of_attention_reach_the_rows_of_both_prompts(models, family):
    """The sampler adds the source to a run that has begun; there it must carry what it carries in one run."""
    layout = tiny_models.layout(tiny_models.text(seed=4))
    both = tiny_models.conditioning(family, layout.prompt, layout.key, seed=4)
    seen = []

    def fn(zeros, site):
        seen.append(site.progress)
        return zeros + site.layout.columns.any(dim=0) * -4.0

    patched = install(models[family], layout, [AttentionEdit("quiet", "bias", fn, StepWindow())])
    latent, sigmas, settings = pictures(family), schedule(models[family], "normal", 2, 0.8), settings_of("FlowEdit")

    def edited(model, source):
        return edit_by_flow(model, latent, source, both, prompt(family, 2), settings, 1.5, sigmas, None, 5)[0]

    sampled = comfy.sample.sample_custom(
        patched,
        torch.zeros_like(latent),
        1.5,
        flow_edit_sampler(both, settings),
        sigmas,
        both,
        prompt(family, 2),
        latent,
        disable_pbar=True,
        seed=5,
    )
    close(sampled, edited(patched, both), 1e-4)
    # The same prompt on both sides with the same edits and guidance: nothing to change. Without them in the source's
    # rows there would be.
    torch.testing.assert_close(sampled, latent, atol=1e-3, rtol=0)
    other = tiny_models.conditioning(family, layout.prompt, "another layout", seed=4)
    assert (edited(patched, other) - latent).abs().mean() > 1e-2
    assert seen


@pytest.mark.parametrize("method", ["FlowEdit", "Uni-Edit"])
def test_readers_hear_the_target_alone(models, method):
    """An Attention Recorder is asked for the words of the picture to be. (FlowAlign's source stands where guidance has
    the negative prompt, in one call with the target; there it is heard if it was encoded with the same layout.)"""
    layout = tiny_models.layout(tiny_models.text(seed=4))
    both = tiny_models.conditioning("sd15", layout.prompt, layout.key, seed=4)
    heard = []
    reader = AttentionEdit("read", "read", lambda probs, site: heard.append((site.layer, site.progress)), StepWindow())
    patched = install(models["sd15"], layout, [reader])
    sigmas = torch.tensor([6.0, 2.0, 0.5, 0.0])
    edit_by_flow(patched, pictures("sd15"), both, both, prompt("sd15", 2), settings_of(method), 3.0, sigmas, None, 5)
    assert len({progress for _, progress in heard}) == 3 and len(heard) == len(set(heard))


# What it refuses


@pytest.mark.parametrize("sigmas, words", [
    ([5.0, NAN, 0.0], "Sigma 2 of 3 is nan"), ([INF, 1.0, 0.0], "Sigma 1 of 3 is inf"), ([5.0], "1 noise level"),
    ([0.0, 1.0, 5.0], "Sigma 2 of 3 is 1, after 0.*Flip Sigmas"), ([5.0, -1.0], "Sigma 2 of 2 is -1.*below 0"),
    ([5.0, 1.0], "ends at sigma 1, not at 0"),
], ids=str)  # fmt: skip
@every_method
def test_bad_schedules_are_refused(models, method, sigmas, words):
    sampler = flow_edit_sampler(prompt("sd15", 1), settings_of(method))
    with pytest.raises(BoxwrightError, match=words):
        sample(models["sd15"], "sd15", sampler, torch.tensor(sigmas), pictures("sd15"))


def test_sigmas_of_another_kind_of_model_are_refused(models):
    sampler = flow_edit_sampler(prompt("flux", 1), settings_of("FlowEdit"))
    with pytest.raises(BoxwrightError, match="starts at sigma 14.6.*from 0 to 1 only"):
        sample(models["flux"], "flux", sampler, schedule(models["sd15"], "normal", 2, 1.0), pictures("flux"))


@pytest.mark.parametrize(
    "latent, words",
    [
        (torch.zeros(1, 4, 8, 12), "latent is empty"),
        (torch.ones(1, 4, 3, 8, 12), "not that of pictures"),
        (torch.full((1, 4, 8, 12), NAN), "NaN or infinite"),
    ],
)
def test_latents_that_are_no_pictures_are_refused(models, latent, words):
    with pytest.raises(BoxwrightError, match=words):
        flow_edit(models, "sd15", "FlowEdit", latent)


@pytest.mark.parametrize(
    "mask, words",
    [
        (torch.full((8, 8), NAN), "mask has values from nan"),
        (torch.full((8, 8), 3.0), "values from 3 to 3"),
        (torch.ones(3, 8, 8), "shape .3, 8, 8. for 1 picture"),
        (torch.zeros(8, 8), "mask is empty: nothing in it is white"),
    ],
)
def test_masks_for_nothing_are_refused(models, mask, words):
    with pytest.raises(BoxwrightError, match=words):
        flow_edit(models, "sd15", "FlowEdit", mask=mask)


def test_a_noise_mask_for_nothing_is_refused_before_the_model_is_called(models):
    patched = models["sd15"].clone()
    patched.set_model_unet_function_wrapper(lambda apply, inputs: pytest.fail("the model was called"))
    with pytest.raises(BoxwrightError, match="latent's noise mask is empty"):
        flow_edit({"sd15": patched}, "sd15", "FlowEdit", noise_mask=torch.zeros(1, 1, 8, 12))


def test_a_method_names_the_settings_that_it_leaves_unread():
    settings = dict(source_cfg=1.5, draws=2, finish=0.5)
    assert [FlowEditing(method, **settings).unread() for method in ("FlowEdit", "FlowAlign", "Uni-Edit")] == [
        [],
        ["source_cfg", "finish"],
        ["source_cfg", "draws", "finish"],
    ]
    assert FlowEditing("Uni-Edit").unread() == []


@pytest.mark.parametrize("source", [[], [[None, {}]], [[torch.zeros(1, 0, 8), {}]]], ids=["none", "null", "empty"])
def test_a_source_without_text_is_refused(source):
    with pytest.raises(BoxwrightError, match="source holds no text.*text-to-image"):
        flow_edit_sampler(source, settings_of("FlowEdit"))


def test_a_source_that_is_silent_for_a_time_is_refused_and_two_that_take_turns_are_not():
    def said(start, end):
        return [torch.zeros(1, 77, 8), {"start_percent": start, "end_percent": end}]

    for silent in ([said(0.0, 0.5)], [said(0.2, 1.0)], [said(0.0, 0.4), said(0.6, 1.0)]):
        with pytest.raises(BoxwrightError, match="source says nothing of the picture at 0.*ConditioningSetTimestep"):
            flow_edit_sampler(silent, settings_of("FlowEdit"))
    flow_edit_sampler([said(0.5, 1.0), said(0.0, 0.5)], settings_of("FlowEdit"))


def test_a_source_that_needs_loading_is_refused_in_a_running_sampler(models):
    source = [[text, {**said, "control": object()}] for text, said in prompt("sd15", 1)]
    sampler = flow_edit_sampler(source, settings_of("FlowEdit"))
    with pytest.raises(BoxwrightError, match='source prompt carries "control".*node Flow Edit'):
        sample(models["sd15"], "sd15", sampler, schedule(models["sd15"], "normal", 2, 0.8), pictures("sd15"))


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"method": "Flow"}, 'no method "Flow"; choose one of FlowEdit, FlowAlign, Uni-Edit'),
        ({"source_cfg": 0.5}, "source_cfg is 0.5"),
        ({"draws": 65}, "draws is 65"),
        ({"finish": -0.1}, "finish is -0.1"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(BoxwrightError, match=words):
        FlowEditing(**settings)


def test_a_guidance_that_uni_edit_cannot_use_is_refused(models):
    with pytest.raises(BoxwrightError, match="guidance of Uni-Edit is 101; choose 0 to 100"):
        flow_edit(models, "sd15", "Uni-Edit", cfg=101.0)
