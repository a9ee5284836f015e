"""Beside couples of other packs, which multiply the rows of a prompt, and patches that add rows."""

from dataclasses import replace

import pytest
import tiny_models as tiny
import torch
from beside_others import BOUND, METHODS, apart, close, recording, run
from guides import GUIDE, gradients, relative
from pack.attention_patches.host.attention.calls import IncompatiblePatchError
from pack.attention_patches.host.install import install
from pack.attention_patches.methods.rectified_attention import PUBLISHED


def coupled(model, texts, weights, with_base=True, swap=False):
    """An attention couple as most packs write it: each prompt row's queries once for each text, results mixed."""
    model, count = model.clone(), len(texts) + with_base

    def rows_of_all(q, k, v, options):
        kinds = options["cond_or_uncond"]
        qs, ks = [], []
        for kind, queries, own in zip(kinds, q.chunk(len(kinds)), k.chunk(len(kinds)), strict=True):
            if kind == 1:
                qs, ks = [*qs, queries], [*ks, own]
                continue
            others = [text.to(own).repeat(len(queries), 1, 1) for text in texts]
            qs.append(queries.repeat(count, 1, 1))
            ks.append(torch.cat([own, *others] if with_base else others))
        ks = torch.cat(ks)
        return torch.cat(qs), ks, ks

    def mixed(out, options):
        kinds = options["cond_or_uncond"]
        size = len(out) // sum(1 if kind == 1 else count for kind in kinds)
        results = []
        for kind in kinds:
            mine, out = out.split([size * (1 if kind == 1 else count), len(out) - size * (1 if kind == 1 else count)])
            if kind != 1:
                share = torch.tensor(weights).view(count, 1, 1, 1)  # of this run: an inference tensor of theirs
                mine = (mine.unflatten(0, (count, size)) * share).sum(0)
            results.append(mine)
        return torch.cat(results[::-1] if swap else results)

    model.set_model_attn2_patch(rows_of_all)
    model.set_model_attn2_output_patch(mixed)
    return model


OTHER = tiny.text(seed=21).embedding


@pytest.mark.parametrize("batch", [1, 3])
@METHODS
def test_beside_a_couple_that_leaves_everything_to_the_prompt_nothing_changes(models, layout, method, batch):
    alone = run(install(models["sd15"], layout, method.edits(layout)), layout, batch=batch)
    model = coupled(models["sd15"], [OTHER, OTHER], [1.0, 0.0, 0.0])
    close(run(install(model, layout, method.edits(layout)), layout, batch=batch), alone)


@METHODS
def test_beside_a_couple_edits_act_where_the_prompt_is_read(models, layout, method):
    model = coupled(models["sd15"], [OTHER], [0.5, 0.5])
    edited = run(install(model, layout, method.edits(layout)), layout)
    apart(edited, run(model, layout))
    apart(edited, run(install(models["sd15"], layout, method.edits(layout)), layout))


@pytest.mark.parametrize("texts, weights", [([OTHER], [1.0, 0.0]), (None, [0.5, 0.5])], ids=["other", "twice ours"])
def test_readers_and_gradients_beside_a_couple(models, layout, texts, weights):
    model = coupled(models["sd15"], texts or [layout.prompt.embedding], weights)
    maps, plain = [], []
    run(install(model, layout, [recording(maps)]), layout)
    run(install(models["sd15"], layout, [recording(plain)]), layout)
    assert [layer for layer, _ in maps] == [layer for layer, _ in plain]
    for (_, seen), (_, expected) in zip(maps, plain, strict=True):
        torch.testing.assert_close(seen, expected, atol=1e-4, rtol=1e-3)
    (found,), (expected,) = gradients("sd15", model, layout), gradients("sd15", models["sd15"], layout)
    assert relative(found.values, expected.values) < 1e-3


@pytest.mark.parametrize("moves", ["latent", "prediction"])
@pytest.mark.parametrize("batch", [1, 3])
def test_guides_beside_a_couple(models, layout, moves, batch):
    model, edits = coupled(models["sd15"], [OTHER], [1.0, 0.0]), [replace(GUIDE, moves=moves)]
    alone = run(install(models["sd15"], layout, edits), layout, batch=batch)
    torch.testing.assert_close(run(install(model, layout, edits), layout, batch=batch), alone, rtol=0, atol=2e-3)


def test_a_couple_may_repeat_the_prompt(models, layout):
    """Packs repeat texts to a common length, as the host does."""
    model = models["sd15"].clone()

    def patch(n, context, value, options):
        return n, context.repeat(1, 2, 1), value.repeat(1, 2, 1)

    model.set_model_attn2_patch(patch)
    edits = PUBLISHED.edits(layout)
    close(run(install(model, layout, edits), layout), run(install(models["sd15"], layout, edits), layout))


def test_a_couple_without_the_prompt_is_refused_by_name(models, layout):
    model = coupled(models["sd15"], [OTHER, OTHER], [0.5, 0.5], with_base=False)
    with pytest.raises(IncompatiblePatchError, match="coupled.<locals>.rows_of_all"):
        run(install(model, layout, PUBLISHED.edits(layout)), layout)


@pytest.mark.parametrize("method", [PUBLISHED, BOUND], ids=["cross", "self"])
def test_a_couple_that_swaps_the_prompts_is_refused_by_name(models, layout, method):
    model = coupled(models["sd15"], [OTHER], [0.5, 0.5], swap=True)
    with pytest.raises(IncompatiblePatchError, match="coupled.<locals>.mixed.*change places"):
        run(install(model, layout, method.edits(layout)), layout)


def test_rows_that_a_patch_adds_to_the_model_are_refused(models, layout):
    model = models["sd15"].clone()

    def twice(apply_model, args):
        doubled = {
            name: torch.cat([value, value]) if isinstance(value, torch.Tensor) else value
            for name, value in args["c"].items()
        }
        x, t = args["input"], args["timestep"]
        return apply_model(torch.cat([x, x]), torch.cat([t, t]), **doubled)[: len(x)]

    model.set_model_unet_function_wrapper(twice)
    with pytest.raises(IncompatiblePatchError, match="4 rows for 2 prompts of 1"):
        run(install(model, layout, PUBLISHED.edits(layout)), layout)
