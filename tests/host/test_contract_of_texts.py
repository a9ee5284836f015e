"""The adapters' contract, with which texts: of any length, several, others that are read, masked."""

import pytest
import tiny_models as tiny
import torch
from contract import (
    FILMS,
    RIGHT_TOP,
    TRANSFORMERS,
    UNETS,
    assert_close,
    conds_of_first_step,
    every_family,
    rectified,
    watching,
)
from pack.attention_patches.core.seam import AttentionEdit, TextMix
from pack.attention_patches.host.attention.calls import IncompatiblePatchError
from pack.attention_patches.host.families import adapter_for
from pack.attention_patches.host.install import install


@pytest.mark.parametrize("family", UNETS)
@pytest.mark.parametrize("lengths", [(77, 154), (154, 77), (154, 231)])
def test_prompts_of_different_chunk_counts_in_one_call(models, family, lengths):
    """The host repeats the shorter prompt until the lengths match; every copy must be edited."""
    layout = tiny.layout(tiny.text(lengths[0]))
    patched = install(models[family], layout, rectified(layout))
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    negative = tiny.conditioning(family, tiny.text(lengths[1], seed=2), seed=6)
    repeats = torch.tensor([torch.tensor(lengths).prod() // torch.gcd(*torch.tensor(lengths)) // lengths[0]]).item()
    long = tiny.conditioning(family, layout.prompt, layout.key)
    long[0][0] = long[0][0].repeat(1, repeats, 1)
    together = tiny.run(family, patched, positive, negative, steps=1)
    separate = tiny.layout(tiny.text(lengths[0]))
    columns = separate.columns.repeat(1, repeats)
    tokens = separate.prompt.tokens
    wide = type(tokens)(tokens.text, tokens.spans * repeats, tokens.roles * repeats)
    prompt = type(separate.prompt)(wide, long[0][0])
    by_hand = type(separate)(prompt, separate.regions, columns, separate.region_texts, separate.key)
    patched = install(models[family], by_hand, rectified(by_hand))
    assert_close(together, tiny.run(family, patched, long, negative, steps=1))


@every_family
def test_combined_conditionings_keep_their_own_layouts(models, family):
    """Two Layout Prompts combined into one positive: each entry gets its own edits."""
    one, two = tiny.layout(tiny.text(seed=1), key="one"), tiny.layout(tiny.text(seed=9), (RIGHT_TOP,), key="two")
    seen_one, seen_two = [], []
    patched = install(install(models[family], one, [watching(seen_one)]), two, [watching(seen_two)])
    positive = tiny.conditioning(family, one.prompt, "one") + tiny.conditioning(family, two.prompt, "two", seed=8)
    tiny.run(family, patched, positive, steps=1)
    assert all(site.layout is one for site, _ in seen_one) and all(site.layout is two for site, _ in seen_two)
    assert seen_one and seen_two
    assert all(shape[0] == 1 for _, shape in seen_one + seen_two)


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_text_of_any_length_keeps_its_columns(models, family):
    """Edits see the prompt's own tokens, whatever the model adds: hiding all but the first is another prompt's run."""
    for length in (32, 50):
        layout, seen = tiny.layout(tiny.text(length)), []
        patched = install(tiny.probe(models[family], seen), layout, rectified(layout))
        positive = tiny.conditioning(family, layout.prompt, layout.key)
        tiny.run(family, patched, positive, steps=1, cfg=1.0)
        masks = [args[4] for args, _, _ in seen if len(args) > 4 and args[4] is not None]
        assert len(masks) == len(tiny.FAMILIES[family].layers)
        (text, start), (height, width) = tiny.places(family, length), tiny.tokens(family)
        for mask in masks:
            edited = (mask < -1e3)[0, 0]
            assert torch.equal(edited.any(0).nonzero()[:, 0], layout.columns.any(0).nonzero()[:, 0] + text)
            rows = edited[start : start + height * width].view(height, width, -1)
            first = layout.columns[0].nonzero()[0, 0] + text
            assert not rows[:, : width // 2, first].any() and rows[:, width // 2 :, first].all()
            assert not edited[:start].any() and not edited[start + height * width :].any()


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_a_negative_of_another_length_is_left_alone_in_transformers(models, layout, family):
    """The host repeats no text here: it calls the model once for each length."""
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    negative = tiny.conditioning(family, tiny.text(50, seed=2), seed=6)
    plain = conds_of_first_step(family, models[family], positive, negative)
    edited = conds_of_first_step(family, install(models[family], layout, rectified(layout)), positive, negative)
    assert torch.equal(plain[1], edited[1]) and not torch.equal(plain[0], edited[0])


@pytest.mark.parametrize("family", [family for family in TRANSFORMERS if tiny.FAMILIES[family].own_text])
def test_a_text_that_another_pack_made_longer_is_refused(models, layout, family):
    """Where the prompt's words then are, nobody says; the wrong columns would be edited without a word."""
    adapter = adapter_for(models[family])
    assert [*adapter.text_columns(77, 77)] == [slice(0, 77)]
    with pytest.raises(IncompatiblePatchError, match="154 text tokens instead of the prompt's 77"):
        adapter.text_columns(154, 77)


@pytest.mark.parametrize("family", [family for family in TRANSFORMERS if tiny.FAMILIES[family].left])
def test_a_text_that_the_host_fills_up_in_front_keeps_its_place(models, family):
    adapter, left = adapter_for(models[family]), tiny.FAMILIES[family].left
    assert [*adapter.text_columns(left, 77)] == [slice(left - 77, left)]
    assert [*adapter.text_columns(left, left)] == [slice(0, left)]
    assert [*adapter.text_columns(left + 5, left + 5)] == [slice(0, left + 5)]


@pytest.mark.parametrize("family", [f for f in tiny.SUPPORTED if tiny.FAMILIES[f].own_text and f not in tiny.JOINT])
@pytest.mark.parametrize("in_line", [False, True])
def test_another_text_that_is_read_everywhere_is_that_texts_run(models, layout, family, in_line):
    """In all frames of a film; beside a row that reads its own."""
    other = tiny.text(seed=21)
    everywhere = TextMix("mix", (other.embedding,), lambda site: torch.ones(1, site.grid[0] * site.grid[1]))
    model = tiny.probe(models[family], []) if in_line else models[family]
    noise = [tiny.latent(family, seed=seed) for seed in (7, 8, 9)]
    noise = torch.cat(noise, dim=2) if family in FILMS else noise[0]
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    mixed = tiny.run(family, install(model, layout, [everywhere]), positive, noise=noise, steps=1)
    plain = tiny.run(family, models[family], tiny.conditioning(family, other), noise=noise, steps=1)
    assert_close(mixed, plain)
    assert not torch.equal(plain, tiny.run(family, models[family], positive, noise=noise, steps=1))


@pytest.mark.parametrize("family", [family for family in TRANSFORMERS if tiny.FAMILIES[family].masks])
def test_a_mask_of_the_prompt_is_kept(models, layout, family):
    """Some encoders mask the padding of its text."""
    keep = torch.ones(1, 77, dtype=torch.long)
    keep[:, 40:] = 0
    positive = tiny.conditioning(family, layout.prompt, layout.key, attention_mask=keep)
    plain = tiny.run(family, models[family], positive, steps=1)
    for stage in ("bias", "probs"):
        seen = []

        def fn(values, site, seen=seen):
            seen.append(values.clone())
            return values

        patched = install(models[family], layout, [AttentionEdit("nothing", stage, fn)])
        assert_close(tiny.run(family, patched, positive, steps=1), plain)
        assert stage == "bias" or all(not probs[..., 40:].any() and probs[..., :40].all() for probs in seen)
