"""The editing nodes as a graph calls them, on a tiny model and a VAE that only averages."""

import logging
import re

import pytest
import tiny_models
import torch
from pack.attention_patches.core.types import BoxwrightError
from pack.attention_patches.host.samplers.loops import schedule
from pack.nodes.blended_latents import BoxwrightBlendedLatents
from pack.nodes.diff_edit import BoxwrightDiffEdit, BoxwrightDiffEditSampler
from pack.nodes.diff_mask import BoxwrightDiffMask
from pack.nodes.ilvr import BoxwrightILVR
from pack.nodes.inversion import BoxwrightDirectInversionSampler, BoxwrightInvert
from pack.nodes.parts import editing
from pack.nodes.parts.schema import guarded
from pack.nodes.repaint import BoxwrightRePaint

MASK = dict(
    draws=2,
    noise_level=0.5,
    mode="paper",
    cfg=1.0,
    seed=3,
    clip=0.99,
    blur=0.5,
    method="fixed",
    threshold=0.5,
    close=2,
    dilate=0,
    keep_largest=False,
)
EDIT = dict(
    steps=3,
    cfg=3.0,
    scheduler="normal",
    strength=0.8,
    invert_with="negative",
    refinements=1,
    draws=2,
    noise_level=0.5,
    threshold=0.5,
    dilate=1,
    seed=3,
    paste=True,
    feather=0,
)


class Averaging:
    """A VAE of 8 x 8 means, which crops what is no whole cell, as the host's do."""

    def spacial_compression_encode(self):
        return 8

    def encode(self, pixels):
        assert pixels.shape[-1] == 3
        height, width = (side // 8 * 8 for side in pixels.shape[1:3])
        top, left = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
        inner = pixels[:, top : top + height, left : left + width].movedim(-1, 1)
        return torch.nn.functional.avg_pool2d(torch.cat([inner, inner[:, :1]], 1), 8)

    def decode(self, samples):
        return samples[:, :3].repeat_interleave(8, -1).repeat_interleave(8, -2).movedim(1, -1)


VAE = Averaging()


@pytest.fixture(scope="module")
def model():
    return tiny_models.build("sd15")


def prompt(seed):
    return tiny_models.conditioning("sd15", tiny_models.text(seed=seed), seed=seed)


def image(batch=1, size=(64, 96)):
    return torch.rand(batch, *size, 3, generator=torch.Generator().manual_seed(5))


def difference_mask(model, **inputs):
    return BoxwrightDiffMask.execute(model, prompt(1), prompt(4), **MASK | inputs).result


def diff_edit(model, picture, source=1, target=4, mask=None, **settings):
    result = BoxwrightDiffEdit.execute(
        model, VAE, picture, prompt(source), prompt(target), prompt(2), mask=mask, **EDIT | settings
    )
    return result.result


def test_latent_and_image_give_the_same_mask(model):
    picture = image(2)
    from_image = difference_mask(model, image=picture, vae=VAE)
    from_latent = difference_mask(model, latent={"samples": VAE.encode(picture)})
    for a, b in zip(from_image, from_latent):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    mask, heat, report = from_image
    assert mask.shape == (2, 64, 96) and heat.shape == (2, 64, 96, 3)
    assert 0 < mask.mean() < 1 and set(mask.unique().tolist()) == {0.0, 1.0}
    assert "8 model evaluations (4 for each of 2 pictures), 2 draws at a time" in report


def test_a_mask_has_the_size_of_a_picture_that_the_vae_crops(model):
    mask, heat, _ = difference_mask(model, image=image(1, (70, 101)), vae=VAE)
    assert mask.shape == (1, 70, 101) and heat.shape == (1, 70, 101, 3)
    assert mask[:, :3].sum() == mask[:, 67:].sum() == mask[:, :, :2].sum() == mask[:, :, 98:].sum() == 0
    cells = mask[:, 3:67, 2:98]
    assert torch.equal(torch.nn.functional.avg_pool2d(cells, 8).repeat_interleave(8, 1).repeat_interleave(8, 2), cells)


@pytest.mark.parametrize(
    "inputs, words",
    [
        ({}, "from nowhere"),
        ({"latent": {"samples": torch.ones(1, 4, 8, 8)}, "image": image()}, "not both"),
        ({"image": image()}, "wire the vae"),
    ],
)
def test_the_picture_comes_from_one_place(model, inputs, words):
    with pytest.raises(BoxwrightError, match=words):
        difference_mask(model, **inputs)


def test_diff_edit_keeps_every_pixel_outside_its_mask(model):
    picture = image(2, (70, 101))
    edited, mask, latent, report = diff_edit(model, picture)
    assert edited.shape == picture.shape and mask.shape == (2, 70, 101) and latent["samples"].shape == (2, 4, 8, 12)
    changed = (edited != picture).any(-1)
    assert not bool((changed & (mask < 0.5)).any()) and changed[mask > 0.5].float().mean() > 0.9
    rows = (2 * 2 * 2, 3 * 2 * 2, 3 * 2 * 2)
    assert f"{sum(rows)} model evaluations" in report
    assert "mask {}, inversion {}, edit {}".format(*rows) in report


def test_diff_edit_of_a_batch_is_single_edits(model):
    picture = image(4, (56, 88))
    gentle = dict(paste=False, strength=0.3, cfg=1.0)  # random weights magnify rounding with every step
    together = diff_edit(model, picture, **gentle)
    for row in range(4):
        alone = diff_edit(model, picture[row : row + 1], **gentle)
        assert torch.equal(alone[1][0], together[1][row])
        torch.testing.assert_close(alone[2]["samples"][0], together[2]["samples"][row], atol=2e-2, rtol=0)


@pytest.mark.parametrize("batch, which", [(1, ""), (3, " of picture 1, 3")])
def test_an_edit_that_only_erases_says_so(batch, which):
    before, mask = torch.full((batch, 70, 101, 3), 0.5), torch.zeros(batch, 64, 96)
    before[:, 23:43, 32:52] = torch.tensor([0.9, 0.1, 0.1])
    mask[:, 16:48, 24:56] = 1.0
    after = torch.full((batch, 64, 96, 3), 0.5)
    hint = f" Nothing seems to have been drawn in the mask{which}: "
    if batch > 1:
        after[1, 20:40, 30:50] = torch.tensor([0.1, 0.2, 0.9])
    assert editing.hint_of_nothing(before, after, mask).startswith(hint)
    assert editing.hint_of_nothing(before, before[:, 3:67, 2:98], mask) == ""


def test_diff_edit_and_its_kin_report_an_erased_thing(model, monkeypatch):
    """A VAE that decodes grey, whatever it is given: an edit that drew nothing."""
    picture, mask = torch.full((1, 64, 96, 3), 0.5), torch.zeros(64, 96)
    picture[:, 16:48, 24:56] = torch.tensor([0.9, 0.1, 0.1])
    mask[16:48, 24:56] = 1.0
    assert "Nothing seems" not in diff_edit(model, picture, mask=mask)[3]
    monkeypatch.setattr(Averaging, "decode", lambda self, samples: torch.full((1, 64, 96, 3), 0.5))
    assert "Nothing seems to have been drawn in the mask: " in diff_edit(model, picture, mask=mask)[3]


def test_ones_own_mask_takes_the_place_of_the_difference(model):
    picture = image(1, (70, 101))
    mask = torch.zeros(70, 101)
    mask[3:67, 2:50] = 1.0  # whole cells of what the VAE sees
    edited, shown, _, report = diff_edit(model, picture, mask=mask)
    assert torch.equal(shown[0], mask) and "mask" not in report.split(":")[1]
    changed = (edited != picture).any(-1)[0]
    assert not bool(changed[mask == 0].any()) and changed[mask == 1].float().mean() > 0.9
    everything = diff_edit(model, picture, mask=torch.ones(8, 8))
    assert (everything[0] != picture).any(-1)[0, 3:67, 2:98].float().mean() > 0.9


def never(*args, **kwargs):
    raise AssertionError("the model was called")


def silent(model):
    """The model, which must not be called."""
    asleep = model.clone()
    asleep.set_model_unet_function_wrapper(never)
    return asleep


@pytest.mark.parametrize(
    "picture, inputs, words",
    [
        ((3, 64, 96), {"mask": torch.ones(2, 64, 96)}, r"mask has the shape \(2, 64, 96\) for 3 pictures; wire one"),
        ((3, 64, 96), {"mask": torch.full((64, 96), 3.0)}, "mask has values from 3 to 3"),
        ((1, 7, 96), {}, "image has 96 x 7 pixels.*cells of 8 x 8.*larger picture"),
        ((1, 64, 5), {"mask": torch.ones(64, 5)}, "image has 5 x 64 pixels"),
        ((1, 64, 96), {"mask": torch.zeros(64, 96)}, "mask is empty: nothing in it is white"),
        ((1, 64, 96), {"threshold": 1.0}, "threshold is 1: .*nothing would change"),
    ],
)
def test_diff_edit_refuses_before_the_model_is_called(model, picture, inputs, words):
    with pytest.raises(BoxwrightError, match=words):
        diff_edit(silent(model), image(picture[0], picture[1:]), **inputs)


def test_a_picture_below_a_cell_and_one_of_no_numbers_have_no_difference_mask(model):
    with pytest.raises(BoxwrightError, match="image has 4 x 64 pixels"):
        difference_mask(silent(model), image=image(1, (64, 4)), vae=VAE)
    with pytest.raises(BoxwrightError, match="image holds NaN"):
        difference_mask(silent(model), image=image() * float("nan"), vae=VAE)


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_pictures_and_pictures_with_alpha_are_edited_in_colour(model, channels):
    picture = image()
    given = picture[..., :1] if channels == 1 else torch.cat([picture, torch.rand(1, 64, 96, 1)], -1)
    colour = given[..., :3].expand(-1, -1, -1, 3)
    found = guarded(BoxwrightDiffEdit).execute(
        model=model, vae=VAE, image=given, source=prompt(1), target=prompt(4), negative=prompt(2), **EDIT
    )
    assert torch.equal(found[0], diff_edit(model, colour)[0])
    mask, expected = (difference_mask(model, image=pixels, vae=VAE)[0] for pixels in (given, colour))
    assert torch.equal(mask, expected)


def test_more_steps_than_noise_levels_are_said(model):
    report = diff_edit(model, image(), steps=30, scheduler="simple", strength=0.012, refinements=0, cfg=1.0)[3]
    assert re.search(r"The model has (\d+) noise levels for these settings, .* instead of 30\.$", report)
    assert "instead" not in diff_edit(model, image())[3]


@pytest.mark.parametrize("settings", [
    {"steps": 4}, {"cfg": 1.0}, {"scheduler": "karras"}, {"strength": 0.4}, {"invert_with": "source"},
    {"refinements": 0}, {"draws": 1}, {"noise_level": 0.2}, {"threshold": 0.3}, {"dilate": 0}, {"seed": 4},
    {"paste": False}, {"feather": 8},
], ids=str)  # fmt: skip
def test_every_setting_of_diff_edit_counts(model, settings):
    picture = image()
    assert not torch.equal(diff_edit(model, picture, **settings)[0], diff_edit(model, picture)[0])


def test_invert_feeds_the_samplers(model):
    latent = {"samples": VAE.encode(image(2))}
    sigmas = schedule(model, "normal", 3, 0.6)
    trajectory, noise, report = BoxwrightInvert.execute(
        model, prompt(1), latent, sigmas, cfg=1.0, refinements=2, storage="memory", check=True
    ).result
    assert report.startswith("18 model evaluations (9 for each of 2 pictures), 6 more to check. Drawn again, ")
    assert noise.generate_noise(latent).shape == latent["samples"].shape
    for node in (
        BoxwrightDiffEditSampler.execute(trajectory, torch.ones(8, 8)),
        BoxwrightDirectInversionSampler.execute(trajectory),
    ):
        assert callable(node[0].sample)
    assert report.endswith(" % (RMS; % = of the latent's own standard deviation).")
    with pytest.raises(BoxwrightError, match="shape .3, 8, 8. for 2 pictures"):
        BoxwrightDiffEditSampler.execute(trajectory, torch.ones(3, 8, 8))


def test_invert_says_that_a_latent_is_flat_instead_of_a_share_of_nothing(model):
    flat = {"samples": torch.full((1, 4, 8, 8), 0.5)}
    sigmas = schedule(model, "normal", 2, 0.3)
    report = BoxwrightInvert.execute(model, prompt(1), flat, sigmas, 1.0, 0, "memory", True)[2]
    assert "(flat) (RMS; flat = its values are all alike" in report and "%" not in report


def test_direct_inversion_redraws_the_picture_beside_its_edit(model, caplog):
    import comfy.sample

    latent = VAE.encode(image())
    sigmas = schedule(model, "normal", 3, 0.8)
    trajectory = BoxwrightInvert.execute(
        model, prompt(1), {"samples": latent}, sigmas, cfg=1.0, refinements=0, storage="memory", check=False
    )[0]
    pair = latent.repeat(2, 1, 1, 1)
    both = [[torch.cat([prompt(1)[0][0], prompt(4)[0][0]]), {}]]  # source and target, as Prompt to Prompt has them

    def draw(sampler):
        return comfy.sample.sample_custom(
            model, torch.zeros_like(pair), 3.0, sampler, sigmas, both, prompt(2), pair, disable_pbar=True, seed=1
        )

    with caplog.at_level(logging.INFO):
        redrawn = draw(BoxwrightDirectInversionSampler.execute(trajectory)[0])
    assert "Direct Inversion: 3 steps, 12 model evaluations" in caplog.text
    torch.testing.assert_close(redrawn[0], latent[0], atol=1e-4, rtol=0)
    assert (redrawn[1] - latent[0]).abs().mean() > 0.05
    target = BoxwrightDiffEditSampler.execute(trajectory, torch.ones(8, 8))[0]
    whole = comfy.sample.sample_custom(
        model, torch.zeros_like(latent), 3.0, target, sigmas, prompt(4), prompt(2), latent, disable_pbar=True, seed=1
    )
    torch.testing.assert_close(redrawn[1:], whole, atol=1e-2, rtol=0)


def test_the_cost_of_repaint_is_shown_before_it_runs():
    assert "250 steps take 2410 model evaluations" in BoxwrightRePaint.execute(10, 10)[1]
    sigmas = torch.linspace(1, 0, 21)
    assert BoxwrightRePaint.execute(5, 5, sigmas=sigmas)[1].startswith("20 steps take 80 model")
    black = torch.stack([torch.ones(8, 8), torch.zeros(8, 8)])
    assert BoxwrightRePaint.execute(5, 5, black, sigmas)[1].endswith(
        " Nothing changes in picture 2, where the mask is black."
    )
    assert BoxwrightRePaint.execute(5, 5, sigmas=sigmas.repeat_interleave(2))[1].startswith("20 steps take 80 model")
    with pytest.raises(BoxwrightError, match="Sigma 2 of 21 is 0.05, after 0"):
        BoxwrightRePaint.execute(5, 5, sigmas=sigmas.flip(0))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: BoxwrightRePaint.execute(0, 1), "jump length"),
        (lambda: BoxwrightBlendedLatents.execute(65, 0.5), "grow by 65"),
        (lambda: BoxwrightILVR.execute(0, 0.0, 1.0), "factor is 0"),
        (lambda: BoxwrightRePaint.execute(1, 1, torch.zeros(8, 8)), "mask is empty"),
        (lambda: BoxwrightBlendedLatents.execute(0, 0.5, torch.zeros(2, 8, 8)), "mask is empty"),
        (lambda: BoxwrightILVR.execute(4, 0.8, 0.2), "window 0.8 to 0.2 is empty"),
    ],
)
def test_bad_settings_are_refused_before_sampling(make, words):
    with pytest.raises(BoxwrightError, match=words):
        make()


def test_frames_go_around_and_come_off_again():
    maps = torch.rand(2, 8, 16)
    framed = editing.framed(maps, 11, 21)
    assert framed.shape == (2, 11, 21) and framed.sum() == pytest.approx(float(maps.sum()), rel=1e-5)
    assert torch.equal(editing.unframed(framed, (11, 21), 8, 16), maps)
    assert torch.equal(editing.unframed(framed, (12, 21), 8, 16), framed)
    assert editing.framed(maps, 4, 8).shape == (2, 4, 8)
