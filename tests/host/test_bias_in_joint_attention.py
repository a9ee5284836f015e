"""A bias on the text of a joint attention: what it costs in memory, and where one token differs from all others."""

from dataclasses import replace

import pytest
import tiny_models as tiny
import torch
from pack.attention_patches.core.types import Box, StepWindow
from pack.attention_patches.host.attention import attend
from pack.attention_patches.host.install import install
from pack.attention_patches.methods.rectified_attention import PUBLISHED
from pack.attention_patches.methods.region_prompt import RegionPrompt
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

FAMILIES = ["flux", "zimage", "hidream"]  # text before the image, filled up too, and behind it
SIZE = (16, 24)
HALVES = (Box(0.0, 0.0, 0.5, 1.0), Box(0.5, 0.0, 0.5, 0.5))
ONE_CELL = Box(0.01, 0.01, 0.04, 0.06)  # covers a part of the first of 8 x 12 tokens


class Masks(TorchFunctionMode):
    """Notes the bytes of every mask that is added to scores."""

    def __init__(self):
        super().__init__()
        self.bytes = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        mask = kwargs.get("attn_mask")
        if func is scaled_dot_product_attention and mask is not None:
            self.bytes.append(mask.untyped_storage().nbytes())
        return func(*args, **kwargs)


def run(family, method, areas):
    layout = tiny.layout(areas=areas)
    model = install(tiny.build(family), layout, method.edits(layout))
    conditioning = tiny.conditioning(family, layout.prompt, layout.key)
    return tiny.run(family, model, conditioning, noise=tiny.latent(family, SIZE), steps=1)


@pytest.fixture
def as_if_large(monkeypatch):
    monkeypatch.setattr(attend, "GROUPED_FROM", 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_confined_words_take_no_mask_of_tokens_by_tokens(family, as_if_large):
    with Masks() as masks:
        run(family, PUBLISHED, HALVES)
    tokens = SIZE[0] * SIZE[1] // 4
    assert len(masks.bytes) >= 3  # in none, in the one, in the other
    assert max(masks.bytes) < tokens * tokens


def test_a_single_token_may_differ_from_all_others(monkeypatch):
    found = []
    for least in (0, 2**40):
        monkeypatch.setattr(attend, "GROUPED_FROM", least)
        found.append(run("flux", PUBLISHED, (ONE_CELL,)))
    torch.testing.assert_close(*found, rtol=0, atol=2e-4 * float(found[1].abs().max()))
    assert not torch.equal(found[0], run("flux", PUBLISHED, (Box(0.0, 0.0, 0.5, 0.5),)))


def test_a_region_of_a_single_token_is_nearly_that_of_one_and_a_hint_of_another():
    """Couple sorts its tokens always: one that stands alone goes another way than two do."""
    one = torch.zeros(8, 12)
    one[0, 0] = 0.5
    two = one.clone()
    two[0, 1] = 1e-4
    method = RegionPrompt(base_ratio=0.2, confine_end=0.0, window=StepWindow())
    found = [
        run("flux", method, (area,)) for area in (one, two, torch.zeros(8, 12).index_fill(1, torch.arange(6), 1.0))
    ]
    scale = float(found[0].abs().max())
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-3 * scale)
    assert float((found[0] - found[2]).abs().max()) > 1e-2 * scale


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("feather", [0.0, 0.3], ids=["hard", "feathered"])
def test_a_row_for_those_alike_is_the_mask(family, feather, monkeypatch):
    found = []
    for least in (0, 2**40):
        monkeypatch.setattr(attend, "GROUPED_FROM", least)
        found.append(run(family, replace(PUBLISHED, feather=feather), HALVES))
    torch.testing.assert_close(*found, rtol=0, atol=2e-4 * float(found[1].abs().max()))
