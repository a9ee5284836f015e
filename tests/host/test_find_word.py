"""Find Word in Picture as a graph calls it, on small pictures of the toy."""

import pytest
import torch
from pack.attention_patches.core.types import BoxwrightError, PhraseNotFoundError
from pack.nodes.find_word import BoxwrightFindWord

PROMPT = "a green circle and a red star"
WORD = dict(prompt=PROMPT, phrase="red star", draws=2, noise_level=0.5, threshold=0.0, dilate=0, seed=3)


def image(batch=1, size=(70, 101)):
    return torch.rand(batch, *size, 3, generator=torch.Generator().manual_seed(5))


def find(toy, **inputs):
    model, clip, vae = toy
    return BoxwrightFindWord.execute(model, clip, **{"image": image(), "vae": vae, **WORD, **inputs}).result


def test_mask_and_heat_have_the_size_of_the_picture_and_the_cost_is_said(toy):
    mask, heat, report = find(toy, image=image(2))
    assert mask.shape == (2, 70, 101) and heat.shape == (2, 70, 101, 3)
    assert 0 < mask.mean() < 1 and set(mask.unique().tolist()) == {0.0, 1.0}
    assert "4 model evaluations (2 for each of 2 pictures)." in report
    assert mask[:, :3].sum() == mask[:, 67:].sum() == 0  # what the VAE crops


def test_a_batch_is_single_pictures_and_a_latent_is_its_picture(toy):
    together = find(toy, image=image(2))
    alone = find(toy, image=image(2)[1:])
    torch.testing.assert_close(together[1][1:], alone[1], atol=2e-2, rtol=0)
    encoded = {"samples": toy[2].encode(image(1, (64, 96)))}
    from_latent, from_image = find(toy, image=None, vae=None, latent=encoded), find(toy, image=image(1, (64, 96)))
    assert torch.equal(from_latent[0], from_image[0])


@pytest.mark.parametrize("settings", [
    {"phrase": "green circle"}, {"draws": 1}, {"noise_level": 0.2}, {"threshold": 0.9}, {"dilate": 2}, {"seed": 4},
    {"prompt": "a red star on a white background"},
], ids=str)  # fmt: skip
def test_every_setting_counts(toy, settings):
    changed, plain = find(toy, **settings), find(toy)
    assert not (torch.equal(changed[0], plain[0]) and torch.equal(changed[1], plain[1]))


@pytest.mark.parametrize(
    "inputs, error, words",
    [
        ({"phrase": " "}, BoxwrightError, "no phrase; write a word"),
        ({"phrase": "house"}, PhraseNotFoundError, '"house" is not in prompt. .*Write it as prompt has it'),
        ({"image": None}, BoxwrightError, "from nowhere"),
        ({"image": image(1, (4, 64))}, BoxwrightError, "image has 64 x 4 pixels"),
        ({"draws": 0}, BoxwrightError, "draws is 0"),
        ({"threshold": 1.5}, BoxwrightError, "threshold is 1.5"),
    ],
)
def test_it_refuses(toy, inputs, error, words):
    with pytest.raises(error, match=words):
        find(toy, **inputs)
