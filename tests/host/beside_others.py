"""What the tests beside other packs share: methods, and short runs on tiny models."""

import pytest
import tiny_models as tiny
import torch
from pack.attention_patches.core.seam import AttentionEdit
from pack.attention_patches.core.types import StepWindow
from pack.attention_patches.methods.bounded_attention import BoundedAttention
from pack.attention_patches.methods.dense_diffusion import DenseDiffusion
from pack.attention_patches.methods.rectified_attention import PUBLISHED
from pack.attention_patches.methods.region_prompt import RegionPrompt
from pack.attention_patches.methods.reweight import Reweight

BOUND = BoundedAttention(StepWindow(), "all")
COUPLE = RegionPrompt(base_ratio=0.2, confine_end=0.0, window=StepWindow())
DENSE = DenseDiffusion(window=StepWindow())
RENORMALISED = Reweight((("w1", 4.0),), renormalize=True)
REWEIGHT = Reweight((("w1", 4.0),))
METHODS = pytest.mark.parametrize(
    "method", [PUBLISHED, COUPLE, REWEIGHT, DENSE], ids=["rectified", "couple", "reweight", "dense"]
)


def run(model, layout, family="sd15", batch=1, **options):
    options.setdefault("noise", tiny.latent(family, size=(8, 12), batch=batch))
    return tiny.run(family, model, tiny.conditioning(family, layout.prompt, layout.key), **{"steps": 1, **options})


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=2e-4 * float(b.abs().max()))


def apart(a, b):
    assert not torch.allclose(a, b, rtol=0, atol=1e-3 * float(b.abs().max()))


def recording(maps):
    return AttentionEdit("look", "read", lambda probs, site: maps.append((site.layer, probs.clone())))
