"""Region LoRAs that follow the subject, in the host: beside the plain ones, per picture, in whatever runs."""

from dataclasses import replace

import pytest
import tiny_loras as loras
import tiny_models as tiny
import torch
from pack.attention_patches.core.types import Box, BoxwrightError, StepWindow
from pack.attention_patches.host.install import install
from pack.attention_patches.host.layers.lora import lora_for
from pack.attention_patches.host.layers.streams import stream_of
from pack.attention_patches.methods.region_lora import RegionLora
from pack.attention_patches.methods.region_prompt import RegionPrompt
from pack.attention_patches.methods.subject_masks import SubjectMasks
from region_loras import EARLY, FAMILIES, run, with_loras

SUBJECT = RegionLora(masks="subject")
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def halves():
    return tiny.layout()


@pytest.fixture
def made(monkeypatch):
    """The masks that were made, [B, R, h, w] each."""
    kept, original = [], SubjectMasks._masks

    def keep(self, seen):
        masks, lines = original(self, seen)
        kept.append(masks.clone())
        return masks, lines

    monkeypatch.setattr(SubjectMasks, "_masks", keep)
    return kept


def forced(monkeypatch, *values):
    """All masks have this value; one for each picture."""
    column = torch.tensor(values)[:, None, None, None]
    monkeypatch.setattr(SubjectMasks, "_masks", lambda self, seen: (column.expand(-1, len(self.numbers), 8, 12), []))


def files(model, size=0.1, only=None):
    return [loras.tensors(model, seed=seed, size=size, only=only) for seed in (1, 2)]


def of_the_image(model):
    """Names of the layers whose tokens are of the image alone: words keep their LoRA whatever the masks say."""
    network = model.model.diffusion_model
    return [name for name in loras.layers(model) if stream_of(name, network) in ("image", "spread", "keys")]


def near(found, expected, off=1e-4):
    torch.testing.assert_close(found, expected, rtol=0, atol=off * float(expected.abs().max()))


@every_family
def test_full_masks_are_the_boxes_and_empty_ones_the_base_model(models, halves, monkeypatch, family):
    """Each picture with its own: in the second step, where the first one was read."""
    model, noise = models[family], tiny.latent(family, batch=2)
    forced(monkeypatch, 1.0, 0.0)
    own = files(model, 0.3, of_the_image(model))
    draw = lambda method: run(  # noqa: E731
        family, with_loras(model, halves, own, method), halves, noise=noise, steps=2
    )
    found, full, first = draw(SUBJECT), draw(RegionLora()), draw(RegionLora(window=StepWindow(0.0, 0.25)))
    near(found[0], full[0])
    near(found[1], first[1])
    assert (full - first).abs().amax(dim=(1, 2, 3)).min() > 1e-3 * first.abs().max()


@every_family
def test_reading_changes_nothing_and_a_second_run_is_the_same_to_the_last_bit(models, halves, made, family):
    model = models[family]
    plain, boxes = run(family, model, halves), with_loras(model, halves, files(model))
    patched = with_loras(model, halves, files(model), SUBJECT)
    near(run(family, patched, halves, **EARLY), run(family, boxes, halves, **EARLY), 1e-5)
    assert not made
    first = run(family, patched, halves, steps=3)
    assert len(made) == 1 and made[0].shape[:2] == (1, 2)
    assert torch.equal(run(family, patched, halves, steps=3), first)
    assert torch.equal(run(family, model, halves), plain)
    assert not torch.equal(run(family, boxes, halves, steps=3), first)


@pytest.mark.parametrize("family", ["sd15", "flux"])
@pytest.mark.parametrize("options", [
    {"cfg": 1.0}, {"size": (15, 23)}, {"sampler": "heun"}, {"sampler": "dpmpp_sde"}, {"start_step": 2},
    {"method": RegionLora(masks="subject", window=StepWindow(0.3, 1.0))},
], ids=["no cfg", "odd size", "two calls a step", "sde", "from a picture", "late"])  # fmt: skip
def test_whatever_runs_makes_the_masks_once_and_of_each_picture_apart(models, halves, made, family, options):
    options = {"steps": 4, **options}
    method, size = options.pop("method", SUBJECT), options.pop("size", (16, 24))
    noise = tiny.latent(family, batch=2, size=size)
    patched = with_loras(models[family], halves, files(models[family]), method)
    both = run(family, patched, halves, noise=noise, **options)
    assert len(made) == 1 and made[0].shape[:2] == (2, 2)
    assert 0.02 < made[0].mean() < 0.98 and not torch.allclose(made[0][0], made[0][1], atol=0.1)
    if options.get("sampler") == "dpmpp_sde":
        return  # its further noise is drawn for the batch
    alone = run(family, patched, halves, noise=noise[1:], **options)
    near(made[1][0], made[0][1], 1e-3)
    near(both[1:], alone, 3e-3)


def test_the_order_of_prompts_does_not_matter(models, halves, made):
    """The layout's prompt first or last in the batch of the model."""
    model = models["sd15"]
    patched = with_loras(model, halves, files(model, 0.3), SUBJECT)
    own = tiny.conditioning("sd15", halves.prompt, halves.key)
    other = tiny.conditioning("sd15", tiny.text(seed=2), seed=6)
    noise = tiny.latent("sd15", batch=2)
    draw = lambda positive, **more: tiny.run(  # noqa: E731
        "sd15", patched, positive, other, noise=noise, steps=3, **more
    )
    near(draw(own + other), draw(other + own), 2e-4)
    near(made[0], made[1], 1e-3)


def test_crops_of_other_places(models, halves, made):
    """The layout's prompt over the right half, another one over the left: what is not shown stays as drawn."""
    patched = with_loras(models["sd15"], halves, files(models["sd15"]), SUBJECT)
    own = tiny.conditioning("sd15", halves.prompt, halves.key, area=(16, 12, 0, 12), strength=1.0)
    other = tiny.conditioning("sd15", tiny.text(seed=2), seed=6, area=(16, 12, 0, 0), strength=1.0)
    found = tiny.run("sd15", patched, own + other, noise=tiny.latent("sd15", batch=2), steps=3)
    assert found.isfinite().all()
    (masks,) = made
    assert masks[:, 0].min() == 1.0 and masks[:, 1, :, masks.shape[-1] // 2 :].min() < 0.5


def test_chained_nodes_follow_their_own(models, halves, made):
    """One file in each of two nodes is both in one: read at once, from the same attention."""
    model = models["sd15"]
    placed = {number: (lora_for(model, file, "file"), 0.8) for number, file in enumerate(files(model))}
    chained = model
    for number, lora in placed.items():
        chained = install(chained, halves, SUBJECT.edits(halves, {number: lora}))
    noise = tiny.latent("sd15", batch=2)
    found = run("sd15", chained, halves, noise=noise, steps=3)
    assert len(made) == 2
    near(found, run("sd15", install(model, halves, SUBJECT.edits(halves, placed)), halves, noise=noise, steps=3), 1e-3)


@pytest.mark.parametrize("family", ["sd15", "flux", "sd3"])
@pytest.mark.parametrize("first", [True, False])
def test_with_texts_of_regions(models, halves, made, family, first):
    """Region Prompt gives the regions texts of their own; the prompt's words are still read."""
    couple = RegionPrompt().edits(halves)
    model = models[family] if first else install(models[family], halves, couple)
    patched = with_loras(model, halves, files(models[family]), SUBJECT)
    patched = install(patched, halves, couple) if first else patched
    assert run(family, patched, halves, steps=3).isfinite().all()
    (masks,) = made
    assert 0.02 < masks.mean() < 0.98


@pytest.mark.parametrize("only", [["in_layers", "out_layers", "op"], ["ff.", "attn1", "attn2.to"]])
def test_background_in_the_box_has_nothing_after_the_reading(models, monkeypatch, only):
    """Convolutions and attention, each on its own grid: the first step in all of the box, the second in its half."""
    model, whole = models["sd15"], tiny.layout(areas=(Box(0.0, 0.0, 1.0, 1.0),))
    mask = torch.zeros(1, 1, 16, 24)
    mask[..., :12] = 1.0
    monkeypatch.setattr(SubjectMasks, "_masks", lambda self, seen: (mask, []))
    file = loras.tensors(model, only=only)
    found = run("sd15", with_loras(model, whole, [file], SUBJECT), whole, steps=2)
    left = replace(tiny.layout(areas=(tiny.LEFT,)), key=whole.key)
    both = with_loras(model, whole, [file], RegionLora(window=StepWindow(0.0, 0.25)))
    both = with_loras(both, left, [file], RegionLora(window=StepWindow(0.25, 1.0)))
    near(found, run("sd15", both, whole, steps=2))


@pytest.mark.parametrize("family, only", [("sd3", ["context_block"]), ("flux", ["txt_attn", "txt_mlp"])])
def test_words_keep_the_lora_of_their_region(models, halves, made, family, only):
    """In models that read text and image together, in every row of a batch: of those layers nothing is taken back."""
    model, noise = models[family], tiny.latent(family, batch=2)
    own = files(model, 0.3, only)
    found, expected = (
        run(family, with_loras(model, halves, own, method), halves, noise=noise, steps=3)
        for method in (SUBJECT, RegionLora())
    )
    assert made[0].mean() < 0.98
    near(found, expected, 1e-5)
    assert not torch.allclose(found, run(family, model, halves, noise=noise, steps=3), rtol=0, atol=1e-3)


def test_a_batch_that_another_node_takes_apart_is_refused(models, halves):
    """Whose masks its parts would have, no one says."""
    patched, calls = with_loras(models["sd15"], halves, files(models["sd15"]), SUBJECT), []

    def parted(apply, args):
        x, t, c = args["input"], args["timestep"], args["c"]
        calls.append(x)
        if len(calls) == 1:
            return apply(x, t, **c)
        return torch.cat([apply(x[n::2], t[n::2], **{**c, "c_crossattn": c["c_crossattn"][n::2]}) for n in (0, 1)])

    patched.set_model_unet_function_wrapper(parted)
    with pytest.raises(BoxwrightError, match="The subjects of 2 pictures are known, and the model is run on 1"):
        run("sd15", patched, halves, noise=tiny.latent("sd15", batch=2), steps=3)
