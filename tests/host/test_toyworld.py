"""The toy world in the host: loaded by the stock loader, obeying its prompt, and invisible to all other models."""

import importlib.util

import comfy.model_detection
import comfy.sample
import comfy.supported_models
import pytest
import torch
from toyworld import companion, sampling
from toyworld.scorer import expected_object, score_image, summarise


def test_stock_loader_recognises_the_checkpoint(toy):
    model, clip, vae = toy
    assert type(model.model.model_config).__name__ == "ToyWorld"
    assert type(model.model).__name__ == "BaseModel"
    assert model.model.latent_format.scale_factor == 0.18215
    assert next(model.model.parameters()).is_inference()  # as under the executor
    assert sum(p.numel() for p in model.model.diffusion_model.parameters()) == pytest.approx(5.9e6, rel=0.01)
    assert vae.decode(torch.zeros(1, 4, 8, 6)).shape == (1, 64, 48, 3)


@pytest.mark.parametrize("prompt, words", [("a red circle", 3), ("", 0), ("a (red:1.3) circle", 3)])
def test_only_start_and_words_have_text_rows(toy, prompt, words):
    rows = sampling.encode(toy[1], prompt)[0][0]
    assert rows.shape == (1, 77, 128)
    assert rows[0].abs().amax(1).ne(0).tolist() == [True] * (1 + words) + [False] * (76 - words)


def test_prompt_is_obeyed_without_control(toy):
    model, clip, vae = toy
    positive = sampling.encode(clip, "a large green triangle and an orange circle on a gray background")
    images = sampling.sample(model, vae, positive, sampling.encode(clip, ""), seeds=range(4))
    assert images.shape == (4, 256, 256, 3) and 0 <= images.min() and images.max() <= 1
    everywhere = (0, 0, 1, 1)
    expected = [expected_object("large green triangle", everywhere), expected_object("orange circle", everywhere)]
    scores = [score_image(image, expected) for image in images]
    assert summarise(scores)["presence"][0] >= 0.75
    assert all(score.unexpected <= 1 for score in scores)
    assert images[:, :8, :8].mean() == pytest.approx(0.55, abs=0.15)  # the corner is background, gray


def test_a_seed_gives_one_picture_in_any_batch(toy):
    model, clip, vae = toy
    positive, negative = sampling.encode(clip, "a red circle"), sampling.encode(clip, "")

    def sample(seeds, batch):
        return sampling.sample(model, vae, positive, negative, seeds, steps=2, size=(64, 96), batch=batch)

    together, alone = sample([3, 5, 4], 2), sample([5], 8)
    assert together.shape == (3, 64, 96, 3)
    torch.testing.assert_close(together[1], alone[0], atol=1e-3, rtol=0)
    assert (together[0] - alone[0]).abs().max() > 0.05


def test_noise_is_that_of_the_stock_sampler():
    stock = comfy.sample.prepare_noise(torch.zeros(1, 4, 8, 12), 7)
    assert torch.equal(sampling.noise_for(7, size=(64, 96)), stock)


def test_registering_twice_adds_nothing():
    """Not even when the host imports the same folder again under another name, as it does with custom packs."""
    spec = importlib.util.spec_from_file_location("/custom_nodes/toyworld", companion.__file__)
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    again.register()
    companion.register()
    names = [model.__name__ for model in comfy.supported_models.models]
    assert names.count("ToyWorld") == 1 and names[-1] == "ToyWorld"
    assert again.NODE_CLASS_MAPPINGS == {}


def test_no_other_model_is_detected_differently():
    *others, toy_config = comfy.supported_models.models
    assert toy_config.__name__ == "ToyWorld"  # last: all others are asked first
    assert not any(toy_config.matches(other.unet_config) for other in others)

    def detected(**changes):
        return comfy.model_detection.model_config_from_unet_config({**toy_config.unet_config, **changes})

    assert type(detected()).__name__ == "ToyWorld"
    assert type(detected(context_dim=768, model_channels=320)).__name__ == "SD15"
    assert detected(context_dim=768) is None and detected(model_channels=320) is None  # unknown stays unknown
