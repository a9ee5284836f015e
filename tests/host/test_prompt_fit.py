"""Prompts fitted to pictures, on tiny models of the real host."""

import pytest
import tiny_models as tiny
import torch
from pack.attention_patches.core.types import BoxwrightError, StepWindow, UnsupportedModelError
from pack.attention_patches.host import prompt_fit
from pack.attention_patches.host.prompt_fit import fit_prompt
from pack.attention_patches.samplers.prompt_fit import PromptFit, noise_loss
from pack.nodes.parts.loss_plot import plotted
from pack.nodes.parts.schema import guarded
from pack.nodes.prompt_fit import BoxwrightPromptFit

QUICK = PromptFit(steps=12, learning_rate=0.02)


def picture(family, batch=1, size=(8, 12)):
    return 0.7 * tiny.latent(family, size, batch, seed=11)


def target(family, seed=4):
    return tiny.conditioning(family, tiny.text(seed=seed), seed=seed)


@pytest.mark.parametrize("family, share", [("sd15", 0.995), ("sdxl", None), ("flux", 0.995), ("sd3", 0.995)])
def test_the_model_predicts_the_picture_better_from_a_fitted_prompt(models, family, share):
    """On the same noise before and after: without a change of the prompt the share would be 1 to the last digit.

    The tiny SDXL's loss is so rough that seed and processor decide, from .997 to 1.005: only the others are judged.
    """
    wanted = target(family)
    settings = PromptFit(steps=24, learning_rate=0.1)
    found = fit_prompt(models[family], picture(family), wanted, settings, seed=3)
    assert found.after != found.before
    assert share is None or found.after < share * found.before  # random weights hardly heed their prompt; the toy does
    assert len(found.losses) == settings.steps
    (text, values), (fitted, others) = wanted[0], found.conditioning[0]
    assert fitted.shape == text.shape and fitted.dtype == text.dtype and not torch.equal(fitted, text)
    assert others.keys() == values.keys() and others is not values


def test_the_gradient_is_that_of_central_differences(models, monkeypatch):
    """Of the loss at one place of the schedule, by the prompt, along random directions."""
    seen = []
    original = prompt_fit._Fit.result

    def look(self, report):
        def loss(embedding, wants=False):
            draw = prompt_fit.seeded(5)
            return self._step(embedding.requires_grad_(wants), 0.4, draw)

        with torch.inference_mode(False):
            text = self.text.clone().float()
            _, gradient = loss(text.clone(), wants=True)
            for seed in range(3):
                way = torch.randn(text.shape, generator=torch.Generator().manual_seed(seed))
                h = 5e-3
                ahead, behind = (loss(text + step * way)[0] for step in (h, -h))
                seen.append((float((gradient * way).sum()), (ahead - behind) / (2 * h)))
        return original(self, report)

    monkeypatch.setattr(prompt_fit._Fit, "result", look)
    fit_prompt(models["sd15"], picture("sd15"), target("sd15"), PromptFit(steps=1), seed=3)
    assert len(seen) == 3
    for found, expected in seen:
        assert found == pytest.approx(expected, rel=0.03, abs=1e-4)


def test_the_same_seed_is_the_same_prompt_and_the_weights_stay(models):
    before = {name: value.clone() for name, value in models["sd15"].model.diffusion_model.state_dict().items()}
    found = [
        fit_prompt(models["sd15"], picture("sd15"), target("sd15"), QUICK, seed).conditioning[0][0]
        for seed in (3, 3, 4)
    ]
    assert torch.equal(found[0], found[1]) and not torch.allclose(found[0], found[2], atol=1e-4)
    after = models["sd15"].model.diffusion_model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_batch_has_one_prompt_for_all_and_memory_may_be_short(models, monkeypatch):
    whole = fit_prompt(models["sd15"], picture("sd15", 2), target("sd15"), QUICK, seed=3)
    original, rows = prompt_fit._Fit._predicted, []

    def small_memory(self, embedding, noisy, at, part):
        rows.append(noisy.shape[0])
        if noisy.shape[0] > 1:
            raise torch.OutOfMemoryError("emulated")
        return original(self, embedding, noisy, at, part)

    monkeypatch.setattr(prompt_fit._Fit, "_predicted", small_memory)
    split = fit_prompt(models["sd15"], picture("sd15", 2), target("sd15"), QUICK, seed=3)
    assert rows[:3] == [2, 1, 1]
    assert split.losses == pytest.approx(whole.losses, rel=1e-2)


def test_the_way_back_to_the_text_is_a_straight_line(models):
    wanted = target("sd15")
    settings = [PromptFit(steps=4, learning_rate=0.02, towards=share) for share in (0.0, 0.5, 1.0)]
    fitted, half, text = (fit_prompt(models["sd15"], picture("sd15"), wanted, each, 3) for each in settings)
    assert torch.equal(fitted.blended[0][0], fitted.conditioning[0][0])
    torch.testing.assert_close(text.blended[0][0], wanted[0][0])
    torch.testing.assert_close(half.blended[0][0], (fitted.blended[0][0] + wanted[0][0]) / 2)


def test_moments_are_spread_over_the_window():
    moments = PromptFit(window=StepWindow(0.2, 0.7)).moments(3)
    found = torch.tensor([next(moments) for _ in range(50)])
    assert 0.2 <= float(found.min()) < 0.22 and 0.68 < float(found.max()) < 0.7
    assert float(found.sort().values.diff().max()) < 0.03  # 0.01 if they were even


def test_the_loss_is_that_of_the_noise():
    clean, noise, sigma = torch.ones(1, 4, 2, 2), torch.randn(1, 4, 2, 2), 3.0
    predicted = clean + 0.3
    from_noise = ((clean + sigma * noise - predicted) / sigma - noise).square().mean()
    torch.testing.assert_close(noise_loss(predicted, clean, sigma), from_noise)


# --- the node ---


def execute(model, **inputs):
    good = dict(
        target=target("sd15"),
        steps=3,
        learning_rate=0.02,
        start=0.0,
        end=1.0,
        seed=0,
        towards_text=0.5,
        latent={"samples": picture("sd15")},
    )
    return guarded(BoxwrightPromptFit).execute(model=model, **good | inputs).result


def test_the_node_gives_prompts_a_plot_and_a_report(models):
    blended, fitted, plot, report = execute(models["sd15"])
    assert not torch.equal(blended[0][0], fitted[0][0])
    assert plot.shape == (1, 320, 640, 3) and 0.0 <= float(plot.min()) < float(plot.max()) <= 1.0
    assert "before" in report and "after 3 steps" in report
    drawn = tiny.run("sd15", models["sd15"], fitted)
    assert not torch.allclose(drawn, tiny.run("sd15", models["sd15"], target("sd15")), atol=1e-4)


def test_a_plot_falls_as_its_losses_do():
    plot = plotted([1.0 - i / 100 for i in range(100)], smooth=1)[0]
    line = (plot[..., 2] - plot[..., 0]) > 0.3
    rows = [float(line[:, x].float().argmax()) for x in (80, 340, 600)]
    assert rows == sorted(rows) and rows[0] < 40 < 250 < rows[2]
    assert plotted([0.5]).shape == (1, 320, 640, 3)


@pytest.mark.parametrize("inputs, words", [
    ({"target": target("sd15") * 2}, "has 2 parts"),
    ({"target": []}, "has 0 parts"),
    ({"target": [[None, {}]]}, "holds no text"),
    ({"target": [[text, {**values, "end_percent": 0.5}] for text, values in target("sd15")]}, "counts from 0 to 0.5"),
    ({"target": [[text * float("nan"), values] for text, values in target("sd15")]}, "no numbers.*text encoder"),
    ({"steps": 0}, "steps is 0"),
    ({"learning_rate": -0.5}, "learning_rate"),
    ({"start": 0.6, "end": 0.4}, "is empty"),
    ({"latent": None}, "from nowhere"),
    ({"latent": {"samples": torch.ones(1, 16, 8, 8)}}, "16 channels"),
    ({"latent": {"samples": torch.zeros(1, 4, 8, 8)}}, "latent is empty"),
])  # fmt: skip
def test_bad_input_is_named(models, inputs, words):
    with pytest.raises(BoxwrightError, match=words):
        execute(models["sd15"], **inputs)


def test_a_model_that_reads_another_text_is_refused(models, monkeypatch):
    extra = type(models["sd15"].model).extra_conds

    def changed(self, **inputs):
        out = extra(self, **inputs)
        out["c_crossattn"].cond = out["c_crossattn"].cond * 2
        return out

    monkeypatch.setattr(type(models["sd15"].model), "extra_conds", changed)
    with pytest.raises(UnsupportedModelError, match="makes something else of a prompt"):
        execute(models["sd15"])


def test_quantised_weights_are_refused():
    model = tiny.build("sd15")
    layer = model.model.diffusion_model.middle_block[1].proj_in
    layer.weight = torch.nn.Parameter(torch.zeros(7, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UnsupportedModelError, match="gradients cannot pass"):
        execute(model)
