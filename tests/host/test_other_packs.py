"""Beside what other packs put on the same model. Their behaviour is written here as small patches of our own."""

import logging
from dataclasses import replace

import pytest
import tiny_models as tiny
import torch
from beside_others import BOUND, COUPLE, DENSE, RENORMALISED, REWEIGHT, apart, close, run
from comfy.ldm.modules import attention
from guides import GUIDE, gradients, relative
from pack.attention_patches.core.types import StepWindow
from pack.attention_patches.host.attention.calls import IncompatiblePatchError
from pack.attention_patches.host.install import install
from pack.attention_patches.host.prompt_to_prompt import edited
from pack.attention_patches.methods.prompt_to_prompt import PromptToPrompt
from pack.attention_patches.methods.rectified_attention import PUBLISHED, RectifiedAttention
from test_prompt_to_prompt_runs import conditioning as side_by_side
from test_prompt_to_prompt_runs import prompts_of
from together import with_control

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


@pytest.mark.parametrize("ignores_first", [False, True], ids=["later", "at first"])
@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_an_override_that_ignores_masks_in_some_steps(models, layout, family, ignores_first):
    """As packs do that put in a faster kernel for a while. With a ControlNet, whose maps UNets use up."""
    firsts, positive = [], tiny.conditioning(family, layout.prompt, layout.key)
    if family == "sd15":
        _, positive = with_control(None, positive)

    def sometimes(func, q, k, v, heads, mask=None, *args, **kwargs):
        sigma = float(kwargs["transformer_options"]["sigmas"][0])
        firsts.append(sigma)
        return func(q, k, v, heads, None if (sigma == firsts[0]) == ignores_first else mask, *args, **kwargs)

    def drawn(model):
        return tiny.run(family, model, positive, steps=3)

    patched = install(overridden(models[family], sometimes), layout, PUBLISHED.edits(layout))
    out, expected = drawn(patched), drawn(install(models[family], layout, PUBLISHED.edits(layout)))
    assert len(set(firsts)) == 3
    close(out, expected)
    apart(expected, drawn(models[family]))


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


# --- layers and blocks that other packs replace ---


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
