"""What the files of the adapters' contract share."""

from dataclasses import replace

import pytest
import tiny_models as tiny
import torch
from pack.attention_patches.core.seam import AttentionEdit, ContextEdit
from pack.attention_patches.core.types import Box, StepWindow
from pack.attention_patches.methods.rectified_attention import PUBLISHED

UNETS = tiny.UNETS
TRANSFORMERS = [family for family in tiny.SUPPORTED if family not in UNETS]
FILMS = [family for family in TRANSFORMERS if tiny.FAMILIES[family].frames]
RIGHT_TOP = Box(0.5, 0.0, 0.5, 0.5)
every_family = pytest.mark.parametrize("family", tiny.SUPPORTED)
every_family_with_a_text_of_its_own = pytest.mark.parametrize(
    "family", [family for family in tiny.SUPPORTED if tiny.FAMILIES[family].own_text]
)


def rectified(layout, strength=1.0):
    return replace(PUBLISHED, strength=strength).edits(layout)


def watching(seen, window=StepWindow()):
    """An edit that changes nothing and notes its sites."""

    def fn(values, site):
        seen.append((site, tuple(values.shape)))
        return values

    return AttentionEdit("watch", "probs", fn, window)


def assert_close(a, b):
    """Equal but for the rounding of another order of summation; the tiny models amplify it step by step."""
    torch.testing.assert_close(a, b, rtol=0, atol=2e-4 * float(b.abs().max()))


def texts_edited(seen):
    """A ContextEdit that notes the encoded text of the rows it is given."""
    return ContextEdit("note", lambda context, layout: seen.append(context.clone()) or context)


def conds_of_first_step(family, model, positive, negative=None):
    """What the model predicts for each cond in the first step."""
    seen, model = [], model.clone()
    model.set_model_sampler_pre_cfg_function(lambda args: seen.append(args["conds_out"]) or args["conds_out"])
    tiny.run(family, model, positive, negative, steps=1)
    return seen[0]
