"""Flow Edit as a graph calls it, on a tiny model and a VAE that only averages."""

import re
from dataclasses import replace

import comfy.sample
import pytest
import tiny_models
import torch
from pack.attention_patches.core.types import Box, BoxwrightError, Region
from pack.attention_patches.host.samplers.loops import schedule
from pack.nodes import flow_edit as module
from pack.nodes.flow_edit import BoxwrightFlowEdit, BoxwrightFlowEditSampler
from pack.nodes.parts.schema import guarded
from test_editing_nodes import VAE, image, prompt, silent

EDIT = dict(
    steps=3,
    cfg=3.0,
    scheduler="normal",
    strength=0.8,
    method="FlowEdit",
    source_cfg=1.5,
    averages=1,
    finish=0.0,
    find_mask="difference",
    draws=2,
    noise_level=0.5,
    threshold=0.5,
    dilate=1,
    seed=3,
    paste=True,
    feather=0,
)
METHODS = pytest.mark.parametrize("method", ["FlowEdit", "FlowAlign", "Uni-Edit"])


LEFT = Region("left", Box(0.0, 0.0, 0.5, 1.0))
LEFT_OFF = replace(LEFT, strength=0.0)


def right_mask():
    """1 in the right half of a picture of 64 x 96."""
    mask = torch.zeros(64, 96)
    mask[:, 48:] = 1.0
    return mask


@pytest.fixture(scope="module")
def model():
    return tiny_models.build("sd15")


def flow_edit(model, picture, mask=None, regions=None, source=1, target=4, **settings):
    result = BoxwrightFlowEdit.execute(
        model, VAE, picture, prompt(source), prompt(target), prompt(2), mask=mask, regions=regions, **EDIT | settings
    )
    return result.result


@METHODS
def test_every_pixel_outside_the_mask_is_kept_and_the_cost_is_said(model, method):
    picture = image(2, (70, 101))
    edited, mask, latent, report = flow_edit(model, picture, method=method)
    assert edited.shape == picture.shape and mask.shape == (2, 70, 101) and latent["samples"].shape == (2, 4, 8, 12)
    changed = (edited != picture).any(-1)
    assert 0 < mask.mean() < 1
    assert not bool((changed & (mask < 0.5)).any()) and changed[mask > 0.5].float().mean() > 0.9
    edit = {"FlowEdit": 3 * 4, "FlowAlign": 3 * 3, "Uni-Edit": 3 * 3 + 1}[method]
    assert f"{2 * (4 + edit)} model evaluations" in report and f"mask 8, edit {2 * edit}." in report


def test_an_erased_thing_is_reported(model, monkeypatch):
    picture, mask = torch.full((1, 64, 96, 3), 0.5), torch.zeros(64, 96)
    picture[:, 16:48, 24:56] = torch.tensor([0.9, 0.1, 0.1])
    mask[16:48, 24:56] = 1.0
    assert "Nothing seems" not in flow_edit(model, picture, mask=mask)[3]
    monkeypatch.setattr(type(VAE), "decode", lambda self, samples: torch.full((1, 64, 96, 3), 0.5))
    assert "Nothing seems to have been drawn in the mask: " in flow_edit(model, picture, mask=mask)[3]


def test_without_a_mask_everything_may_change(model):
    edited, mask, _, report = flow_edit(model, image(), find_mask="none")
    assert mask.min() == 1.0 and "mask covers 100.0 %" in report and "mask 0" not in report
    assert (edited != image()).any(-1).float().mean() > 0.99


def test_a_painted_mask_and_regions_go_before_the_difference(model):
    picture = image(1, (70, 101))
    mask = torch.zeros(70, 101)
    mask[3:67, 2:50] = 1.0  # whole cells of what the VAE sees
    edited, shown, _, report = flow_edit(model, picture, mask=mask)
    assert torch.equal(shown[0], mask) and "edit 12." in report and "mask" not in report.split(":")[1]
    changed = (edited != picture).any(-1)[0]
    assert not bool(changed[mask == 0].any()) and changed[mask == 1].float().mean() > 0.9
    square = image(2, (64, 96))
    boxes = (Region("a", Box(0.0, 0.0, 0.25, 0.5)), Region("b", Box(0.5, 0.5, 0.5, 0.5)))
    _, shown, _, _ = flow_edit(model, square, regions=boxes)
    expected = torch.zeros(64, 96)
    expected[:32, :24] = expected[32:, 48:] = 1.0
    assert torch.equal(shown, expected.expand(2, -1, -1))
    left = torch.zeros(64, 96)
    left[:, :48] = 1.0
    _, both, _, _ = flow_edit(model, square, regions=boxes, mask=left)
    assert torch.equal(both, (expected * left).expand(2, -1, -1))


def test_regions_bring_their_own_strength_and_feather(model):
    picture = image()
    half, off = replace(LEFT, strength=0.5), Region("off", Box(0.5, 0.0, 0.5, 1.0), 0.0)
    edited, shown, _, _ = flow_edit(model, picture, regions=(half, off))
    assert torch.equal(shown[0], 0.5 * (1.0 - right_mask()))
    whole = flow_edit(model, picture, regions=(LEFT, off))
    assert torch.equal(whole[1][0], 1.0 - right_mask())
    moved, far = ((each - picture).abs()[0, :, :48].mean() for each in (edited, whole[0]))
    assert 0.0 < float(moved) < 0.9 * float(far)
    assert torch.equal(edited[0, :, 48:], picture[0, :, 48:])
    soft = flow_edit(model, picture, regions=(replace(LEFT, feather=0.25),))[1][0, 0]
    assert bool((soft[:48] == 1.0).all()) and bool((soft[73:] == 0.0).all())
    assert float(soft[60]) == pytest.approx(11.5 / 24, abs=0.03)


def test_black_masks_among_others_are_named(model):
    masks = torch.stack([right_mask(), torch.zeros(64, 96), right_mask()])
    edited, _, _, report = flow_edit(model, image(3), mask=masks, find_mask="none")
    assert "Nothing changes in picture 2, where the mask is black." in report
    assert torch.equal(edited[1], image(3)[1]) and not torch.equal(edited[2], image(3)[2])
    assert "Nothing changes" not in flow_edit(model, image(), mask=right_mask())[3]
    sampler = BoxwrightFlowEditSampler.execute(prompt(1), "FlowEdit", 1.0, 1, 0.0, masks)
    assert sampler[1].endswith("Nothing changes in picture 2, where the mask is black.")
    with pytest.raises(BoxwrightError, match="mask is empty"):
        BoxwrightFlowEditSampler.execute(prompt(1), "FlowEdit", 1.0, 1, 0.0, torch.zeros(3, 8, 8))


def test_settings_that_a_method_leaves_unread_are_named(model):
    said = flow_edit(model, image(), method="Uni-Edit", averages=2, finish=0.5, find_mask="none")[3]
    assert said.endswith("Uni-Edit makes no use of source_cfg 1.5, averages 2, finish 0.5.")
    assert "no use" not in flow_edit(model, image(), method="Uni-Edit", source_cfg=1.0, find_mask="none")[3]
    report = BoxwrightFlowEditSampler.execute(prompt(1), "FlowAlign", 3.5, 2, 0.0)[1]
    assert report.endswith("FlowAlign makes no use of source_cfg 3.5.")


def test_fewer_steps_than_asked_for_are_said(model):
    settings = dict(steps=30, strength=0.012, scheduler="simple", find_mask="none", cfg=1.0, source_cfg=1.0)
    assert re.search(r"has \d+ noise levels .* instead of 30\.$", flow_edit(model, image(), **settings)[3])
    assert "noise levels" not in flow_edit(model, image(), find_mask="none")[3]


@METHODS
def test_the_node_is_the_sampler_in_a_graph(model, method):
    picture, mask = image(2), torch.zeros(64, 96)
    mask[:, 48:] = 1.0
    latent, sigmas = VAE.encode(picture), schedule(model, "normal", 3, 0.8)
    sampler, report = BoxwrightFlowEditSampler.execute(prompt(1), method, 1.5, 1, 0.0, mask, sigmas).result
    drawn = comfy.sample.sample_custom(
        model, torch.zeros_like(latent), 3.0, sampler, sigmas, prompt(4), prompt(2), latent, disable_pbar=True, seed=3
    )
    edited = flow_edit(model, picture, mask=mask, method=method)[2]["samples"]
    torch.testing.assert_close(drawn, edited, atol=1e-4, rtol=0)
    count = {"FlowEdit": 12, "FlowAlign": 9, "Uni-Edit": 10}[method]
    assert report.startswith(f"{method}: 3 steps take {count} model evaluations for each picture (")


def test_the_cost_of_typical_runs_is_named_without_a_schedule():
    report = BoxwrightFlowEditSampler.execute(prompt(1), "FlowEdit", 1.0, 2, 0.0)[1]
    assert "28 steps take 168 model evaluations for each picture (112 with cfg 1)" in report
    with pytest.raises(BoxwrightError, match="Sigma 2 of 3 is 1, after 0"):
        BoxwrightFlowEditSampler.execute(prompt(1), "FlowEdit", 1.0, 2, 0.0, sigmas=torch.tensor([0.0, 1.0, 2.0]))


def test_the_cost_is_shown_before_the_run(model, monkeypatch):
    lines = []
    monkeypatch.setattr(module, "progress_reporter", lambda node: lines.append)
    with pytest.raises(AssertionError, match="the model was called"):
        flow_edit(silent(model), image(2))
    assert lines == ["32 model evaluations (16 for each of 2 pictures) to do"]


@pytest.mark.parametrize("settings", [
    {"steps": 4}, {"cfg": 1.0}, {"scheduler": "karras"}, {"strength": 0.4}, {"method": "FlowAlign"},
    {"method": "Uni-Edit"}, {"source_cfg": 3.0}, {"averages": 2}, {"finish": 0.5}, {"find_mask": "none"},
    {"draws": 1}, {"noise_level": 0.2}, {"threshold": 0.3}, {"dilate": 0}, {"seed": 4}, {"paste": False},
    {"feather": 8},
], ids=str)  # fmt: skip
def test_every_setting_counts(model, settings):
    picture = image()
    assert not torch.equal(flow_edit(model, picture, **settings)[0], flow_edit(model, picture)[0])


def test_equal_prompts_without_a_mask_return_the_picture_of_the_vae(model):
    edited = flow_edit(model, image(), target=1, cfg=1.5, find_mask="none", paste=False)[0]
    torch.testing.assert_close(edited, VAE.decode(VAE.encode(image())), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "picture, inputs, words",
    [
        ((3, 64, 96), {"mask": torch.ones(2, 64, 96)}, r"mask has the shape \(2, 64, 96\) for 3 pictures; wire one"),
        ((3, 64, 96), {"mask": torch.full((64, 96), 3.0)}, "mask has values from 3 to 3"),
        ((1, 7, 96), {}, "image has 96 x 7 pixels.*cells of 8 x 8.*larger picture"),
        ((1, 64, 96), {"regions": ()}, "no regions to change.*unwire"),
        ((1, 64, 96), {"mask": torch.zeros(64, 96)}, "mask is empty: nothing in it is white"),
        ((1, 64, 96), {"regions": (LEFT_OFF,)}, "every region has strength 0.*unwire"),
        ((1, 64, 96), {"regions": (LEFT,), "mask": right_mask()}, "mask and regions have no part.*in common"),
        ((1, 64, 96), {"threshold": 1.0}, "threshold is 1: .*nothing would change"),
        ((1, 64, 96), {"method": "Uni-Edit", "cfg": 101.0}, "guidance of Uni-Edit is 101"),
        ((1, 64, 96), {"averages": 0}, "draws is 0"),
    ],
)
def test_it_refuses_before_the_model_is_called(model, picture, inputs, words):
    with pytest.raises(BoxwrightError, match=words):
        flow_edit(silent(model), image(picture[0], picture[1:]), **inputs)


@pytest.mark.parametrize("which", ["source", "target"])
def test_prompts_without_text_are_refused_before_the_model_is_called(model, which):
    prompts = {"source": prompt(1), "target": prompt(4), "negative": prompt(2)} | {which: []}
    with pytest.raises(BoxwrightError, match=f"{which} holds no text"):
        BoxwrightFlowEdit.execute(silent(model), VAE, image(), **prompts, **EDIT)


def test_equal_prompts_have_no_difference_to_find(model):
    with pytest.raises(BoxwrightError, match="no difference to make a mask of"):
        flow_edit(model, image(), target=1)


def test_what_is_wired_is_checked_by_the_schema(model):
    with pytest.raises(BoxwrightError, match="method is 'Flow'; choose one of FlowEdit, FlowAlign, Uni-Edit"):
        guarded(BoxwrightFlowEditSampler).execute(
            source=prompt(1), method="Flow", source_cfg=1.0, averages=1, finish=0.0
        )
