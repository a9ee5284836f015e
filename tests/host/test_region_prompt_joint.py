"""Region prompts where one attention holds text and image: what each token reads, and that the rest stays as it is."""

from dataclasses import replace

import comfy.samplers
import pytest
import tiny_models as tiny
import torch
from pack.attention_patches.core.types import Box, StepWindow
from pack.attention_patches.host.families import adapter_for
from pack.attention_patches.host.install import install
from pack.attention_patches.methods.region_prompt import RegionPrompt

COUPLED = [family for family in tiny.JOINT if adapter_for(tiny.build(family)).beside is not None]
every_family = pytest.mark.parametrize("family", COUPLED)
NO_BASE = RegionPrompt(base_ratio=0.0, confine_end=0.0)
WHOLE = Box(0.0, 0.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def models():
    return {family: tiny.build(family) for family in COUPLED}


@pytest.fixture
def layout():
    return tiny.layout()


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=2e-4 * float(b.abs().max()))


def run(family, model, layout, **options):
    return tiny.run(family, model, tiny.conditioning(family, layout.prompt, layout.key), **{"steps": 1, **options})


def coupled(model, layout, method=NO_BASE, **texts):
    return install(model, layout, method.edits(layout, **texts))


def cond_and_uncond(family, model, layout, negative=None, **options):
    """What the model predicts for the prompt and the negative prompt in the first step."""
    seen, model = [], model.clone()
    model.set_model_sampler_pre_cfg_function(lambda args: seen.append(args["conds_out"]) or args["conds_out"])
    run(family, model, layout, negative=negative, **options)
    return seen[0]


# --- identities ---


@every_family
@pytest.mark.parametrize("length", [64, 96, 77])
def test_one_region_over_everything_is_its_text_alone(models, family, length):
    layout, alone = tiny.layout(areas=(WHOLE,)), tiny.text(length, seed=44)
    found = run(family, coupled(models[family], layout, texts=[alone.embedding]), layout, noise=tiny.latent(family, (15, 23), 2))
    expected = tiny.run(
        family, models[family], tiny.conditioning(family, alone), steps=1, noise=tiny.latent(family, (15, 23), 2)
    )
    close(found, expected)


@every_family
def test_texts_that_are_the_prompt_change_nothing_where_they_see_the_same(models, family):
    """A region over everything that reads the prompt, by any share."""
    layout = tiny.layout(areas=(WHOLE,))
    plain, texts = run(family, models[family], layout), [layout.prompt.embedding]
    for method in (NO_BASE, RegionPrompt(base_ratio=0.3, confine_end=0.0), RegionPrompt(strength=0.5, base_ratio=0.0, confine_end=0.0)):
        close(run(family, coupled(models[family], layout, method, texts=texts), layout), plain)
    assert not torch.allclose(run(family, coupled(models[family], layout), layout), plain, atol=1e-2)
