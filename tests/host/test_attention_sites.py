"""Edits of self-attention and edits that only look (`kind`, "read" and `where` of AttentionEdit) in the real host."""

import pytest
import tiny_models as tiny
import torch
from comfy.ldm.modules import attention
from pack.attention_patches.core.seam import NEVER, AttentionEdit
from pack.attention_patches.host.attention.calls import IncompatiblePatchError
from pack.attention_patches.host.install import install

UNETS = ["sd15", "sdxl"]
FAMILIES = ["sd15", "sdxl", *tiny.JOINT]
every_family = pytest.mark.parametrize("family", FAMILIES)


def run(family, model, layout, **options):
    return tiny.run(family, model, tiny.conditioning(family, layout.prompt, layout.key), **{"steps": 1, **options})


def looking(seen, kind, stage="read", **options):
    def fn(values, site):
        seen.append((site, values.clone()))
        return values

    return AttentionEdit("look", stage, fn, kind=kind, **options)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=2e-4 * float(b.abs().max()))


@every_family
@pytest.mark.parametrize("kind", ["image_text", "image_image"])
def test_reading_changes_nothing_to_the_last_bit(models, layout, family, kind):
    seen = []
    noise = tiny.latent(family, batch=2)
    out = run(family, install(models[family], layout, [looking(seen, kind)]), layout, noise=noise, steps=2)
    assert torch.equal(out, run(family, models[family], layout, noise=noise, steps=2))
    assert {site.kind for site, _ in seen} == {kind}
    for site, probs in seen:
        keys = len(layout.prompt.tokens) if kind == "image_text" else site.grid[0] * site.grid[1]
        assert probs.shape[0] == 2 and probs.shape[3] == keys
        assert probs.shape[2] == site.queries.stop - site.queries.start
        if family not in tiny.JOINT:  # there the row also holds the other kind's keys
            torch.testing.assert_close(probs.sum(-1), torch.ones(probs.shape[:3]))


@pytest.mark.parametrize("family", UNETS)
@pytest.mark.parametrize("which, kind", [("attn1", "image_image"), ("attn2", "image_text")])
def test_what_is_read_is_the_softmax_of_the_layers_own_queries_and_keys(models, layout, family, which, kind):
    """Oracle: the calls as the host makes them, rows told apart by the order the host documents."""
    seen, calls = [], []
    model = tiny.probe(install(models[family], layout, [looking(seen, kind)]), calls)
    run(family, model, layout)
    wanted = [args for args, _, _ in calls if (args[1].shape[1] == len(layout.prompt.tokens)) == (which == "attn2")]
    assert len(wanted) == len(seen) > 1
    found = []
    for (q, k, _, heads, *_), (_, probs) in zip(wanted, seen, strict=True):
        q, k = (t.unflatten(-1, (heads, -1)).transpose(1, 2).double() for t in (q, k))
        expected = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1).float()
        rows = [torch.allclose(expected[row : row + 1], probs, atol=1e-5) for row in range(2)]
        assert any(rows)
        found.append(rows)
    # Before the first text both rows are the same; after it only one of them fits, and it is always the same one.
    assert [True, True] not in found[1:] and len({tuple(rows) for rows in found[1:]}) == 1


@every_family
def test_readers_see_score_edits_and_probability_edits_come_after(models, layout, family):
    seen = []

    def hide(scores, site):
        scores = scores.clone()
        scores[..., 3] += NEVER
        return scores

    def halve(probs, site):
        return probs * 0.5

    edits = [AttentionEdit("halve", "probs", halve), looking(seen, "image_text"), AttentionEdit("hide", "scores", hide)]
    run(family, install(models[family], layout, edits), layout)
    assert all(probs[..., 3].max() == 0 for _, probs in seen)
    if family not in tiny.JOINT:
        assert all(torch.allclose(probs.sum(-1), torch.ones(()), atol=1e-4) for _, probs in seen)


@pytest.mark.parametrize("length", [154, 231])
def test_a_prompt_repeated_beside_a_longer_one_is_read_as_the_sum(models, layout, length):
    """The host repeats 77 columns to match the negative; the probabilities over all of them sum to 1."""
    seen = []
    patched = install(models["sd15"], layout, [looking(seen, "image_text")])
    negative = tiny.conditioning("sd15", tiny.text(length, seed=2), seed=6)
    tiny.run("sd15", patched, tiny.conditioning("sd15", layout.prompt, layout.key), negative, steps=1)
    assert all(probs.shape[-1] == 77 for _, probs in seen)
    for _, probs in seen:
        torch.testing.assert_close(probs.sum(-1), torch.ones(probs.shape[:3]))


@every_family
@pytest.mark.parametrize("stage", ["bias", "scores", "probs"])
def test_a_self_attention_edit_that_changes_nothing_changes_nothing(models, layout, family, stage):
    met = []
    edit = AttentionEdit("nothing", stage, lambda values, site: met.append(site) or values, kind="image_image")
    noise = tiny.latent(family, batch=2)
    patched = install(models[family], layout, [edit])
    close(run(family, patched, layout, noise=noise), run(family, models[family], layout, noise=noise))
    assert met


@every_family
def test_a_self_attention_bias_equals_the_same_change_of_scores(models, layout, family, monkeypatch):
    from pack.attention_patches.host.attention import attend

    def halves(site):
        """Queries of the left half may not look at the right half."""
        left = torch.arange(site.grid[0] * site.grid[1]) % site.grid[1] < site.grid[1] // 2
        return torch.where(left[site.queries, None] & ~left, NEVER, 0.0)

    def by(stage):
        edit = AttentionEdit("halves", stage, lambda values, site: values + halves(site), kind="image_image")
        return run(family, install(models[family], layout, [edit]), layout)

    whole = by("bias")
    assert not torch.allclose(whole, run(family, models[family], layout), atol=1e-3)
    close(by("scores"), whole)
    monkeypatch.setattr(attend, "WORK_BYTES", 20_000)  # a few queries at a time
    close(by("bias"), whole)
    close(by("scores"), whole)


@every_family
def test_a_self_attention_edit_beside_another_packs_override(models, layout, family):
    edit = AttentionEdit(
        "near", "bias", lambda zeros, site: zeros + torch.arange(zeros.shape[-1]) * 0.05, kind="image_image"
    )
    alone = install(models[family], layout, [edit])
    edited = run(family, alone, layout)
    close(run(family, tiny.probe(alone, []), layout), edited)
    assert not torch.allclose(edited, run(family, models[family], layout), atol=1e-4)


@every_family
def test_unconditional_rows_and_the_other_kind_stay(models, layout, family):
    """A self-attention edit never meets text columns, and a text edit no image columns."""
    kinds = []
    edits = [looking(kinds, kind, stage) for kind in ("image_text", "image_image") for stage in ("scores", "probs")]
    run(family, install(models[family], layout, edits), layout)
    for site, values in kinds:
        keys = 77 if site.kind == "image_text" else site.grid[0] * site.grid[1]
        assert values.shape[0] == 1 and values.shape[-1] == keys


@every_family
def test_where_limits_an_edit_to_some_sites(models, layout, family):
    seen, calls = [], []
    chosen = min(tiny.FAMILIES[family].layers) if family in tiny.JOINT else "middle.0.0"
    edit = looking(seen, "image_text", "scores", where=lambda site: site.layer == chosen)
    run(family, tiny.probe(install(models[family], layout, [edit]), calls), layout)
    assert {site.layer for site, _ in seen} == {chosen}


@pytest.mark.parametrize("family", UNETS)
def test_an_attn1_replace_that_bypasses_the_host_is_refused_for_self_attention_edits_only(models, layout, family):
    model = models[family].clone()

    def bypass(q, k, v, extra_options):
        return attention.optimized_attention(q, k, 2.0 * v, extra_options["n_heads"])

    model.set_model_attn1_replace(bypass, "middle", 0)
    edit = AttentionEdit("shift", "bias", lambda zeros, site: zeros - 1.0, kind="image_image")
    with pytest.raises(IncompatiblePatchError, match="self-attention of middle.0.0.*attn1 replace"):
        run(family, install(model, layout, [edit]), layout)
    seen = []
    run(family, install(model, layout, [looking(seen, "image_text")]), layout)
    assert seen


@pytest.mark.parametrize("family", UNETS)
def test_merged_image_tokens_are_refused(models, layout, family):
    model = models[family].clone()
    model.set_model_attn1_patch(lambda n, context, value, options: (n, context[:, ::2], value[:, ::2]))
    with pytest.raises(IncompatiblePatchError, match="changed the self-attention"):
        run(family, install(model, layout, [looking([], "image_image")]), layout)


def image_prompt(q, k, v, extra_options):
    """As IPAdapter does: the text's attention by a call of its own, and something added."""
    return attention.optimized_attention(q, k, v, extra_options["n_heads"]) + 0.1


@pytest.mark.parametrize("family", UNETS)
def test_readers_hear_of_attention_that_another_pack_replaced(models, layout, family):
    model, seen, plain = models[family].clone(), [], []
    model.set_model_attn2_replace(image_prompt, "middle", 0)
    out = run(family, install(model, layout, [looking(seen, "image_text")]), layout)
    assert torch.equal(out, run(family, model, layout))
    run(family, install(models[family], layout, [looking(plain, "image_text")]), layout)
    assert [site.layer for site, _ in seen] == [site.layer for site, _ in plain]
    before = [site.layer for site, _ in plain].index("middle.0.0")
    for (_, heard), (_, expected) in zip(seen[: before + 1], plain[: before + 1], strict=True):
        close(heard, expected)
