"""Hosts newer than those here, pretended: nothing of ours outlives a block of the network, or takes a checkpoint's own
attention away for longer than it acts."""

import comfy.cli_args
import pytest
import test_on_a_device as methods
import tiny_models as tiny
import torch
from newer_host import checkpoint_chooses_attention, compiling
from pack.attention_patches.core.types import StepWindow
from pack.attention_patches.host.install import install
from pack.attention_patches.methods.dense_diffusion import DenseDiffusion
from pack.attention_patches.methods.rectified_attention import RectifiedAttention

EVERY_METHOD = sorted({(family, name) for family, name, _ in methods.SOME})
FAMILIES = ["sd15", "flux", "qwen", "wan", "sd3", "zimage"]


@pytest.mark.parametrize("family, name", EVERY_METHOD)
def test_nothing_outlives_a_block(models, monkeypatch, family, name):
    """Of all methods, blocks whole: attention, layers, hooks, and what a way back needs."""
    model, scope = models[family], compiling(monkeypatch)
    with scope.around(model.model.diffusion_model):
        methods.EVERY[name](family, model, 2)
    assert scope.left == 0
    assert comfy.cli_args.args.disable_comfy_compiler is False


def draw(family, model, layout, steps=2):
    return tiny.run(family, model, tiny.conditioning(family, layout.prompt, layout.key), steps=steps)


@pytest.mark.parametrize("method", [RectifiedAttention(window=StepWindow()), DenseDiffusion(window=StepWindow())])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_checkpoints_own_attention_gives_way_to_edits(models, layout, monkeypatch, family, method):
    edited = install(models[family], layout, method.edits(layout))
    expected = draw(family, edited, layout)
    calls = checkpoint_chooses_attention(monkeypatch)
    found = draw(family, edited, layout)
    assert torch.equal(found, expected) and not calls
    draw(family, models[family], layout)
    assert calls


@pytest.mark.parametrize("family", FAMILIES)
def test_the_checkpoints_own_attention_is_back_in_steps_without_edits(models, layout, monkeypatch, family):
    """Half of the steps, half of the calls of a run without anything of ours."""
    half = RectifiedAttention(window=StepWindow(0.0, 0.5))
    calls = checkpoint_chooses_attention(monkeypatch)
    draw(family, models[family], layout, steps=4)
    whole = len(calls)
    calls.clear()
    draw(family, install(models[family], layout, half.edits(layout)), layout, steps=4)
    assert 0 < len(calls) < whole
