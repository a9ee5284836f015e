"""What the tests of region prompts share: tiny models with a couple, and what they predict in the first step."""

import tiny_models as tiny
import torch
from pack.attention_patches.core.types import Box
from pack.attention_patches.host.install import install
from pack.attention_patches.methods.region_prompt import RegionPrompt

NO_BASE = RegionPrompt(base_ratio=0.0, confine_end=0.0)
WHOLE = Box(0.0, 0.0, 1.0, 1.0)


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
