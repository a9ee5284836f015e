"""The recorder in the host's samplers, on tiny models: it changes nothing and sees what the model attends to."""

from dataclasses import replace

import pytest
import tiny_models as tiny
import torch
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_sag import SelfAttentionGuidance
from guides import GUIDE
from pack.attention_patches.core.seam import AttentionEdit
from pack.attention_patches.core.types import BoxwrightError, StepWindow
from pack.attention_patches.host.install import install
from pack.attention_patches.host.recorder import recorded
from pack.attention_patches.host.samplers.h_space import edit_h_space
from pack.attention_patches.methods.recorder import Recording, Records
from pack.attention_patches.methods.reweight import Reweight
from pack.attention_patches.samplers.h_space import HSpace

every_family = pytest.mark.parametrize("family", tiny.SUPPORTED)


def recorder(model, layout, **settings):
    records = Records(layout.prompt.tokens, Recording(**{"resolutions": "all", **settings}))
    return recorded(model, layout, records), records


def everything(record, **where):
    words = sum(record.map_of(f"w{number}", **where) for number in range(10))
    return words + record.rest(**where)


MORE_SAMPLERS = [("sd2", sampler) for sampler in ("dpmpp_2m", "euler_ancestral", "uni_pc", "dpmpp_sde")]


@pytest.mark.parametrize("family, sampler", [*((family, "euler") for family in tiny.SUPPORTED), *MORE_SAMPLERS])
def test_the_picture_is_the_same_to_the_last_bit(models, layout, family, sampler):
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    noise = tiny.latent(family, batch=2)
    patched, records = recorder(models[family], layout)
    kw = {"noise": noise, "steps": 3, "sampler": sampler}
    assert torch.equal(tiny.run(family, patched, positive, **kw), tiny.run(family, models[family], positive, **kw))
    assert records.latest.moments and records.latest.rows == 2


@every_family
def test_it_sees_what_the_model_attends_to(models, layout, family):
    """The same numbers as an edit of the probabilities sees, which the contract tests of the seam vouch for."""
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    seen = {}

    def note(probs, site):
        seen.setdefault(site.grid, []).append(probs.mean(1)[..., 4])
        return probs

    tiny.run(family, install(models[family], layout, [AttentionEdit("note", "probs", note)]), positive, steps=1)
    patched, records = recorder(models[family], layout)
    tiny.run(family, patched, positive, steps=1)
    assert set(records.latest.grids) == set(seen)
    for grid, values in seen.items():
        expected = torch.stack(values).mean(0).unflatten(-1, grid)
        torch.testing.assert_close(records.latest.map_of("w3", grid=grid), expected, rtol=5e-3, atol=2e-4)


@every_family
def test_maps_sum_to_one_or_to_what_the_image_leaves_to_the_text(models, layout, family):
    patched, records = recorder(models[family], layout, moments=2)
    tiny.run(family, patched, tiny.conditioning(family, layout.prompt, layout.key), steps=4)
    assert records.latest.moments == (0, 1)
    for where in ({}, {"moment": 0}, {"grid": records.latest.grids[-1]}):
        total = everything(records.latest, **where)
        if family in tiny.JOINT:
            assert 0 < total.min() and total.max() < 0.99
        else:
            torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=5e-3)


@every_family
@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_stock_conditioning_of_the_same_text_is_recognised(models, layout, family, cfg):
    patched, records = recorder(models[family], layout)
    tiny.run(family, patched, tiny.conditioning(family, layout.prompt), cfg=cfg)
    assert records.latest.moments == (0,)


def test_a_longer_negative_changes_nothing_in_the_maps(models, layout):
    """The host repeats the prompt's columns beside it; the repeats count together."""
    positive = tiny.conditioning("sd15", layout.prompt, layout.key)
    patched, records = recorder(models["sd15"], layout)
    tiny.run("sd15", patched, positive, steps=1)
    alone = records.latest.map_of("w3")
    long = tiny.conditioning("sd15", tiny.text(154, seed=2), seed=6)
    tiny.run("sd15", patched, positive, long, steps=1)
    torch.testing.assert_close(records.latest.map_of("w3"), alone, rtol=5e-3, atol=2e-4)


@every_family
def test_every_run_starts_from_nothing(models, layout, family):
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    patched, records = recorder(models[family], layout)
    tiny.run(family, patched, positive, noise=tiny.latent(family, batch=2))
    tiny.run(family, patched, positive, noise=tiny.latent(family, seed=8))
    after_another = records.latest.map_of("w3")
    fresh, other = recorder(models[family], layout)
    tiny.run(family, fresh, positive, noise=tiny.latent(family, seed=8))
    assert torch.equal(other.latest.map_of("w3"), after_another)


@every_family
def test_it_records_what_other_methods_make_of_the_attention(models, layout, family):
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    bias = AttentionEdit("hide", "bias", lambda zeros, site: zeros.index_fill(-1, torch.tensor([4]), -1e4))
    patched, records = recorder(install(models[family], layout, [bias]), layout)
    tiny.run(family, patched, positive, steps=1)
    assert records.latest.map_of("w3").max() == 0 and records.latest.map_of("w2").max() > 0


@every_family
def test_beside_a_method_the_result_is_the_methods(models, layout, family):
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    method = install(models[family], layout, Reweight((("w1", 4.0),)).edits(layout))
    both, records = recorder(method, layout)
    assert torch.equal(tiny.run(family, both, positive), tiny.run(family, method, positive))
    assert records.latest.moments


@every_family
def test_outside_the_window_nothing_is_recorded(models, layout, family):
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    patched, records = recorder(models[family], layout, window=StepWindow(0.99, 1.0))
    tiny.run(family, patched, positive, steps=2, last_step=1)
    with pytest.raises(BoxwrightError, match="record is empty"):
        records.latest.map_of("w3")


def test_the_budget_is_checked_before_the_first_step(models, layout):
    calls = []
    model = models["sd15"].clone()
    model.set_model_sampler_pre_cfg_function(lambda args: calls.append(1) or args["conds_out"])
    patched, _ = recorder(model, layout, moments=4, budget=50_000)
    with pytest.raises(BoxwrightError, match="record needs .* MB and its budget is 0.0476837 MB: 1 pictures"):
        tiny.run("sd15", patched, tiny.conditioning("sd15", layout.prompt, layout.key), steps=4)
    assert not calls


def test_another_prompt_is_refused(models, layout):
    patched, _ = recorder(models["sd15"], layout)
    with pytest.raises(BoxwrightError, match="No positive conditioning of this run"):
        tiny.run("sd15", patched, tiny.conditioning("sd15", tiny.text(seed=9)))


def test_an_area_is_refused(models, layout):
    patched, _ = recorder(models["sd15"], layout)
    positive = tiny.conditioning("sd15", layout.prompt, layout.key, area=(8, 12, 4, 12), strength=1.0)
    with pytest.raises(BoxwrightError, match="area"):
        tiny.run("sd15", patched, positive, steps=1)


def test_a_half_precision_model_is_recorded_in_float32(layout):
    patched, records = recorder(tiny.build("sd15", dtype=torch.bfloat16), layout)
    tiny.run("sd15", patched, tiny.conditioning("sd15", layout.prompt, layout.key), steps=1)
    total = everything(records.latest)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=5e-3)


# --- beside nodes that run the model for themselves ---


def with_pag(model, layout):
    return PerturbedAttentionGuidance.execute(model, 3.0).result[0]


def with_sag(model, layout):
    return SelfAttentionGuidance.execute(model, 0.5, 2.0).result[0]


def with_h_space(model, layout):
    """From the recorded prompt itself, so that its text is in a pass of the edit's own too."""
    source, target = (tiny.conditioning("sd15", text) for text in (layout.prompt, tiny.text(seed=4)))
    return edit_h_space(model, source, target, HSpace(1.0, StepWindow()))


@pytest.mark.parametrize("other", [with_pag, with_sag, with_h_space])
@pytest.mark.parametrize("first", ["recorder", "other"])
def test_only_the_runs_own_prediction_counts(models, layout, other, first):
    """In the first step the model sees the same latent with and without the other node."""
    positive = tiny.conditioning("sd15", layout.prompt, layout.key)
    alone, expected = recorder(models["sd15"], layout)
    plain = tiny.run("sd15", alone, positive, steps=1)
    if first == "recorder":
        patched, records = recorder(models["sd15"], layout)
        patched = other(patched, layout)
    else:
        patched, records = recorder(other(models["sd15"], layout), layout)
    assert not torch.equal(tiny.run("sd15", patched, positive, steps=1), plain)
    for grid in expected.latest.grids:
        assert torch.equal(records.latest.map_of("w3", grid=grid), expected.latest.map_of("w3", grid=grid))


@pytest.mark.parametrize("sampler, calls", [("euler", 3), ("heun", 5)])
def test_every_prediction_of_the_run_counts(models, layout, sampler, calls):
    positive = tiny.conditioning("sd15", layout.prompt, layout.key)
    patched, records = recorder(with_pag(models["sd15"], layout), layout)
    tiny.run("sd15", patched, positive, steps=3, sampler=sampler)
    (layers,) = {weight for (_, grid), (_, weight) in records.latest._means.items() if grid == records.latest.grids[0]}
    one, first = recorder(models["sd15"], layout)
    tiny.run("sd15", one, positive, steps=1)
    (once,) = {weight for (_, grid), (_, weight) in first.latest._means.items() if grid == first.latest.grids[0]}
    assert layers == calls * once


def test_steps_with_and_without_gradients_are_recorded_alike(models, layout):
    """Box Constraint's fast preset, from the middle of the run on."""
    positive = tiny.conditioning("sd15", layout.prompt, layout.key)
    still = replace(GUIDE, moves="prediction", step_size=lambda progress: 0.0, window=StepWindow(0.4, 1.0))
    patched, records = recorder(install(models["sd15"], layout, [still]), layout)
    tiny.run("sd15", patched, positive, steps=4)
    alone, expected = recorder(models["sd15"], layout)
    tiny.run("sd15", alone, positive, steps=4)
    torch.testing.assert_close(records.latest.map_of("w3"), expected.latest.map_of("w3"), rtol=5e-3, atol=2e-4)
