"""What only some families promise beside the contract: frames, reference pictures, columns of their own, grids."""

import inspect
import re
from dataclasses import replace

import comfy.model_base
import comfy.samplers
import pytest
import tiny_models as tiny
import torch
from contract import rectified
from pack.attention_patches.core.types import BoxwrightError, EncodedText
from pack.attention_patches.host.attention.calls import IncompatiblePatchError
from pack.attention_patches.host.families import adapter_for
from pack.attention_patches.host.install import install


def masks_of(family, model, positive, **more):
    """The masks that the model's attention is given, as bool, where anything is hidden."""
    seen = []
    tiny.run(family, tiny.probe(model, seen), positive, steps=1, cfg=1.0, **more)
    masks = [args[4] < -1e3 for args, _, _ in seen if len(args) > 4 and args[4] is not None]
    return [mask[0, 0] for mask in masks if mask.any()]


def with_columns(layout, tokens, columns):
    """The layout for a model whose image tokens read these columns, and not those of the conditioning alone."""
    prompt = EncodedText(tokens, layout.prompt.embedding)
    return replace(layout, prompt=prompt, columns=columns)


def test_hidream_hides_a_word_wherever_its_blocks_read_it(models, layout):
    """Behind T5's columns stand those of the language model's last layer, and of the layer that is the block's own."""
    tokens, more = layout.prompt.tokens, tiny.text(20, words=9).tokens
    tokens = replace(tokens, spans=tokens.spans + 2 * more.spans, roles=tokens.roles + 2 * more.roles)
    columns = torch.cat([layout.columns, layout.columns[:, :20], layout.columns[:, :20]], dim=1)
    whole = with_columns(layout, tokens, columns)
    positive = tiny.conditioning("hidream", whole.prompt, whole.key)
    masks = masks_of("hidream", install(models["hidream"], whole, rectified(whole)), positive)
    assert len(masks) == 4 and all(mask.shape == (96 + 77 + 40,) * 2 for mask in masks)
    for mask in masks:
        assert torch.equal(mask.any(0).nonzero()[:, 0], 96 + columns.any(0).nonzero()[:, 0])
        assert not mask[96:].any()
    longer = tiny.conditioning("hidream", whole.prompt, whole.key)
    longer[0][0] = torch.cat([longer[0][0], tiny.text(seed=8).embedding], dim=1)
    with pytest.raises(BoxwrightError, match="154 text tokens, its layout 77.*reads more behind it"):
        tiny.run("hidream", install(models["hidream"], whole, rectified(whole)), longer, steps=1)


def test_anima_hides_the_columns_that_it_makes_of_the_words(models):
    """Its adapter turns a text of its language model into a column for each T5 token, 512 at least."""
    layout = tiny.layout(tiny.text(20))
    made = tiny.layout(tiny.text(512))
    whole = with_columns(layout, made.prompt.tokens, made.columns)
    ids = torch.arange(30, dtype=torch.int)
    extra = {"t5xxl_ids": ids, "t5xxl_weights": torch.ones(30)}
    positive = tiny.conditioning("anima", whole.prompt, whole.key, **extra)
    masks = masks_of("anima", install(models["anima"], whole, rectified(whole)), positive)
    assert len(masks) == 2 and all(mask.shape == (96, 512) for mask in masks)
    assert all(torch.equal(mask.any(0), made.columns.any(0)) for mask in masks)


@pytest.mark.parametrize(
    "more, before, behind",
    [
        ({}, 0, 0),
        ({"reference_latents": (16, 24)}, 96, 0),
        ({"time_dim_concat": (16, 24)}, 0, 96),
        ({"reference_latents": (16, 24), "context_latents": (8, 12)}, 96, 24),
    ],
)
def test_wan_finds_the_image_between_other_pictures(layout, monkeypatch, more, before, behind):
    """A reference picture stands in front of it as a frame, further pictures behind."""
    if "context_latents" in more and "context_latents" not in inspect.getsource(comfy.model_base.WAN21.extra_conds):
        behind = 0  # an older host, which leaves these out
    known = tiny.FAMILIES["wan"]
    with_reference = replace(known, settings={**known.settings, "in_dim_ref_conv": 16})
    monkeypatch.setitem(tiny.FAMILIES, "wan_reference", with_reference)
    model = tiny.build("wan_reference")
    pictures = {name: tiny.latent("wan", size=size, seed=17) for name, size in more.items()}
    pictures = {name: value if name == "time_dim_concat" else [value] for name, value in pictures.items()}
    positive = tiny.conditioning("wan_reference", layout.prompt, layout.key, **pictures)
    masks = masks_of("wan_reference", install(model, layout, rectified(layout)), positive)
    assert len(masks) == 2
    for mask in masks:
        assert mask.shape == (before + 96 + behind, 77)
        assert mask[before : before + 96].any() and not mask[:before].any() and not mask[before + 96 :].any()


@pytest.mark.parametrize("frames", [1, 3])
def test_wan_of_another_latent_is_the_same_family(layout, monkeypatch, frames):
    """Wan 2.2 5B: 48 channels, and a noise level for each frame."""
    known = tiny.FAMILIES["wan"]
    settings = {**known.settings, "in_dim": 48, "out_dim": 48}
    monkeypatch.setitem(tiny.FAMILIES, "wan22", replace(known, config="WAN22_T2V", settings=settings, channels=48))
    model, positive = tiny.build("wan22"), tiny.conditioning("wan22", layout.prompt, layout.key)
    assert adapter_for(model).name == adapter_for(tiny.build("wan")).name
    noise = torch.cat([tiny.latent("wan22", seed=seed) for seed in range(frames)], dim=2)
    keep_first = torch.ones(1, 1, frames, 16, 24)
    keep_first[:, :, :-1] = 0.0
    for more in ({}, {"noise_mask": keep_first}):
        masks = masks_of("wan22", install(model, layout, rectified(layout)), positive, noise=noise, **more)
        assert len(masks) == 2 and all(mask.shape == (96 * frames, 77) for mask in masks)


@pytest.mark.parametrize("with_picture", [True, False])
def test_wan_tells_the_text_from_a_picture_as_long(models, layout, with_picture):
    """Its image-to-video models read the picture's features first; without a picture they read the text there, too."""
    positive = tiny.conditioning("wan_i2v", layout.prompt, layout.key)
    if not with_picture:
        del positive[0][1]["clip_vision_output"]
    seen = []
    patched = install(tiny.probe(models["wan_i2v"], seen), layout, rectified(layout))
    tiny.run("wan_i2v", patched, positive, steps=1, cfg=1.0)
    masked = [len(args) > 4 and args[4] is not None for args, _, _ in seen]
    assert masked == [False, not with_picture, True] * 2
    assert [args[1].shape[1] for args, _, _ in seen] == [96, 77, 77] * 2


@pytest.mark.parametrize(
    "family, more",
    [
        ("hidream", {"concat_latent_image": (16, 24)}),
        ("hunyuan_video", {"ref_latent": (16, 24)}),
        ("ltxv", {"keyframe_idxs": (16, 24)}),
    ],
)
def test_pictures_among_the_images_tokens_are_refused(models, layout, family, more):
    pictures = {name: tiny.latent(family, size=size) for name, size in more.items()}
    positive = tiny.conditioning(family, layout.prompt, layout.key, **pictures)
    patched = install(models[family], layout, rectified(layout))
    with pytest.raises(IncompatiblePatchError, match=f"{re.escape(adapter_for(patched).name)} .*Remove the"):
        tiny.run(family, patched, positive, steps=1)
