"""The adapters' contract, when it happens: windows, steps, samplers, orders of the conditioning."""

import sys

import comfy.model_base
import comfy.samplers
import pytest
import tiny_models as tiny
import torch
from comfy.ldm.modules import attention
from comfy_extras import nodes_custom_sampler, nodes_perpneg
from contract import assert_close, every_family, every_family_with_a_text_of_its_own, rectified, texts_edited, watching
from pack.attention_patches.core.seam import ContextEdit, TextMix
from pack.attention_patches.core.types import StepWindow, UnsupportedModelError
from pack.attention_patches.host.families import adapter_for
from pack.attention_patches.host.install import install
from pack.attention_patches.host.run.schedule import progress_of


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
