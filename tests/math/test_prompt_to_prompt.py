"""Prompt-to-Prompt against its formulas, one cell at a time; local blend by hand."""

from dataclasses import replace

import pytest
import torch
from oracles import encoded, layout, site
from pack.attention_patches.core.token_alignment import TokenAlignment, token_alignment
from pack.attention_patches.core.types import BoxwrightError, Moment, PhraseNotFoundError, StepWindow
from pack.attention_patches.methods.prompt_to_prompt import (
    LocalBlend,
    Prompts,
    PromptToPrompt,
    blend_mask,
    blended,
    moved_columns,
    recorded_maps,
)

SOURCE = "a red cat sits"
ALWAYS = StepWindow()


def prompts_of(*targets, source=SOURCE, mode="auto"):
    lay = layout([], [], source.split())
    maps = [encoded(target.split()).tokens for target in targets]
    return Prompts(lay, tuple(maps), tuple(token_alignment(lay.prompt.tokens, m, mode) for m in maps))


def probabilities(rows, seed=0, keys=16):
    return torch.randn(rows, 3, 16, keys, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def edit_of(method, prompts, kind="image_text"):
    (found,) = [edit for edit in method.edits(prompts) if edit.kind == kind and edit.stage == "probs"]
    return found


def apply(method, prompts, probs, progress=0.0, kind="image_text"):
    edit = edit_of(method, prompts, kind)
    if not edit.window.contains(progress):
        return probs
    return edit.fn(probs.clone(), replace(site(prompts.layout), progress=progress, kind=kind))


# --- replace and refine ---


def test_replace_takes_over_the_swapped_words_and_the_common_ones():
    prompts, probs = prompts_of("a blue cat sits"), probabilities(2)
    out = apply(PromptToPrompt(cross=ALWAYS), prompts, probs)
    assert torch.equal(out[0], probs[0]) and torch.equal(out[1], probs[0])


def test_refine_keeps_the_new_words_own_attention():
    prompts, probs = prompts_of("a big red cat sits"), probabilities(2)
    out = apply(PromptToPrompt(cross=ALWAYS), prompts, probs)
    origin = {0: 0, 1: 1, 3: 2, 4: 3, 5: 4, 6: 5, **{k: k for k in range(7, 16)}}
    for column in range(16):
        expected = probs[0, ..., origin[column]] if column in origin else probs[1, ..., column]
        assert torch.equal(out[1, ..., column], expected), column


def test_several_targets_and_groups():
    """Rows s, t1, t2, s', t1', t2': each target follows the source of its own group."""
    prompts, probs = prompts_of("a blue cat sits", "a red cat sits down"), probabilities(6)
    out = apply(PromptToPrompt(cross=ALWAYS), prompts, probs)
    for first in (0, 3):
        alone = apply(PromptToPrompt(cross=ALWAYS), prompts, probs[first : first + 3])
        assert torch.equal(out[first : first + 3], alone)
        assert torch.equal(out[first], probs[first]) and torch.equal(out[first + 1], probs[first])
        assert not torch.equal(out[first + 2], probs[first])


def test_two_edits_in_one_run_keep_tables_of_their_own_and_follow_their_windows():
    """What is worked out once for a grid of a run must be that edit's, at that time."""
    prompts, probs, memo = prompts_of("a red cat sits"), probabilities(2), {}
    half = StepWindow(0.0, 0.5)
    edits = [edit_of(PromptToPrompt(cross=half, weights=(("cat", factor),)), prompts) for factor in (2.0, 3.0)]
    for progress, factors in [(0.0, (2.0, 3.0)), (0.6, (1.0, 1.0)), (0.1, (2.0, 3.0))]:
        for edit, factor in zip(edits, factors, strict=True):
            out = edit.fn(probs.clone(), replace(site(prompts.layout), progress=progress, memo=memo))
            origin = probs[0] if progress < 0.5 else probs[1]
            assert torch.equal(out[1, ..., 3], origin[..., 3] * factor)


@pytest.mark.parametrize("seed", range(3))
def test_moved_columns_are_the_product_with_the_weights(seed):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(16, 16, generator=generator) * (torch.rand(16, 16, generator=generator) > 0.8)
    probs = probabilities(2, seed)
    found = TokenAlignment(weights, weights.any(dim=0), ())
    torch.testing.assert_close(moved_columns(probs, found), probs @ weights)


def test_rows_that_are_no_whole_groups_are_refused():
    prompts = prompts_of("a blue cat sits")
    for kind in ("image_text", "image_image"):
        with pytest.raises(BoxwrightError, match="3 rows for 2 prompts"):
            apply(PromptToPrompt(), prompts, probabilities(3), kind=kind)


# --- windows ---


def test_outside_its_window_a_word_keeps_its_own_attention():
    prompts, probs = prompts_of("a blue cat sits"), probabilities(2)
    method = PromptToPrompt(StepWindow(0.2, 0.6), windows=(("blue", StepWindow(0.0, 0.4)), ("sits", None)))
    for progress, blue, others in ((0.0, 0, 1), (0.3, 0, 0), (0.5, 1, 0), (0.7, 1, 1)):
        out = apply(method, prompts, probs, progress)
        assert torch.equal(out[1, ..., 2], probs[blue, ..., 2]), progress
        assert torch.equal(out[1, ..., 3], probs[others, ..., 3]), progress
        assert torch.equal(out[1, ..., 4], probs[1, ..., 4]), progress


def test_a_window_between_two_steps_takes_the_step_before():
    prompts, probs = prompts_of("a blue cat sits"), probabilities(2)
    method = PromptToPrompt(cross=StepWindow(0.3, 0.45))
    for moment, taken in ((Moment(0.0, 0.25), 1), (Moment(0.25, 0.5), 0), (Moment(0.5, 0.75), 1)):
        out = apply(method, prompts, probs, moment)
        assert torch.equal(out[1, ..., 2], probs[taken, ..., 2]), moment


def test_windows_without_length_install_nothing():
    prompts = prompts_of("a blue cat sits")
    assert PromptToPrompt(cross=None, self_attention=None).edits(prompts) == []
    with pytest.raises(BoxwrightError, match="that window is empty"):
        PromptToPrompt(cross=None, weights=(("blue", 2.0),)).edits(prompts)
    with pytest.raises(PhraseNotFoundError, match='"red" is not in any target'):
        PromptToPrompt(windows=(("red", None),)).edits(prompts)


# --- reweight ---


@pytest.mark.parametrize("factor", [-2.0, 0.0, 0.5, 4.0])
def test_reweight_multiplies_after_replacing(factor):
    prompts, probs = prompts_of("a blue cat sits", "a red cat sits"), probabilities(3)
    out = apply(PromptToPrompt(ALWAYS, weights=(("blue", factor), ("cat", 3.0))), prompts, probs)
    scale = torch.ones(2, 16)
    scale[0, 2], scale[:, 3] = factor, 3.0
    assert torch.equal(out[1], probs[0] * scale[0])
    assert torch.equal(out[2], probs[0] * scale[1])


def test_factor_1_is_identity():
    prompts, probs = prompts_of("a big red cat sits"), probabilities(2)
    plain = apply(PromptToPrompt(ALWAYS), prompts, probs)
    assert torch.equal(apply(PromptToPrompt(ALWAYS, weights=(("cat", 1.0),)), prompts, probs), plain)


@pytest.mark.parametrize("factor", [-5.1, 10.5, float("nan")])
def test_factors_out_of_range_are_refused(factor):
    with pytest.raises(BoxwrightError, match="outside -5 to 10"):
        PromptToPrompt(weights=(("cat", factor),)).edits(prompts_of("a cat"))


def test_a_word_no_target_has_is_refused():
    with pytest.raises(PhraseNotFoundError, match='"blu" is not in any target prompt. The closest words are "blue"'):
        PromptToPrompt(weights=(("blu", 2.0),)).edits(prompts_of("a blue cat sits"))


# --- self-attention ---


def test_self_attention_is_the_sources():
    prompts, probs = prompts_of("a", "b"), probabilities(6)
    out = apply(PromptToPrompt(self_attention=ALWAYS), prompts, probs, kind="image_image")
    assert all(torch.equal(out[row], probs[row // 3 * 3]) for row in range(6))


def test_only_on_grids_up_to_the_limit():
    edit = edit_of(PromptToPrompt(self_side=16), prompts_of("a"), "image_image")
    lay = prompts_of("a").layout
    assert [edit.where(site(lay, grid)) for grid in ((8, 8), (16, 16), (8, 32), (16, 17), (64, 64))] == [
        True,
        True,
        True,
        False,
        False,
    ]


# --- local blend ---


def watched(blend, prompts, blocks):
    """The maps after (probs, site options) blocks, as the edit of local blend leaves them."""
    (edit,) = [edit for edit in PromptToPrompt(blend=blend).edits(prompts) if edit.stage == "read"]
    memo = {}
    for probs, options in blocks:
        edit.fn(probs, replace(site(prompts.layout, **options), memo=memo))
    return recorded_maps(memo)


def test_maps_are_sums_over_words_steps_and_layers_of_the_mean_over_heads():
    prompts = prompts_of("a blue cat sits")
    first, second = probabilities(4, 0), probabilities(4, 1)
    blend = LocalBlend(("red cat", "blue cat"), subtract=("sits",))
    maps = watched(blend, prompts, [(first, {}), (second[:, :, :8], {"queries": slice(0, 8)})])
    expected = first.mean(1)
    expected[:, :8] += second.mean(1)[:, :8]
    torch.testing.assert_close(maps[4, 4][0], expected[..., [2, 3]].sum(-1))
    torch.testing.assert_close(maps[4, 4][1], expected[..., 4])


def test_it_looks_at_one_level():
    (edit,) = [e for e in PromptToPrompt(blend=LocalBlend(("cat",))).edits(prompts_of("a cat")) if e.stage == "read"]
    lay = prompts_of("a cat").layout
    chosen = {
        levels: [level for level in range(levels) if edit.where(site(lay, level=level, levels=levels))]
        for levels in (1, 2, 3, 4)
    }
    assert chosen == {1: [0], 2: [1], 3: [1], 4: [2]}  # SD1.5: 16 x 16 of 64, 32, 16, 8; SDXL: the coarser


def test_masks_by_hand():
    """Two groups of source and target; 4 x 4 cells, latents of 8 x 8."""
    maps = torch.zeros(2, 4, 16)
    maps[0, 0, 0], maps[0, 1, 5], maps[0, 1, 6] = 10.0, 4.0, 1.0  # source: cell (0, 0); target: (1, 1), barely (1, 2)
    maps[0, 2, 15], maps[0, 3, 15] = 1.0, 1.0
    mask = blend_mask(LocalBlend(("x",), pooling=0), {(4, 4): maps}, (4, 4, 8, 8), 2)
    expected = torch.zeros(4, 1, 8, 8)
    expected[0, 0, :2, :2] = expected[1, 0, :2, :2] = expected[1, 0, 2:4, 2:4] = 1.0
    expected[2:, 0, 6:, 6:] = 1.0
    assert torch.equal(mask, expected)
    wide = blend_mask(LocalBlend(("x",), pooling=1), {(4, 4): maps}, (4, 4, 8, 8), 2)
    assert torch.equal(wide[0, 0], torch.nn.functional.pad(torch.ones(4, 4), (0, 4, 0, 4)))
    assert torch.equal(wide[1, 0], torch.nn.functional.pad(torch.ones(6, 6), (0, 2, 0, 2)))


def test_subtracted_words_are_taken_out_without_pooling():
    maps = torch.zeros(2, 2, 16)
    maps[0, :, :] = 1.0
    maps[1, 0, 5] = 1.0  # in the source only
    mask = blend_mask(LocalBlend(("x",), ("y",)), {(4, 4): maps}, (2, 4, 4, 4), 2)
    expected = torch.ones(2, 1, 4, 4)
    expected[:, :, 1, 1] = 0.0
    assert torch.equal(mask, expected)


def test_a_painted_mask_alone_and_with_words():
    painted = torch.zeros(16, 16)
    painted[:, :6] = 1.0
    alone = blend_mask(LocalBlend(mask=painted), None, (2, 4, 8, 8), 2)
    assert torch.equal(alone[0, 0, 0], torch.tensor([1.0, 1, 1, 0, 0, 0, 0, 0]))
    maps = torch.zeros(2, 2, 16)
    maps[0, :, :8] = 1.0
    both = blend_mask(LocalBlend(("x",), pooling=0, mask=painted), {(4, 4): maps}, (2, 4, 8, 8), 2)
    assert both.sum() == 2 * 4 * 3 and torch.equal(both, both * alone)


@pytest.mark.parametrize("threshold, cells", [(0.0, 16), (0.5, 8), (1.0, 0)])
def test_thresholds(threshold, cells):
    maps = torch.arange(1.0, 17.0).expand(2, 2, 16)
    blend = LocalBlend(("x",), threshold=threshold, pooling=0)
    assert blend_mask(blend, {(4, 4): maps}, (2, 4, 4, 4), 2)[0].sum() == cells


def test_blended_rows_are_exactly_one_or_the_other():
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = (torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    out = blended(latents, mask, 2)
    for row in range(4):
        source = latents[row // 2 * 2]
        assert torch.equal(out[row], torch.where(mask[row] > 0, latents[row], source))
    half = blended(latents, torch.full((4, 1, 8, 8), 0.5), 2)
    torch.testing.assert_close(half[1], (latents[0] + latents[1]) / 2)


def test_words_of_local_blend_are_looked_up():
    prompts = prompts_of("a blue dog sits")
    with pytest.raises(BoxwrightError, match='none of "cat" is in the target 1'):
        LocalBlend(("cat",)).columns(prompts)
    with pytest.raises(BoxwrightError, match="none of .* is in the source prompt"):
        LocalBlend(("dog",)).columns(prompts)
    with pytest.raises(PhraseNotFoundError, match='"bird" is not in any of the prompts'):
        LocalBlend(("cat", "dog"), ("bird",)).columns(prompts)
    columns = LocalBlend(("cat", "dog"), ("sits",)).columns(prompts)
    assert columns[0].nonzero().tolist() == [[0, 3], [1, 3]] and columns[1].nonzero().tolist() == [[0, 4], [1, 4]]
    with pytest.raises(BoxwrightError, match="neither words nor a mask"):
        LocalBlend()
    with pytest.raises(BoxwrightError, match="subtract"):
        LocalBlend(subtract=("sits",), mask=torch.ones(2, 2))
