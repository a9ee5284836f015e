"""Gradients where hooks give entries of one layout LoRAs of their own: each entry's way back takes its own weights."""

from dataclasses import replace

import comfy.hooks
import pytest
import tiny_loras
import tiny_models as tiny
import torch
from guides import GUIDE, relative
from pack.attention_patches.core.pictures import PictureGuide
from pack.attention_patches.host.guidance import pictures, prediction
from pack.attention_patches.host.install import install
from pack.attention_patches.host.loss_guidance import guide_by_pictures

FAST = replace(GUIDE, moves="prediction")


@pytest.fixture(scope="module")
def model():
    return tiny.build("sd15")


@pytest.fixture(scope="module")
def hooks(model):
    """Two LoRAs as hooks, that change what the attention is."""
    files = [tiny_loras.tensors(model, seed=seed, only=("attn",), size=0.6) for seed in (1, 2)]
    return [comfy.hooks.create_hook_lora(lora=file, strength_model=1.0, strength_clip=0.0) for file in files]


def hooked(model, hooks):
    """The model that knows of the hooks."""
    model = model.clone()
    for group in hooks:
        model.register_all_hook_patches(group, comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model))
    return model


def entries(layout, hooks):
    """An entry of the layout for each, with its hook."""
    return [
        entry
        for group in hooks
        for entry in comfy.hooks.set_hooks_for_conditioning(tiny.conditioning("sd15", layout.prompt, layout.key), group)
    ]


def draw(model, layout, positive):
    return tiny.run("sd15", model, positive, steps=1, noise=tiny.latent("sd15", size=(8, 12)))


def moved_by(model, layout, hooks, guide, monkeypatch):
    """The gradients that a guide took in a run on entries with these hooks, one for each entry."""
    found, differentiate = [], prediction.differentiate

    def spy(*args, **kwargs):
        found.append(differentiate(*args, **kwargs))
        return found[-1]

    with monkeypatch.context() as patch:
        patch.setattr(prediction, "differentiate", spy)
        draw(install(hooked(model, hooks), layout, [guide]), layout, entries(layout, hooks))
    return [one.values for one in found]


def test_each_entry_has_the_gradient_that_it_has_alone(model, hooks, monkeypatch):
    layout = tiny.layout()
    alone = [moved_by(model, layout, [hook], FAST, monkeypatch)[0] for hook in hooks]
    assert relative(alone[1], alone[0]) > 0.1, "the hooks do nothing"
    together = moved_by(model, layout, hooks, FAST, monkeypatch)
    for ours, expected in zip(together, alone, strict=True):
        assert relative(ours, expected) < 1e-3


def by_latent(model, layout, hooks, monkeypatch):
    """What Loss Guidance takes through the model for entries with these hooks, of a loss that is the prediction."""
    found, original = [], pictures._by_latent
    guide = PictureGuide(lambda seen: seen.mean(dim=(1, 2, 3)), through="through model")

    def spy(guider, x, sigma, options, by_clean):
        found.append(original(guider, x, sigma, options, torch.ones_like(by_clean)))
        return found[-1]

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "_by_latent", spy)
        draw(guide_by_pictures(hooked(model, hooks), guide), layout, entries(layout, hooks))
    return found[0]


def test_a_loss_through_the_model_takes_each_entrys_own_weights_back(model, hooks, monkeypatch):
    """The prediction is the mean of both entries, and so is its derivative."""
    layout = tiny.layout()
    one, two = (by_latent(model, layout, [hook], monkeypatch) for hook in hooks)
    assert relative(one, two) > 0.1, "the hooks do nothing"
    assert relative(by_latent(model, layout, hooks, monkeypatch), (one + two) / 2) < 1e-3


def test_afterwards_the_model_has_its_own_weights(model, hooks):
    layout = tiny.layout()
    plain = tiny.conditioning("sd15", layout.prompt, layout.key)
    before = draw(model, layout, plain)
    draw(install(hooked(model, hooks), layout, [FAST]), layout, entries(layout, hooks))
    assert torch.equal(draw(model, layout, plain), before)
