"""Prompt-to-Prompt in the host's samplers, on tiny models: identities, groups, samplers, batches, local blend."""

from dataclasses import replace
from math import ceil, prod

import comfy.sample
import comfy.samplers
import pytest
import tiny_models as tiny
import torch
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from guides import GUIDE
from pack.attention_patches.core.seam import AttentionEdit
from pack.attention_patches.core.token_alignment import token_alignment
from pack.attention_patches.core.types import BoxwrightError, Layout, StepWindow, TokenMap
from pack.attention_patches.host.attention.calls import MEMO
from pack.attention_patches.host.install import install
from pack.attention_patches.host.prompt_to_prompt import edited, paired_latent
from pack.attention_patches.host.samplers.same_noise import SameNoise
from pack.attention_patches.methods.prompt_to_prompt import LocalBlend, Prompts, PromptToPrompt, recorded_maps

every_family = pytest.mark.parametrize("family", tiny.SUPPORTED)
OFF = PromptToPrompt(cross=None, self_attention=None)
ALWAYS = PromptToPrompt(StepWindow(), StepWindow())
LEFT_HALF = torch.cat([torch.ones(16, 12), torch.zeros(16, 12)], dim=1)


def prompts_of(*seeds, words=None):
    """Prompts "w0 w1 ..." with other encodings; by `words`, other names for some: {target number: {word: name}}."""
    texts = [tiny.text(seed=seed) for seed in seeds]
    maps = [text.tokens for text in texts]
    for number, names in (words or {}).items():
        old = maps[number]
        renamed = " ".join(names.get(word, word) for word in old.text.split())
        assert len(renamed) == len(old.text)
        maps[number] = TokenMap(renamed, old.spans, old.roles)
    layout = Layout(texts[0], (), torch.zeros(0, 77, dtype=torch.bool), (), "pair")
    return Prompts(layout, tuple(maps[1:]), tuple(token_alignment(maps[0], m) for m in maps[1:])), texts


def conditioning(family, prompts, texts, **values):
    """All prompts as rows of one entry."""
    (row, extra), *others = [tiny.conditioning(family, text, seed=5 + n)[0] for n, text in enumerate(texts)]
    if "pooled_output" in extra:
        extra["pooled_output"] = torch.cat([extra["pooled_output"], *(e["pooled_output"] for _, e in others)])
    rows = torch.cat([row, *(other for other, _ in others)])
    return [[rows, {**extra, "boxwright_layout": prompts.layout.key, **values}]]


def same_twice(family):
    prompts, texts = prompts_of(1, 1)
    positive = conditioning(family, prompts, texts)
    if "pooled_output" in positive[0][1]:
        positive[0][1]["pooled_output"] = positive[0][1]["pooled_output"][:1].repeat(2, 1)
    return prompts, positive


def grouped(family, groups, count, seed=7):
    return tiny.latent(family, batch=groups, seed=seed).repeat_interleave(count, dim=0)


# --- identities ---


@every_family
@pytest.mark.parametrize("method", [OFF, ALWAYS, PromptToPrompt()], ids=["off", "always", "default"])
def test_the_same_prompt_twice_gives_the_same_picture_twice(models, family, method):
    prompts, positive = same_twice(family)
    out = tiny.run(family, edited(models[family], prompts, method), positive, noise=grouped(family, 1, 2), steps=3)
    assert torch.equal(out[0], out[1])


@every_family
def test_windows_of_no_length_give_independent_rows(models, family):
    prompts, texts = prompts_of(1, 3)
    positive, noise = conditioning(family, prompts, texts), grouped(family, 2, 2)
    plain = tiny.run(family, models[family], positive, noise=noise)
    assert torch.equal(tiny.run(family, edited(models[family], prompts, OFF), positive, noise=noise), plain)
    assert not torch.equal(plain[0], plain[1])


@every_family
def test_the_source_is_what_it_is_alone(models, family):
    prompts, texts = prompts_of(1, 3)
    noise = grouped(family, 1, 2)
    out = tiny.run(family, edited(models[family], prompts, ALWAYS), conditioning(family, prompts, texts), noise=noise)
    alone = tiny.run(family, models[family], tiny.conditioning(family, texts[0]), noise=noise[:1])
    torch.testing.assert_close(out[:1], alone, rtol=0, atol=3e-4 * float(alone.abs().max()))


@every_family
def test_factor_1_changes_nothing_and_another_changes_the_target_alone(models, family):
    prompts, texts = prompts_of(1, 1)
    positive, noise = conditioning(family, prompts, texts), grouped(family, 1, 2)

    def run(*weights):
        method = PromptToPrompt(StepWindow(), None, weights=weights)
        return tiny.run(family, edited(models[family], prompts, method), positive, noise=noise)

    plain = run()
    assert torch.equal(run(("w3", 1.0)), plain)
    more = run(("w3", 8.0))
    assert torch.equal(more[0], plain[0]) and not torch.equal(more[1], plain[1])


# --- what the attention becomes ---


@every_family
def test_targets_attend_as_the_source_where_words_are_shared(models, family):
    """Seen by an edit that runs after ours."""
    prompts, texts = prompts_of(1, 3, words={1: {"w4": "x4"}})
    refined = token_alignment(texts[0].tokens, prompts.targets[0], "refine")
    prompts = Prompts(prompts.layout, prompts.targets, (refined,))
    seen = []

    def note(probs, site):
        seen.append(probs)
        return probs

    patched = edited(models[family], prompts, PromptToPrompt(StepWindow(), None))
    patched = install(patched, prompts.layout, [AttentionEdit("note", "probs", note)])
    tiny.run(family, patched, conditioning(family, prompts, texts), noise=grouped(family, 2, 2), steps=1)
    assert seen
    for probs in seen:
        for source, target in ((0, 1), (2, 3)):
            same = (probs[source] == probs[target]).flatten(0, 1).all(0)
            assert same[torch.arange(77) != 5].all() and not same[5]  # w4 is column 5


@every_family
def test_self_attention_is_injected_up_to_the_limit(models, family):
    prompts, texts = prompts_of(1, 3)
    seen = {}

    def note(probs, site):
        seen.setdefault(site.grid, []).append(torch.equal(probs[0], probs[1]))
        return probs

    # The first layer has not seen a text yet: its rows are equal of themselves.
    one_grid = family not in tiny.UNETS
    side = ceil(prod(tiny.tokens(family)) ** 0.5) if one_grid else 7  # that, or the coarsest of several
    patched = edited(models[family], prompts, PromptToPrompt(None, StepWindow(), self_side=side))
    patched = install(patched, prompts.layout, [AttentionEdit("note", "probs", note, kind="image_image")])
    tiny.run(family, patched, conditioning(family, prompts, texts), noise=grouped(family, 1, 2), steps=1)
    small = {grid for grid in seen if grid[0] * grid[1] <= side**2}
    assert small and all(all(seen[grid]) for grid in small)
    assert all(not all(same) for grid, same in seen.items() if grid not in small)
    assert len(seen) > len(small) or one_grid


# --- samplers ---


@pytest.mark.parametrize("sampler", comfy.samplers.SAMPLER_NAMES)
def test_every_sampler_gives_equal_rows_for_equal_prompts(models, sampler):
    """Ancestral and SDE samplers draw noise for the whole batch: here it is the source's in every row of a group."""
    prompts, positive = same_twice("sd2")
    noise = tiny.latent("sd2", size=(8, 8)).repeat_interleave(2, dim=0)
    out = tiny.run("sd2", edited(models["sd2"], prompts, OFF), positive, noise=noise, steps=3, sampler=sampler)
    assert torch.isfinite(out).all() and torch.equal(out[0], out[1])


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_sde", "lcm"])
def test_the_source_draws_the_noise_it_always_draws(models, sampler):
    prompts, positive = same_twice("sd2")
    options = {"noise": grouped("sd2", 2, 2), "steps": 3, "sampler": sampler}
    out = tiny.run("sd2", edited(models["sd2"], prompts, OFF), positive, **options)
    plain = tiny.run("sd2", models["sd2"], positive, **options)
    assert torch.equal(out[::2], plain[::2]) and not torch.equal(out[0], out[2])


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m_sde", "lcm"])
def test_flow_models_too(models, sampler):
    prompts, positive = same_twice("flux")
    patched = edited(models["flux"], prompts, OFF)
    out = tiny.run("flux", patched, positive, noise=grouped("flux", 1, 2), sampler=sampler, steps=3)
    assert torch.equal(out[0], out[1])


def test_rows_that_come_with_other_noise_get_the_sources(models):
    prompts, positive = same_twice("sd15")
    patched = edited(models["sd15"], prompts, OFF)
    out = tiny.run("sd15", patched, positive, noise=tiny.latent("sd15", batch=4))
    assert torch.equal(out[0], out[1]) and torch.equal(out[2], out[3]) and not torch.equal(out[0], out[2])


def test_same_noise_touches_draws_of_the_latents_shape_only():
    plain = torch.Generator().manual_seed(0)
    expected = torch.randn(4, 3, 2, generator=plain), torch.randn(4, 3, generator=plain)
    generator = torch.Generator().manual_seed(0)
    with SameNoise((4, 3, 2), 2):
        wanted, other = torch.randn(4, 3, 2, generator=generator), torch.randn(4, 3, generator=generator)
        like, filled = torch.randn_like(wanted), torch.empty(4, 3, 2).normal_()
        kept = filled * 1.0
    assert torch.equal(wanted[::2], expected[0][::2]) and torch.equal(other, expected[1])
    for noise in (wanted, like, filled, kept):
        assert torch.equal(noise[0], noise[1]) and torch.equal(noise[2], noise[3])
        assert not torch.equal(noise[0], noise[2])
    assert not torch.equal(torch.randn(4, 3, 2)[0], torch.randn(4, 3, 2)[1])


# --- batches and conditioning ---


@every_family
def test_groups_do_not_see_each_other(models, family):
    prompts, texts = prompts_of(1, 3, 4)
    positive, noise = conditioning(family, prompts, texts), grouped(family, 2, 3)
    patched = edited(models[family], prompts, PromptToPrompt())
    both = tiny.run(family, patched, positive, noise=noise)
    for first in (0, 3):
        alone = tiny.run(family, patched, positive, noise=noise[first : first + 3])
        torch.testing.assert_close(both[first : first + 3], alone, rtol=0, atol=3e-4 * float(alone.abs().max()))


@every_family
@pytest.mark.parametrize("rows", [1, 3])
def test_a_batch_that_is_no_whole_group_is_refused_before_the_first_step(models, family, rows):
    prompts, texts = prompts_of(1, 3)
    patched = edited(models[family], prompts, PromptToPrompt())
    with pytest.raises(BoxwrightError, match=f"{rows} rows for 2 prompts.*Wire `latent`"):
        tiny.run(family, patched, conditioning(family, prompts, texts), noise=tiny.latent(family, batch=rows))


@every_family
def test_the_negative_rows_are_left_alone(models, family):
    prompts, texts = prompts_of(1, 3)
    positive, noise = conditioning(family, prompts, texts), grouped(family, 1, 2)

    def first_step(model):
        seen, model = [], model.clone()
        model.set_model_sampler_pre_cfg_function(lambda args: seen.append(args["conds_out"]) or args["conds_out"])
        tiny.run(family, model, positive, noise=noise, steps=1)
        return seen[0]

    plain, out = first_step(models[family]), first_step(edited(models[family], prompts, ALWAYS))
    assert torch.equal(plain[1], out[1]) and not torch.equal(plain[0][1], out[0][1])


def test_without_cfg_and_with_a_longer_negative(models):
    prompts, texts = prompts_of(1, 3)
    positive, noise = conditioning("sd15", prompts, texts), grouped("sd15", 1, 2)
    patched = edited(models["sd15"], prompts, PromptToPrompt())
    no_cfg = tiny.run("sd15", patched, positive, noise=noise, cfg=1.0)
    assert torch.isfinite(no_cfg).all()
    negative = tiny.conditioning("sd15", tiny.text(seed=2), seed=6)
    twice = [[torch.cat([negative[0][0]] * 2, dim=1), negative[0][1]]]  # repeated columns attend as the single ones
    short = tiny.run("sd15", patched, positive, negative, noise=noise)
    long = tiny.run("sd15", patched, positive, twice, noise=noise)
    torch.testing.assert_close(long, short, rtol=0, atol=3e-4 * float(short.abs().max()))


@every_family
def test_a_run_leaves_nothing_behind(models, family):
    prompts, texts = prompts_of(1, 3)
    positive, noise = conditioning(family, prompts, texts), grouped(family, 1, 2)
    model = models[family]
    before = repr(model.model_options), repr(model.wrappers)
    plain = tiny.run(family, model, positive, noise=noise)
    method = PromptToPrompt(blend=LocalBlend(("w3",), start=0.0))
    patched = edited(model, prompts, method)
    first = tiny.run(family, patched, positive, noise=noise)
    tiny.run(family, patched, positive, noise=grouped(family, 1, 2, seed=9))
    assert torch.equal(tiny.run(family, patched, positive, noise=noise), first)
    assert (repr(model.model_options), repr(model.wrappers)) == before
    assert torch.equal(tiny.run(family, model, positive, noise=noise), plain)


def test_part_of_a_schedule_and_latents_as_they_come(models):
    """Inverted latents are the sampler's start as they are (no noise added); an img2img run begins later."""
    prompts, positive = same_twice("sd15")
    start = grouped("sd15", 1, 2) * 14.6
    model = edited(models["sd15"], prompts, PromptToPrompt())
    arguments = (4, 4.0, "euler", "simple", positive, tiny.conditioning("sd15", tiny.text(seed=2), seed=6))
    options = {"disable_pbar": True, "seed": 1}
    out = comfy.sample.sample(model, torch.zeros_like(start), *arguments, start, disable_noise=True, **options)
    assert torch.equal(out[0], out[1]) and torch.isfinite(out).all()
    part = comfy.sample.sample(model, grouped("sd15", 1, 2, 8), *arguments, start, denoise=0.5, **options)
    assert torch.equal(part[0], part[1]) and not torch.equal(part, out)


# --- the latent helper ---


def test_paired_latents_get_the_same_noise_from_the_host():
    latent = {"samples": torch.rand(2, 4, 8, 8), "noise_mask": torch.rand(2, 1, 64, 64), "other": 1}
    paired = paired_latent(latent, 3)
    assert paired["samples"].shape[0] == 6 and paired["batch_index"] == [0, 0, 0, 1, 1, 1] and paired["other"] == 1
    for row in range(6):
        assert torch.equal(paired["samples"][row], latent["samples"][row // 3])
        assert torch.equal(paired["noise_mask"][row], latent["noise_mask"][row // 3])
    noise = comfy.sample.prepare_noise(paired["samples"], 5, paired["batch_index"])
    stock = comfy.sample.prepare_noise(latent["samples"], 5)
    assert all(torch.equal(noise[row], stock[row // 3]) for row in range(6))
    assert paired_latent({**latent, "batch_index": [4, 7]}, 2)["batch_index"] == [4, 4, 7, 7]
    assert "batch_index" not in latent
    with pytest.raises(BoxwrightError, match="5 dimensions"):
        paired_latent({"samples": torch.zeros(1, 4, 2, 8, 8)}, 2)


# --- local blend ---


def outside(out, row=1, source=0):
    """The right half of a row and of its source, which a mask of the left half leaves to the source."""
    return out[row, ..., 12:], out[source, ..., 12:]


LATE = ("euler", "dpmpp_2m", "dpmpp_2m_sde", "heun", "lcm", "ddim", "uni_pc", "euler_cfg_pp")
BLENDED = [("sd2", sampler, 0.6) for sampler in LATE] + [("sd2", "dpmpp_2m", 0.0), ("sd2", "uni_pc", 0.0)]


@pytest.mark.parametrize(
    "family, sampler, start", [("flux", "euler_ancestral", 0.6), ("sdxl", "euler_ancestral", 0.0), *BLENDED]
)
def test_outside_a_painted_mask_the_target_ends_as_the_source(models, family, sampler, start):
    prompts, texts = prompts_of(1, 3)
    method = PromptToPrompt(cross=None, self_attention=None, blend=LocalBlend(mask=LEFT_HALF, start=start))
    patched = edited(models[family], prompts, method)
    positive, noise = conditioning(family, prompts, texts), grouped(family, 2, 2)
    out = tiny.run(family, patched, positive, noise=noise, sampler=sampler, steps=4)
    for row in (1, 3):
        target, source = outside(out, row, row - 1)
        # UniPC ends a little before the noise does, so a trace of what was there before the blend is left.
        atol = 0.02 if sampler == "uni_pc" else 1e-5
        torch.testing.assert_close(target, source, rtol=0, atol=atol * float(source.abs().max()))
        assert not torch.allclose(out[row, ..., :12], out[row - 1, ..., :12])


def test_an_inpaint_mask_is_kept(models):
    prompts, texts = prompts_of(1, 3)
    blend = LocalBlend(mask=LEFT_HALF, start=0.0)
    patched = edited(models["sd15"], prompts, PromptToPrompt(blend=blend))
    positive, noise = conditioning("sd15", prompts, texts), grouped("sd15", 1, 2)
    top = torch.cat([torch.ones(1, 1, 8, 24), torch.zeros(1, 1, 8, 24)], dim=2)
    out = tiny.run("sd15", patched, positive, noise=noise, noise_mask=top, steps=3)
    target, source = outside(out)
    torch.testing.assert_close(target, source, rtol=0, atol=1e-5 * float(source.abs().max()))
    assert out[:, :, 8:].abs().max() < 1e-5  # the image under the inpaint mask, here empty
    assert not torch.allclose(out[1, :, :8, :12], out[0, :, :8, :12])


@every_family
def test_words_choose_where(models, family):
    """Everything above the threshold of 0 is the word's: as without local blend. Above 1 nothing is: the source."""
    prompts, texts = prompts_of(1, 3)
    positive, noise = conditioning(family, prompts, texts), grouped(family, 1, 2)

    def run(**settings):
        blend = LocalBlend(("w3",), start=0.0, **settings)
        method = PromptToPrompt(cross=None, self_attention=None, blend=blend)
        return tiny.run(family, edited(models[family], prompts, method), positive, noise=noise, steps=3)

    plain = tiny.run(family, models[family], positive, noise=noise, steps=3)
    assert torch.equal(run(threshold=0.0)[1], plain[1])
    nowhere = run(threshold=1.0)
    assert torch.equal(nowhere[1], nowhere[0]) and torch.equal(nowhere[0], plain[0])
    some = run(threshold=0.9, pooling=0)
    same = (some[1] == some[0]).all(0)
    assert 0 < same.float().mean() < 1
    # At a low threshold two words of a random model are both nearly everywhere.
    assert not torch.equal(run(threshold=0.3, pooling=0, subtract=("w5",)), run(threshold=0.3, pooling=0))


def test_before_its_start_nothing_is_blended(models):
    prompts, texts = prompts_of(1, 3)
    positive, noise = conditioning("sd15", prompts, texts), grouped("sd15", 1, 2)
    model = models["sd15"].clone()
    seen = []
    patched = edited(model, prompts, PromptToPrompt(None, None, blend=LocalBlend(mask=LEFT_HALF, start=0.5)))

    def note(args):
        seen.append(torch.equal(*outside(args["denoised"])))
        return args["denoised"]

    watching = patched.clone()

    def watch_after(executor, guider, sigmas, extra_args, *args, **kw):
        options = extra_args["model_options"]
        options["sampler_post_cfg_function"] = [*options.get("sampler_post_cfg_function", ()), note]
        return executor(guider, sigmas, extra_args, *args, **kw)

    watching.add_wrapper_with_key("sampler_sample", "watch", watch_after)
    tiny.run("sd15", watching, positive, noise=noise, steps=4)
    assert seen == [False, False, True, True]


# --- beside other nodes ---


def words_seen(model, prompts, positive, steps=1):
    """What local blend knows of its words at the end of a run: {grid: maps}."""
    method = PromptToPrompt(cross=None, self_attention=None, blend=LocalBlend(("w3",), start=0.99))
    patched, seen = edited(model, prompts, method), {}

    def note(executor, guider, sigmas, extra_args, *args, **kw):
        result = executor(guider, sigmas, extra_args, *args, **kw)
        seen.update(recorded_maps(extra_args["model_options"]["transformer_options"][MEMO]))
        return result

    patched.add_wrapper_with_key("sampler_sample", "note", note)
    tiny.run("sd15", patched, positive, noise=grouped("sd15", 1, 2), steps=steps)
    return seen


def test_the_maps_of_the_words_are_of_the_runs_own_prediction(models):
    prompts, texts = prompts_of(1, 3)
    positive = conditioning("sd15", prompts, texts)
    expected = words_seen(models["sd15"], prompts, positive)
    found = words_seen(PerturbedAttentionGuidance.execute(models["sd15"], 3.0).result[0], prompts, positive)
    assert expected.keys() == found.keys() != set()
    assert all(torch.equal(found[grid], expected[grid]) for grid in expected)


def test_steps_with_and_without_gradients_watch_the_words_alike(models):
    prompts, texts = prompts_of(1, 3)
    positive = conditioning("sd15", prompts, texts)
    still = replace(GUIDE, moves="prediction", step_size=lambda progress: 0.0, window=StepWindow(0.4, 1.0))
    expected = words_seen(models["sd15"], prompts, positive, steps=4)
    found = words_seen(install(models["sd15"], prompts.layout, [still]), prompts, positive, steps=4)
    for grid in expected:
        torch.testing.assert_close(found[grid], expected[grid], rtol=5e-3, atol=2e-3)


@pytest.mark.parametrize("row", [0, 1], ids=["source", "target"])
def test_the_text_of_one_prompt_is_refused_as_positive(models, row):
    prompts, texts = prompts_of(1, 3)
    patched = edited(models["sd15"], prompts, PromptToPrompt())
    with pytest.raises(BoxwrightError, match="Wire `positive` of the same Prompt to Prompt node"):
        tiny.run("sd15", patched, tiny.conditioning("sd15", texts[row]), noise=grouped("sd15", 1, 2))
