"""CLIP losses on pairs of the host's own classes, small and random: the code path is that of real pairs."""

import json
import types

import comfy.clip_vision
import comfy.sd
import pytest
import tiny_models as tiny
import torch
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer
from comfy.sdxl_clip import SDXLClipModel, SDXLTokenizer
from pack.attention_patches.core.pictures import PictureGuide
from pack.attention_patches.core.types import BoxwrightError
from pack.attention_patches.host.clip_losses import VisionEncoder, direction_loss, picture_loss, text_loss
from pack.attention_patches.host.guidance.decoders import latent_colors
from pack.attention_patches.host.loss_guidance import guide_by_pictures
from pack.attention_patches.samplers.clip_loss import Crops
from pack.nodes.clip_loss import BoxwrightClipLoss
from pack.nodes.parts.schema import guarded

CROPS = Crops(3, 5)


def randomised(module, gain):
    generator = torch.Generator().manual_seed(3)
    for name, parameter in module.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.data.copy_(values * gain / parameter[0].numel() ** 0.5)
        else:
            parameter.data.copy_(1.0 + 0.1 * values if "norm" in name and name.endswith("weight") else 0.1 * values)


def vision_of(folder, width=24, model_type="clip_vision_model"):
    """A CLIP_VISION as the host's loader makes one, of 32 x 32 pixels."""
    config = dict(
        hidden_act="quick_gelu",
        hidden_size=32,
        image_size=32,
        intermediate_size=64,
        model_type=model_type,
        num_attention_heads=4,
        num_channels=3,
        num_hidden_layers=3,
        patch_size=8,
        projection_dim=width,
    )
    path = folder / f"vision_{width}_{model_type}.json"
    path.write_text(json.dumps(config))
    vision = comfy.clip_vision.ClipVisionModel(str(path))
    randomised(vision.model, 1.5)
    return vision


def clip_of(encoder=SD1ClipModel, tokenizer=SD1Tokenizer, width=24):
    """A CLIP as the host's loader makes one, with text encoders as wide as their projections."""
    target = types.SimpleNamespace(params={}, clip=encoder, tokenizer=tokenizer)
    sizes = dict(num_hidden_layers=3, num_attention_heads=4, intermediate_size=48)
    clip = comfy.sd.CLIP(
        target,
        model_options={
            "clip_l_model_config": {**sizes, "hidden_size": width},
            "clip_g_model_config": {**sizes, "hidden_size": 2 * width},
        },
    )
    randomised(clip.cond_stage_model, 1.5)
    return clip


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    return vision_of(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip():
    return clip_of()


def picture(size=(40, 56), batch=1, seed=2):
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


# --- the features are the host's ---


def test_features_of_pictures_are_those_of_the_hosts_own_node(vision):
    shown = (picture((32, 32)) * 255).round() / 255
    ours = VisionEncoder(vision)(shown)
    torch.testing.assert_close(ours, vision.encode_image(shown.movedim(1, -1))["image_embeds"], rtol=1e-4, atol=1e-5)


def test_features_of_texts_are_the_hosts_projected_pooled_ones(vision, clip):
    loss = text_loss(vision, clip, "a red cat", CROPS)
    encoder = clip.cond_stage_model.clip_l
    encoder.set_clip_options({"projected_pooled": True})
    pooled = encoder.encode_token_weights(clip.tokenize("a red cat")["l"])[1]
    encoder.reset_clip_options()
    torch.testing.assert_close(loss.target, torch.nn.functional.normalize(pooled.float(), dim=-1), rtol=1e-4, atol=1e-5)


def test_of_two_text_encoders_the_one_that_fits_is_read(tmp_path):
    clip = clip_of(SDXLClipModel, SDXLTokenizer)
    for width, name in ((24, "clip_l"), (48, "clip_g")):
        loss = text_loss(vision_of(tmp_path, width), clip, "a red cat", CROPS)
        encoder = getattr(clip.cond_stage_model, name)
        encoder.set_clip_options({"projected_pooled": True})
        pooled = encoder.encode_token_weights(clip.tokenize("a red cat")[name[-1]])[1]
        wanted = torch.nn.functional.normalize(pooled.float(), dim=-1)
        torch.testing.assert_close(loss.target, wanted, rtol=1e-4, atol=1e-5)


# --- the losses and their gradients ---


def losses(vision, clip):
    return {
        "text": text_loss(vision, clip, "a red cat", CROPS),
        "image": picture_loss(vision, picture(seed=9), CROPS),
        "direction": direction_loss(vision, clip, "a dog", "a red cat", picture(seed=9), CROPS),
    }


@pytest.mark.parametrize("kind", ["text", "image", "direction"])
def test_the_gradient_is_that_of_central_differences(vision, clip, kind):
    loss = losses(vision, clip)[kind]
    with torch.inference_mode(False), torch.enable_grad():
        seen = picture(batch=2).clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(seen).sum(), seen)
    for seed in range(3):
        way = torch.randn(seen.shape, generator=torch.Generator().manual_seed(seed))
        h = 2e-3
        ahead, behind = (float(loss(seen.detach() + step * way).sum()) for step in (h, -h))
        assert float((gradient * way).sum()) == pytest.approx((ahead - behind) / (2 * h), rel=0.03, abs=2e-4)


def test_a_loss_is_a_function_of_the_picture_alone(vision, clip):
    for loss in losses(vision, clip).values():
        together = loss(picture(batch=2))
        assert torch.equal(together, loss(picture(batch=2)))
        torch.testing.assert_close(loss(picture(batch=2)[1:]), together[1:])
        assert together.shape == (2,)


def test_the_same_picture_is_no_distance_away(vision):
    whole = Crops(1)
    assert float(picture_loss(vision, picture(), whole)(picture())) == pytest.approx(0.0, abs=1e-5)


def test_the_direction_of_nothing_changed_is_no_direction_and_of_the_way_itself_all(vision, clip):
    loss = direction_loss(vision, clip, "a dog", "a red cat", picture(), CROPS)
    assert float(loss(picture())) == pytest.approx(1.0, abs=1e-4)


def test_crops_are_squares_inside_the_picture():
    """A picture of its own coordinates: every crop holds what lies on a turned square of it."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 60), torch.linspace(0, 1, 90), indexing="ij")
    seen = Crops(9, 1).of(torch.stack([y * 60, x * 90, 0 * x])[None], 16)
    assert seen.shape == (9, 3, 16, 16)
    for crop in seen[1:, :2]:
        down, across = crop[:, -1, 8] - crop[:, 0, 8], crop[:, 8, -1] - crop[:, 8, 0]
        sides = down.norm(), across.norm()
        assert float(sides[0]) == pytest.approx(float(sides[1]), rel=0.12)
        assert 0.5 * 60 < float(sides[0]) < 61
    assert not torch.equal(Crops(9, 1).of(picture(), 16), Crops(9, 2).of(picture(), 16))
    whole = torch.nn.functional.interpolate(
        torch.stack([y * 60, x * 90, 0 * x])[None], size=(16, 16), mode="bicubic", antialias=True
    )
    torch.testing.assert_close(seen[:1], whole, rtol=0, atol=0.2)  # in pixels of 60 x 90; shrunk in two steps


@pytest.mark.parametrize("kind", ["text", "image", "direction"])
@pytest.mark.parametrize("through", ["direct", "through model"])
def test_guided_pictures_have_less_of_the_loss(vision, clip, kind, through):
    model, loss = tiny.build("sd15"), losses(vision, clip)[kind]
    guided = guide_by_pictures(model, PictureGuide(loss, strength=20.0, through=through))
    found = []
    for each in (model, guided):
        noise = tiny.latent("sd15")
        drawn = tiny.run("sd15", each, tiny.conditioning("sd15", tiny.text()), steps=4, noise=noise, cfg=1.0)
        found.append(float(loss(latent_colors(model.model, drawn))))
    assert found[1] < found[0] - 0.02, found
    assert [each.model for each in guided.get_nested_additional_models()] == [vision.model]


# --- what is refused ---


def execute(vision, clip=None, **inputs):
    good = dict(mode="text", text="a red cat", crops=2, seed=0, weight=1.0)
    return guarded(BoxwrightClipLoss).execute(clip_vision=vision, clip=clip, **{**good, **inputs}).result[0]


def test_the_node_makes_each_kind(vision, clip):
    image = picture().movedim(1, -1)
    for mode, inputs in (
        ("text", {}),
        ("image", {"image": image}),
        ("direction", {"image": image, "source_text": "a dog"}),
    ):
        loss = execute(vision, clip, mode=mode, weight=0.5, **inputs)
        assert loss.models == (vision.patcher,) and loss(picture()).shape == (1,)


@pytest.mark.parametrize(
    "inputs, words",
    [
        ({"text": " "}, "text for CLIP is empty"),
        ({"text": "cat " * 90}, "more than the 75 tokens"),
        ({"clip": None}, "wire the clip"),
        ({"mode": "image"}, "there are 0. Wire one"),
        ({"mode": "image", "image": torch.rand(2, 8, 8, 3)}, "there are 2"),
        ({"mode": "direction", "image": torch.rand(1, 8, 8, 3), "source_text": "a red cat"}, "no direction"),
        ({"crops": 0}, "crops is 0"),
    ],
)
def test_bad_input_is_named(vision, clip, inputs, words):
    with pytest.raises(BoxwrightError, match=words):
        execute(vision, **{"clip": clip, **inputs})


def test_a_pair_of_different_widths_is_refused_by_its_widths(tmp_path, clip):
    with pytest.raises(BoxwrightError, match=r"features of 40 numbers.*clip_l: 24"):
        execute(vision_of(tmp_path, 40), clip)


def test_an_encoder_of_pictures_alone_is_refused(tmp_path, clip):
    with pytest.raises(BoxwrightError, match="siglip_vision_model, which has no place for texts"):
        execute(vision_of(tmp_path, model_type="siglip_vision_model"), clip)


@pytest.mark.parametrize("weight", [torch.eye(24), torch.zeros(24, 24), torch.full((24, 24), float("nan"))])
def test_a_text_encoder_without_its_projection_is_refused(vision, weight):
    clip = clip_of()
    clip.cond_stage_model.clip_l.transformer.text_projection.weight.data.copy_(weight)
    with pytest.raises(BoxwrightError, match="without its text projection.*Load CLIP"):
        execute(vision, clip)
