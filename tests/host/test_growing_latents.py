"""Beside samplers that enlarge the latent."""

import comfy.samplers
import pytest
import tiny_models as tiny
import torch
from beside_others import apart, close
from comfy_extras import nodes_advanced_samplers, nodes_custom_sampler
from guides import GUIDE
from pack.attention_patches.core.seam import AttentionEdit
from pack.attention_patches.host.attention.calls import IncompatiblePatchError
from pack.attention_patches.host.install import install
from pack.attention_patches.host.prompt_to_prompt import edited
from pack.attention_patches.methods.prompt_to_prompt import PromptToPrompt
from pack.attention_patches.methods.rectified_attention import PUBLISHED, RectifiedAttention
from test_prompt_to_prompt_runs import conditioning as side_by_side
from test_prompt_to_prompt_runs import prompts_of


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
