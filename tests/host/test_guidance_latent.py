"""Samplers whose latent is moved along a gradient in the real host."""

from dataclasses import replace

import comfy.sample
import comfy.samplers
import pytest
import tiny_models as tiny
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras import nodes_custom_sampler
from guides import GUIDE, UNETS, left_mass, run
from pack.attention_patches.core.types import BoxwrightError, StepWindow
from pack.attention_patches.host.attention.calls import Installed
from pack.attention_patches.host.guidance import latent as moving
from pack.attention_patches.host.guidance.gradient import Gradient, loss_gradient
from pack.attention_patches.host.install import install
from pack.attention_patches.methods.box_constraint import preset


def test_a_published_step_is_the_same_step_in_the_hosts_scale(models, layout):
    """Oracle: z = x / sqrt(1 + sigma^2) moves by -step * dL/dz, then back to x."""
    guide = replace(GUIDE, step_size=lambda progress: 7.0)
    checked = []

    def check(executor, noisy, timestep, options, seed):
        attached = options["transformer_options"]["boxwright_run"]
        with torch.inference_mode(False), torch.enable_grad():
            sigma, target = torch.tensor([3.0]), torch.randn(1, 4, 16, 24)
            z = torch.randn(1, 4, 16, 24, requires_grad=True)
            (by_z,) = torch.autograd.grad(((z - target) ** 2).sum() / 100, z)
            x = (z * (1 + sigma**2) ** 0.5).detach().requires_grad_()
            (by_x,) = torch.autograd.grad(((x / (1 + sigma**2) ** 0.5 - target) ** 2).sum() / 100, x)
            expected = (z - 7.0 * by_z) * (1 + sigma**2) ** 0.5
            torch.testing.assert_close(x + moving.latent_change(attached, guide, by_x, 3.0), expected)
            limited = moving.latent_change(attached, replace(guide, max_change=0.01), by_x, 3.0)
            assert float(limited.abs().max()) == pytest.approx(0.03)
        checked.append(True)
        return executor(noisy, timestep, options, seed)

    patched = install(models["sd15"], layout, [replace(guide, window=StepWindow(0.999, 1.0))])
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "check", check)
    run("sd15", patched, layout, steps=2, last_step=1)
    assert checked


REFUSED = ["uni_pc", "uni_pc_bh2", "sa_solver", "sa_solver_pece", "dpm_adaptive"]
# dpm_fast follows sigmas of its own.
SAMPLERS = [name for name in comfy.samplers.KSAMPLER_NAMES if name not in REFUSED]
DELTA_SCALE = 0.3


def pushed(delta, calls):
    """In place of the gradient: a fixed push, at the first step only."""

    def change(run, guide, gradient, level):
        calls.append(level)
        return delta.to(gradient) * level if len(calls) == 1 else torch.zeros_like(gradient)

    return change


@pytest.fixture
def no_gradient(monkeypatch):
    """Half the time of a test that only asks when the latent is moved, and what becomes of it."""

    def nothing(run, item, loss, x, sigma, options):
        rows = torch.zeros(x.shape[0])
        return Gradient(torch.zeros_like(x), rows, rows[:, None], ("w1 w2",), ())

    monkeypatch.setattr(moving, "loss_gradient", nothing)


@pytest.mark.usefixtures("no_gradient")
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "inpaint"])
def test_every_sampler_takes_the_move(models, layout, sampler, masked, monkeypatch):
    """A push at the first step is the same as starting from pushed noise, and comes once."""
    calls = []
    noise = tiny.latent("sd15")
    delta = DELTA_SCALE * tiny.latent("sd15", seed=9)
    mask = None
    if masked:
        mask = torch.zeros(1, 1, 16, 24)
        mask[..., :12] = 1.0
    # The first step alone: its progress is 0.
    guide = replace(GUIDE, window=StepWindow(0.0, 0.01))
    monkeypatch.setattr(moving, "latent_change", pushed(delta, calls))
    options = {"sampler": sampler, "steps": 3, "noise_mask": mask}
    guided = run("sd15", install(models["sd15"], layout, [guide]), layout, noise=noise, **options)
    plain = run("sd15", models["sd15"], layout, noise=noise, **options)
    assert len(calls) == 1
    assert not torch.allclose(guided, plain, atol=1e-3)
    model_sampling = models["sd15"].model.model_sampling
    sigma = float(comfy.samplers.calculate_sigmas(model_sampling, "simple", 3)[0])
    push = delta * mask if masked else delta  # outside the mask the host goes on with the noise of the start
    start = noise + push * sigma / (1 + sigma**2) ** 0.5  # the host scales full noise by the root
    expected = run("sd15", models["sd15"], layout, noise=start, **options)
    torch.testing.assert_close(guided, expected, rtol=0, atol=2e-3 * float(expected.abs().max()))


TELLS_NOTHING = {"dpm_fast", "ipndm", "ipndm_v", "deis"}  # their callbacks get the noise that the run began with


@pytest.mark.usefixtures("no_gradient")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_is_moved_once_a_step_and_goes_on_from_there(models, layout, sampler, monkeypatch):
    """A push at the second step is in what the sampler itself calls the latent of that step, in full."""
    delta, states = 0.5 * tiny.latent("sd15", seed=9), {}
    positive = tiny.conditioning("sd15", layout.prompt, layout.key)
    negative = tiny.conditioning("sd15", tiny.text(seed=2), seed=6)
    model = install(models["sd15"], layout, [GUIDE])
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 4)

    def sample(amount):
        moved = []

        def second(run, guide, gradient, level):
            moved.append(level)
            return amount * delta.to(gradient) if len(moved) == 2 else torch.zeros_like(gradient)

        monkeypatch.setattr(moving, "latent_change", second)
        comfy.sample.sample_custom(
            model,
            tiny.latent("sd15"),
            4.0,
            comfy.samplers.sampler_object(sampler),
            sigmas,
            positive,
            negative,
            torch.zeros_like(delta),
            disable_pbar=True,
            seed=1,
            callback=lambda step, denoised, x, total: states.update({(amount, step): x.clone()}),
        )
        return moved

    moved = sample(0.0)
    if sampler == "dpm_fast":  # at most once in each interval of the schedule
        assert 0 < len(moved) < len(sigmas)
    else:
        assert moved == pytest.approx(sigmas[:-1].tolist(), rel=1e-4)
    if sampler in TELLS_NOTHING:
        return
    sample(1.0)
    torch.testing.assert_close(states[1.0, 0], states[0.0, 0])
    torch.testing.assert_close(states[1.0, 1] - states[0.0, 1], delta, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampler", ["euler", "heun", "exp_heun_2_x0", "dpm_2"])
def test_a_later_step_is_moved_at_its_start_and_not_at_a_trial_of_it(models, layout, sampler, monkeypatch):
    """Heun evaluates the next sigma before it is there. Oracle: two runs, the second from the pushed latent."""
    delta = 0.5 * tiny.latent("sd15", seed=9)
    positive = tiny.conditioning("sd15", layout.prompt, layout.key)
    negative = tiny.conditioning("sd15", tiny.text(seed=2), seed=6)
    sigmas = comfy.samplers.calculate_sigmas(models["sd15"].get_model_object("model_sampling"), "simple", 3)
    calls = []

    def second(run, guide, gradient, level):
        calls.append(level)
        return delta.to(gradient) if len(calls) == 2 else torch.zeros_like(gradient)

    def sample(model, noise, latent, part):
        return comfy.sample.sample_custom(
            model,
            noise,
            4.0,
            comfy.samplers.sampler_object(sampler),
            part,
            positive,
            negative,
            latent,
            disable_pbar=True,
            seed=1,
        )

    monkeypatch.setattr(moving, "latent_change", second)
    nothing = torch.zeros_like(delta)
    guided = sample(install(models["sd15"], layout, [GUIDE]), tiny.latent("sd15"), nothing, sigmas)
    scale = models["sd15"].model.latent_format.scale_factor  # what leaves a run is in the VAE's scale
    halfway = sample(models["sd15"], tiny.latent("sd15"), nothing, sigmas[:2]) + delta / scale
    expected = sample(models["sd15"], nothing, halfway, sigmas[1:])
    torch.testing.assert_close(guided, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("size", [(16, 16), (24, 24), (32, 48), (48, 48)])
@pytest.mark.parametrize("sure", [1.0, 4.0], ids=["soft", "decided"])
def test_phrases_are_pulled_in_small_pictures(layout, size, sure, monkeypatch):
    """128 to 384 pixels, also where attention is decided, so that a rival holds whole boxes."""
    model, pulls = tiny.build("sd15"), []
    for name, parameter in model.model.diffusion_model.named_parameters():
        if "attn2.to_q" in name:
            parameter.mul_(sure)

    def noted(run, guide, gradient, level):
        pulls.append(float(latent_change(run, guide, gradient, level).abs().max()) / level)
        return torch.zeros_like(gradient)

    latent_change = moving.latent_change
    monkeypatch.setattr(moving, "latent_change", noted)
    for number in range(2):
        regions = [replace(region, strength=float(i == number)) for i, region in enumerate(layout.regions)]
        alone = replace(layout, regions=tuple(regions))
        guides = preset("standard", "boxdiff").guides(alone)
        run("sd15", install(model, alone, guides), alone, steps=1, noise=tiny.latent("sd15", size=size))
    assert len(pulls) == 2 and min(pulls) > 1e-3


def test_outside_an_inpaint_mask_the_samplers_latent_stays(models, layout, monkeypatch):
    """It would come back where a mask changes on the way (differential diffusion)."""
    monkeypatch.setattr(moving, "latent_change", pushed(torch.ones(1, 4, 16, 24), []))
    mask = torch.zeros(1, 1, 16, 24)
    mask[..., :12] = 1.0
    seen = {}

    def first(name):
        return lambda step, denoised, x, total: seen.setdefault(name, x.clone())

    run("sd15", models["sd15"], layout, noise_mask=mask, steps=1, callback=first("plain"))
    run("sd15", install(models["sd15"], layout, [GUIDE]), layout, noise_mask=mask, steps=1, callback=first("guided"))
    assert torch.equal(seen["plain"][..., 12:], seen["guided"][..., 12:])
    assert not torch.isclose(seen["plain"][..., :12], seen["guided"][..., :12]).any()


@pytest.mark.parametrize("sampler", REFUSED)
def test_a_sampler_that_keeps_its_latent_is_refused(models, layout, sampler):
    patched = install(models["sd15"], layout, [GUIDE])
    with pytest.raises(BoxwrightError, match="keeps its latent.*dpmpp_2m.*fast"):
        run("sd15", patched, layout, sampler=sampler)
    if sampler == "dpm_adaptive":
        return  # evaluates the model as often as it likes, which takes its time
    fast = install(models["sd15"], layout, [replace(GUIDE, moves="prediction")])
    plain = run("sd15", models["sd15"], layout, sampler=sampler)
    assert not torch.equal(run("sd15", fast, layout, sampler=sampler), plain)


def test_churn_puts_evaluations_beside_the_schedule(models, layout, monkeypatch):
    calls = []
    monkeypatch.setattr(moving, "latent_change", pushed(torch.zeros(1, 4, 16, 24), calls))
    patched = install(models["sd15"], layout, [GUIDE])
    sampler = comfy.samplers.ksampler("euler", {"s_churn": 2.0, "s_noise": 1.0})
    sigmas = comfy.samplers.calculate_sigmas(patched.get_model_object("model_sampling"), "simple", 4)
    guider = nodes_custom_sampler.Guider_Basic(patched)
    guider.set_conds(tiny.conditioning("sd15", layout.prompt, layout.key))
    guider.sample(tiny.latent("sd15"), torch.zeros(1, 4, 16, 24), sampler, sigmas, disable_pbar=True, seed=1)
    assert len(calls) == 4
    assert sampler.sampler_function.__name__ == "sample_euler"  # the host keeps the sampler for the next run


@pytest.mark.parametrize("family", UNETS)
def test_each_move_of_the_latent_lowers_the_loss(models, layout, family):
    seen = []

    def noted(maps, site):
        found = left_mass(maps, site)
        seen.append(float(found.total))
        return found

    guide = replace(GUIDE, loss=noted, iterations=5, max_change=0.1)
    run(family, install(models[family], layout, [guide]), layout, steps=1)
    assert len(seen) == 5 and seen == sorted(seen, reverse=True) and seen[-1] < seen[0] - 0.003


def test_rows_of_a_batch_are_guided_as_if_alone(models, layout):
    patched = install(
        models["sd15"], layout, [replace(GUIDE, refine_loss=left_mass, targets=((0.0, 0.55),), refine_iterations=3)]
    )
    noise = tiny.latent("sd15", batch=3)
    whole = run("sd15", patched, layout, noise=noise)
    rows = torch.cat([run("sd15", patched, layout, noise=noise[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(whole, rows, rtol=0, atol=2e-3 * float(rows.abs().max()))


def test_refinement_stops_at_its_target(models, layout):
    seen = []

    def noted(maps, site):
        found = left_mass(maps, site)
        seen.append(float(found.total))
        return found

    guide = replace(GUIDE, iterations=1, refine_loss=noted, targets=((0.0, 0.0),), refine_iterations=5)
    run("sd15", install(models["sd15"], layout, [guide]), layout)
    assert len(seen) == 1 and seen[0] <= 1.0
    seen.clear()
    run("sd15", install(models["sd15"], layout, [replace(guide, targets=((0.0, 1.0),))]), layout)
    assert len(seen) == 5 and seen[-1] < seen[0]


def test_entries_of_one_layout_share_the_move(models, layout):
    """As many as there are (the host copies them for areas of the negative too), the latent moves by as much."""
    once = tiny.conditioning("sd15", layout.prompt, layout.key)
    negative = tiny.conditioning("sd15", tiny.text(seed=2), seed=6)
    area = [[text, {**more, "area": (8, 12, 0, 0), "strength": 1.0}] for text, more in negative]
    changes = []

    def change_of(positive, negative):
        def spy(executor, x, timestep, options, seed):
            attached = options["transformer_options"]["boxwright_run"]
            found = loss_gradient(attached, Installed(layout, GUIDE), GUIDE.loss, x, timestep, options)
            changes.append(found)
            return executor(x, timestep, options, seed)

        model = install(models["sd15"], layout, [replace(GUIDE, window=StepWindow(0.999, 1.0))])
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "spy", spy)
        tiny.run("sd15", model, positive, negative=negative, steps=2, last_step=1)
        return changes.pop()

    alone = change_of(once, negative)
    for found in (change_of([*once, *once], negative), change_of(once, area)):
        torch.testing.assert_close(found.values, alone.values)
        torch.testing.assert_close(found.total, alone.total)
