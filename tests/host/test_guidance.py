"""Gradients through the real host, in inference mode as its executor runs, and samplers whose latent is moved."""

from dataclasses import replace

import comfy.controlnet
import comfy.model_management
import comfy.ops
import comfy.sample
import comfy.samplers
import pytest
import tiny_models as tiny
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrappersMP
from comfy_extras import nodes_custom_sampler, nodes_model_downscale
from pack.attention_patches.box_constraint import BoxConstraint
from pack.attention_patches.host import adapter_for, guidance
from pack.attention_patches.host.differentiable import differentiable
from pack.attention_patches.host.family import IncompatiblePatchError, Installed
from pack.attention_patches.host.run import install
from pack.attention_patches.rectified_attention import RectifiedAttention
from pack.attention_patches.types import (
    AttentionEdit,
    AttentionLoss,
    BoxwrightError,
    LatentGuide,
    StepWindow,
    UnsupportedModelError,
)

UNETS = ["sd15", "sd2", "sdxl"]
SIGMA = 5.0


@pytest.fixture(scope="module")
def models():
    return {family: tiny.build(family) for family in UNETS}


@pytest.fixture
def layout():
    return tiny.layout()


def left_mass(maps, site):
    """How much of the first region's words lies in the right half: smooth, every cell counts."""
    owned = [2, 3]
    share = maps[:, owned].sum(1)
    share = share / share.flatten(1).sum(1)[:, None, None]
    right = share[..., share.shape[-1] // 2 :].flatten(1).sum(1)
    return AttentionLoss(right, right.detach()[:, None], ("w1 w2",))


GUIDE = LatentGuide("left", left_mass, lambda progress: 30.0)


def run(family, model, layout, **options):
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    return tiny.run(family, model, positive, **{"steps": 2, **options})


def gradients(family, model, layout, guide=GUIDE, early_exit=True, batch=2, then=None, before=None):
    """The gradient as a run meets it: inside the sampler, at the first step. `then(gradient_of, x)` sees more."""
    found = []

    def spy(executor, x, timestep, options, seed):
        if not found:
            attached = options["transformer_options"]["boxwright_run"]
            at = torch.full_like(timestep, SIGMA)
            if before is not None:  # loading resets what a test would do to the layers
                before(attached.guider.inner_model.diffusion_model)

            def gradient_of(x):
                item = Installed(layout, replace(guide, early_exit=early_exit))
                return guidance.loss_gradient(attached, item, guide.loss, x, at[: x.shape[0]], options)

            found.append(gradient_of(x))
            if then is not None:
                found.append(then(gradient_of, x))
        return executor(x, timestep, options, seed)

    # A guide that is never active makes the run known without moving anything.
    patched = install(model, layout, [replace(guide, window=StepWindow(0.999, 1.0))])
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "spy", spy)
    run(family, patched, layout, steps=1, noise=tiny.latent(family, batch=batch))
    return found


def relative(a, b):
    return float((a - b).norm() / b.norm())


def plain_weights(family):
    """The same model with ordinary tensors for weights, which autograd differentiates without any help."""
    with torch.inference_mode(False):
        return tiny.build(family)


def without_recipe(monkeypatch):
    import contextlib

    @contextlib.contextmanager
    def plainly(module):
        with torch.inference_mode(False), torch.enable_grad():
            yield

    monkeypatch.setattr(guidance, "differentiable", plainly)


# --- the gradient is right ---


@pytest.mark.parametrize("family", UNETS)
def test_weights_are_inference_tensors_that_autograd_refuses(models, layout, family, monkeypatch):
    """The obstacle itself; else the other tests would prove nothing."""
    assert all(p.is_inference() for p in models[family].model.diffusion_model.parameters())
    without_recipe(monkeypatch)
    with pytest.raises(IncompatiblePatchError) as caught:
        gradients(family, models[family], layout)
    assert "Inference tensors cannot be saved" in str(caught.value.__cause__)


@pytest.mark.parametrize("early_exit", [True, False])
@pytest.mark.parametrize("family", UNETS)
def test_the_gradient_equals_that_of_plain_weights(models, layout, family, early_exit, monkeypatch):
    (found,) = gradients(family, models[family], layout, early_exit=early_exit)
    without_recipe(monkeypatch)
    (expected,) = gradients(family, plain_weights(family), layout, early_exit=False)
    assert expected.values.norm() > 1e-4
    assert relative(found.values, expected.values) < 1e-4
    torch.testing.assert_close(found.total, expected.total)


@pytest.mark.parametrize("family", UNETS)
def test_the_gradient_equals_central_differences(models, layout, family):
    def slope(gradient_of, x):
        direction = gradient_of(x).values
        direction = direction / direction.norm()
        step = 0.05
        up, down = (gradient_of(x + sign * step * direction).total.sum() for sign in (1, -1))
        return float((up - down) / (2 * step)), float((gradient_of(x).values * direction).sum())

    _, (numeric, exact) = gradients(family, models[family], layout, then=slope)
    assert numeric == pytest.approx(exact, rel=0.02)


def test_layers_that_are_not_linear_in_their_weight_alone(models, layout):
    """Seamless tiling: the edges of the image are repeated, so the backward is not that of zeros around it."""

    def around(unet):
        for layer in unet.modules():
            if isinstance(layer, torch.nn.Conv2d) and layer.padding != (0, 0):
                layer.padding_mode = "circular"
                layer._reversed_padding_repeated_twice = (layer.padding[1],) * 2 + (layer.padding[0],) * 2

    def slope(gradient_of, x):
        direction = gradient_of(x).values
        direction = direction / direction.norm()
        up, down = (gradient_of(x + sign * 0.05 * direction).total.sum() for sign in (1, -1))
        return float((up - down) / 0.1), float((gradient_of(x).values * direction).sum())

    _, (numeric, exact) = gradients("sd15", tiny.build("sd15"), layout, then=slope, before=around)
    assert numeric == pytest.approx(exact, rel=0.01)


def test_an_adapter_beside_a_layer_is_refused_and_never_left_out(layout):
    """The host's LoRA loader (bypass): gradients of the layer alone would be wrong."""
    model = tiny.build("sd15")
    layer = next(m for name, m in model.model.diffusion_model.named_modules() if name.endswith("to_q"))
    adapter, plain = torch.nn.Linear(layer.in_features, layer.out_features), layer.forward
    layer.forward = lambda x: plain(x) + adapter(x)
    with pytest.raises(IncompatiblePatchError, match="adapter"):
        run("sd15", install(model, layout, [GUIDE]), layout)


HALF = [(family, torch.float16) for family in UNETS]


@pytest.mark.parametrize("family, dtype", [*HALF, ("sd15", torch.float8_e4m3fn)])
def test_smaller_weights_cast_for_each_call(layout, family, dtype, monkeypatch):
    """Manual cast: the parameter has 16 or 8 bits, what a layer computes with is a fresh float32 copy."""

    def cast(model):
        model.model.diffusion_model.to(dtype)
        for module in model.model.diffusion_model.modules():
            if hasattr(module, "comfy_cast_weights"):
                module.comfy_cast_weights = True
        return model

    model = cast(tiny.build(family))
    (found,) = gradients(family, model, layout)
    assert next(model.model.diffusion_model.parameters()).dtype == dtype
    without_recipe(monkeypatch)
    (expected,) = gradients(family, cast(plain_weights(family)), layout, early_exit=False)
    assert relative(found.values, expected.values) < 1e-4


def test_a_lora_applied_on_the_fly(models, layout, monkeypatch):
    """Offloaded layers patch their weight in every call (weight_function); the gradient sees the patched weight."""

    def deltas(unet):
        layers = [layer for name, layer in unet.named_modules() if name.endswith(("to_q", "to_k", "proj_in"))]
        assert len(layers) > 5
        for i, layer in enumerate(layers):
            yield layer, 0.2 * torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(i))

    def on_the_fly(unet):
        for layer, delta in deltas(unet):
            layer.weight_function = [lambda weight, delta=delta: weight + delta.to(weight)]

    def merged(unet):
        with torch.inference_mode(False), torch.no_grad():
            for layer, delta in deltas(unet):
                layer.weight.add_(delta)

    (plain,) = gradients("sd15", models["sd15"], layout)
    (found,) = gradients("sd15", tiny.build("sd15"), layout, before=on_the_fly)
    without_recipe(monkeypatch)
    (expected,) = gradients("sd15", plain_weights("sd15"), layout, early_exit=False, before=merged)
    assert relative(found.values, expected.values) < 1e-4
    assert relative(found.values, plain.values) > 0.01


def test_offloaded_weights_that_share_one_buffer(models, layout, monkeypatch):
    """Partial load: the host copies each weight into one reused buffer. A kept reference would see another layer's."""
    (expected,) = gradients("sd15", models["sd15"], layout)
    with torch.inference_mode():
        buffer = torch.empty(max(p.numel() for p in models["sd15"].model.diffusion_model.parameters()))
    original = comfy.ops.cast_bias_weight

    def through_the_buffer(layer, *args, **kwargs):
        weight, bias, *rest = original(layer, *args, **kwargs)
        if not isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):  # the host clones those after the copy
            return (weight, bias, *rest)
        view = buffer[: weight.numel()].view(weight.shape)
        view.copy_(weight)
        used.append(layer)
        return (view, bias, *rest)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", through_the_buffer)
    used = []

    def offloaded(unet):
        for module in unet.modules():
            if hasattr(module, "comfy_cast_weights"):
                module.comfy_cast_weights = True

    (found,) = gradients("sd15", tiny.build("sd15"), layout, before=offloaded)
    assert len(used) > 20
    assert relative(found.values, expected.values) < 1e-4


def test_two_models_in_one_process_and_a_reload(models, layout):
    (first,) = gradients("sd15", models["sd15"], layout)
    (other,) = gradients("sd15", tiny.build("sd15", seed=4), layout)
    gradients("sdxl", models["sdxl"], layout)
    models["sd15"].unpatch_model(torch.device("cpu"))
    comfy.model_management.unload_all_models()
    (again,) = gradients("sd15", models["sd15"], layout)
    assert torch.equal(first.values, again.values)
    assert relative(other.values, first.values) > 0.1


def test_a_batch_has_the_gradients_of_its_rows(models, layout):
    noise = tiny.latent("sd15", batch=3)

    def alone(gradient_of, x):
        return [gradient_of(x[i : i + 1]).values for i in range(3)]

    whole, rows = gradients("sd15", models["sd15"], layout, batch=3, then=alone)
    assert noise.shape[0] == 3
    assert relative(torch.cat(rows), whole.values) < 1e-4


def test_the_model_is_as_it_was_afterwards(models, layout):
    unet = models["sd15"].model.diffusion_model
    layers = {name: dict(layer.__dict__) for name, layer in unet.named_modules()}
    plain = run("sd15", models["sd15"], layout)
    weights = {name: (p.data_ptr(), p.is_inference()) for name, p in unet.named_parameters()}
    guided = run("sd15", install(models["sd15"], layout, [GUIDE]), layout)
    assert not torch.equal(guided, plain)
    assert {name: (p.data_ptr(), p.is_inference()) for name, p in unet.named_parameters()} == weights
    after = {name: dict(layer.__dict__) for name, layer in unet.named_modules()}
    assert {n: sorted(d) for n, d in after.items()} == {n: sorted(d) for n, d in layers.items()}
    assert torch.equal(run("sd15", models["sd15"], layout), plain)


def test_a_failure_restores_the_model(models):
    unet = models["sd15"].model.diffusion_model
    with pytest.raises(KeyError), differentiable(unet):
        assert any("forward" in layer.__dict__ for layer in unet.modules())
        raise KeyError
    assert not any("forward" in layer.__dict__ for layer in unet.modules())
    assert torch.is_inference_mode_enabled() and all(p.is_inference() for p in unet.parameters())


def test_early_exit_runs_no_layer_after_the_last_that_is_read(models, layout):
    """Layers behind it are not even called; the grid read is the coarsest that is fine enough."""
    called = []

    def count(early):
        called.clear()
        unet = models["sd15"].model.diffusion_model
        handles = [
            layer.register_forward_hook(lambda *_, name=name: called.append(name))
            for name, layer in unet.named_modules()
        ]
        try:
            gradients("sd15", models["sd15"], layout, replace(GUIDE, smallest_side=8), early_exit=early)
        finally:
            for handle in handles:
                handle.remove()
        # The run's own step follows the gradient: its 2 rows come once.
        return len(called)

    assert count(True) < count(False)


@pytest.mark.parametrize("family", UNETS)
def test_the_last_layer_is_the_last_that_a_full_pass_reads(models, layout, family):
    model = models[family].model.diffusion_model
    adapter = adapter_for(models[family])
    for level in range(len(adapter.factors(model))):
        reader = guidance._MapReader(level, None)
        run(family, install(models[family], layout, [reader.edit()]), layout, steps=1)
        assert list(reader.parts)[-1] == adapter.last_layer(model, level)


@pytest.mark.parametrize(
    "factors, latent, level",
    [
        ((1, 2, 4, 8), (64, 64), 2),  # SD 1.5 at 512: 16 x 16
        ((1, 2, 4, 8), (96, 96), 2),  # at 768: 24 x 24
        ((1, 2, 4, 8), (128, 128), 2),  # at 1024: 32 x 32
        ((2, 4), (128, 128), 1),  # SDXL at 1024: 32 x 32
        ((2, 4), (64, 64), 1),  # SDXL at 512: 16 x 16
        ((1, 2, 4), (32, 32), 1),  # the toy at 256: 16 x 16
        ((2, 4), (16, 24), 0),  # nothing is fine enough: the finest
    ],
)
def test_the_grid_follows_from_the_latent(factors, latent, level):
    assert guidance.map_level(factors, latent, 16) == level


# --- the latent is moved ---


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
            torch.testing.assert_close(x + guidance.latent_change(attached, guide, by_x, sigma), expected)
            limited = guidance.latent_change(attached, replace(guide, max_change=0.01), by_x, sigma)
            assert float(limited.abs().max()) == pytest.approx(0.03)
        checked.append(True)
        return executor(noisy, timestep, options, seed)

    patched = install(models["sd15"], layout, [replace(guide, window=StepWindow(0.999, 1.0))])
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "check", check)
    run("sd15", patched, layout, steps=1)
    assert checked


REFUSED = ["uni_pc", "uni_pc_bh2", "sa_solver", "sa_solver_pece", "dpm_adaptive"]
# dpm_fast follows sigmas of its own.
SAMPLERS = [name for name in comfy.samplers.KSAMPLER_NAMES if name not in REFUSED]
DELTA_SCALE = 0.3


def pushed(delta, calls):
    """In place of the gradient: a fixed push, at the first step only."""

    def change(run, guide, gradient, sigma):
        level = float(sigma.flatten()[0])
        calls.append(level)
        return delta.to(gradient) * level if len(calls) == 1 else torch.zeros_like(gradient)

    return change


@pytest.fixture
def no_gradient(monkeypatch):
    """Half the time of a test that only asks when the latent is moved, and what becomes of it."""

    def nothing(run, item, loss, x, sigma, options):
        rows = torch.zeros(x.shape[0])
        return guidance.Gradient(torch.zeros_like(x), rows, rows[:, None], ("w1 w2",), ())

    monkeypatch.setattr(guidance, "loss_gradient", nothing)


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
    monkeypatch.setattr(guidance, "latent_change", pushed(delta, calls))
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

        def second(run, guide, gradient, sigma):
            moved.append(float(sigma[0]))
            return amount * delta.to(gradient) if len(moved) == 2 else torch.zeros_like(gradient)

        monkeypatch.setattr(guidance, "latent_change", second)
        comfy.sample.sample_custom(
            model, tiny.latent("sd15"), 4.0, comfy.samplers.sampler_object(sampler), sigmas, positive, negative,
            torch.zeros_like(delta), disable_pbar=True, seed=1,
            callback=lambda step, denoised, x, total: states.update({(amount, step): x.clone()}),
        )  # fmt: skip
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

    def second(run, guide, gradient, sigma):
        calls.append(sigma)
        return delta.to(gradient) if len(calls) == 2 else torch.zeros_like(gradient)

    def sample(model, noise, latent, part):
        return comfy.sample.sample_custom(
            model, noise, 4.0, comfy.samplers.sampler_object(sampler), part, positive, negative, latent,
            disable_pbar=True, seed=1,
        )  # fmt: skip

    monkeypatch.setattr(guidance, "latent_change", second)
    nothing = torch.zeros_like(delta)
    guided = sample(install(models["sd15"], layout, [GUIDE]), tiny.latent("sd15"), nothing, sigmas)
    scale = models["sd15"].model.latent_format.scale_factor  # what leaves a run is in the VAE's scale
    halfway = sample(models["sd15"], tiny.latent("sd15"), nothing, sigmas[:2]) + delta / scale
    expected = sample(models["sd15"], nothing, halfway, sigmas[1:])
    torch.testing.assert_close(guided, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


def test_outside_an_inpaint_mask_the_samplers_latent_stays(models, layout, monkeypatch):
    """It would come back where a mask changes on the way (differential diffusion)."""
    monkeypatch.setattr(guidance, "latent_change", pushed(torch.ones(1, 4, 16, 24), []))
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
    monkeypatch.setattr(guidance, "latent_change", pushed(torch.zeros(1, 4, 16, 24), calls))
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


@pytest.mark.parametrize("family", UNETS)
def test_the_prediction_moves_by_the_gradient_of_the_ordinary_pass(models, layout, family):
    """iLGD's change of the predicted noise, as a change of the denoised latent; the negative's stays to the bit."""
    outputs, found = [], []

    def spy(executor, model, conds, x, timestep, options):
        out = executor(model, conds, x, timestep, options)
        outputs.append(out)
        if "boxwright_run" in options["transformer_options"] and not found:
            attached = options["transformer_options"]["boxwright_run"]
            item = attached.guides[0]
            gradient = guidance.loss_gradient(attached, item, item.edit.loss, x, timestep, options)
            found.append((float(timestep[0]), gradient.values))
        return out

    def first(model):
        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "a spy", spy)
        run(family, model, layout, steps=1)
        return outputs.pop(0)

    guide = replace(GUIDE, moves="prediction", step_size=lambda p: 3.0)
    plain = first(models[family])
    outputs.clear()
    guided = first(install(models[family], layout, [guide]))
    ((sigma, gradient),) = found
    expected = -3.0 * sigma**2 * (1 + sigma**2) ** 0.5 * gradient
    assert expected.abs().max() > 1e-2
    changes = [a - b for a, b in zip(guided, plain, strict=True)]
    assert sorted(float(c.abs().max()) > 1e-3 for c in changes) == [False, True]
    moved = max(changes, key=lambda c: float(c.abs().max()))
    assert relative(moved, expected) < 0.01


def test_rows_of_a_batch_are_guided_as_if_alone(models, layout):
    patched = install(models["sd15"], layout, [replace(GUIDE, refine_loss=left_mass, targets=((0.0, 0.55),),
                                                       refine_iterations=3)])  # fmt: skip
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


@pytest.mark.parametrize("moves", ["latent", "prediction"])
def test_the_loss_sees_where_the_model_itself_wants_a_phrase(models, layout, moves):
    """Confined to their boxes by another method, the phrases would leave the loss nothing to say."""
    outside = []

    def loss(maps, site):
        outside.append(float(maps.detach()[:, 2, :, site.grid[1] // 2 :].sum()))
        return left_mass(maps, site)

    confined = RectifiedAttention(window=StepWindow(), feather=0.0).edits(layout)
    guide = replace(GUIDE, loss=loss, moves=moves)
    run("sd15", install(models["sd15"], layout, [*confined, guide]), layout, steps=1)
    assert outside and min(outside) > 0.01


@pytest.mark.parametrize("moves", ["latent", "prediction"])
@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_with_rectified_attention_loras_and_other_wrappers(models, layout, moves, cfg):
    """The gradient pass leaves others' wrappers alone, and is made with the other edits in force."""
    guide = replace(GUIDE, moves=moves)
    calls = []

    def other(executor, *args, **kwargs):
        calls.append(torch.is_inference_mode_enabled())
        return executor(*args, **kwargs)

    base = models["sd15"].clone()
    base.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "other", other)
    rectified = install(base, layout, RectifiedAttention().edits(layout))
    alone = run("sd15", rectified, layout, cfg=cfg)
    plain_calls, both = len(calls), run("sd15", install(rectified, layout, [guide]), layout, cfg=cfg)
    assert not torch.equal(both, alone)
    if moves == "latent":
        assert len(calls) == 2 * plain_calls and all(calls)
    guided = install(base, layout, [guide])
    assert not torch.equal(both, run("sd15", guided, layout, cfg=cfg))


@pytest.mark.parametrize("moves", ["latent", "prediction"])
def test_readers_hear_of_the_ordinary_pass_only_and_without_a_graph(models, layout, moves):
    seen = []
    watch = AttentionEdit("watch", "read", lambda probs, site: seen.append(probs))
    run("sd15", install(models["sd15"], layout, [watch]), layout, steps=2)
    alone = len(seen)
    seen.clear()
    run("sd15", install(models["sd15"], layout, [watch, replace(GUIDE, moves=moves)]), layout, steps=2)
    assert len(seen) == alone and not any(probs.requires_grad for probs in seen)


@pytest.mark.parametrize("moves", ["latent", "prediction"])
def test_with_score_edits_that_need_their_input_in_the_backward(models, layout, moves):
    """DenseDiffusion's kind."""
    squash = AttentionEdit("squash", "scores", lambda scores, site: scores * torch.tanh(scores))
    model = install(models["sd15"], layout, [squash])
    guide = replace(GUIDE, moves=moves)
    assert not torch.equal(run("sd15", install(model, layout, [guide]), layout), run("sd15", model, layout))


@pytest.mark.parametrize("moves", ["latent", "prediction"])
def test_with_deep_shrink(models, layout, moves):
    """Layers of one level then have grids of several sizes."""
    node = nodes_model_downscale.PatchModelAddDownscale
    model = node.execute(models["sd15"], 1, 1.5, 0.0, 0.35, True, "bicubic", "bicubic")[0]
    guide, options = replace(GUIDE, moves=moves), {"noise": tiny.latent("sd15", size=(64, 64)), "steps": 1}
    guided = run("sd15", install(model, layout, [guide]), layout, **options)
    assert bool(guided.isfinite().all()) and not torch.equal(guided, run("sd15", model, layout, **options))


class Control(comfy.controlnet.ControlBase):
    """A network of inference tensors whose output the host adds to the model's features."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Conv2d(4, 4, 3, padding=1)

    def get_control(self, x, *args):
        value = self.net(x).mean().expand(1, 1, 1, 1)
        return {"input": [], "middle": [value], "output": [value, value]}

    def copy(self):
        return self


@pytest.mark.parametrize("moves", ["latent", "prediction"])
def test_with_a_controlnet(models, layout, moves):
    """Its weights are inference tensors and its output is added in place: the pass with gradients can have neither."""
    positive = tiny.conditioning("sd15", layout.prompt, layout.key, control=Control(), control_apply_to_uncond=True)
    plain = tiny.run("sd15", models["sd15"], positive)
    assert not torch.equal(plain, run("sd15", models["sd15"], layout)), "the ControlNet does nothing"
    guided = tiny.run("sd15", install(models["sd15"], layout, [replace(GUIDE, moves=moves)]), positive)
    assert not torch.equal(guided, plain)


def test_entries_of_one_layout_share_the_move(models, layout):
    """As many as there are (the host copies them for areas of the negative too), the latent moves by as much."""
    once = tiny.conditioning("sd15", layout.prompt, layout.key)
    negative = tiny.conditioning("sd15", tiny.text(seed=2), seed=6)
    area = [[text, {**more, "area": (8, 12, 0, 0), "strength": 1.0}] for text, more in negative]
    changes = []

    def change_of(positive, negative):
        def spy(executor, x, timestep, options, seed):
            attached = options["transformer_options"]["boxwright_run"]
            found = guidance.loss_gradient(attached, Installed(layout, GUIDE), GUIDE.loss, x, timestep, options)
            changes.append(found)
            return executor(x, timestep, options, seed)

        model = install(models["sd15"], layout, [replace(GUIDE, window=StepWindow(0.999, 1.0))])
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "spy", spy)
        tiny.run("sd15", model, positive, negative=negative, steps=1)
        return changes.pop()

    alone = change_of(once, negative)
    for found in (change_of([*once, *once], negative), change_of(once, area)):
        torch.testing.assert_close(found.values, alone.values)
        torch.testing.assert_close(found.total, alone.total)


def test_with_an_image_prompt_that_replaces_the_cross_attention(models, layout):
    """IPAdapter's way; the guide reads its queries and keys, and the gradient passes through it."""

    def image_prompt(q, k, v, extra_options):
        heads = extra_options["n_heads"]
        image = torch.ones_like(k[:, :4])
        return optimized_attention(q, k, v, heads) + 0.3 * optimized_attention(q, image, image, heads)

    model = models["sd15"].clone()
    for block in (("input", 1), ("input", 2), ("input", 4), ("input", 5), ("middle", 0)):
        model.set_model_attn2_replace(image_prompt, *block)
    (with_it,), (without,) = gradients("sd15", model, layout), gradients("sd15", models["sd15"], layout)
    assert relative(with_it.values, without.values) > 0.01
    assert not torch.equal(run("sd15", install(model, layout, [GUIDE]), layout), run("sd15", model, layout))


def test_a_foreign_prompt_is_refused(models, layout):
    patched = install(models["sd15"], layout, [GUIDE])
    with pytest.raises(BoxwrightError, match="No positive conditioning"):
        tiny.run("sd15", patched, tiny.conditioning("sd15", tiny.text(seed=8)))


def test_the_negative_is_never_guided(models, layout):
    """Not even where it was encoded with the same layout: only the positive's entry is differentiated."""
    positive, negative = (tiny.conditioning("sd15", layout.prompt, layout.key) for _ in range(2))
    seen = []

    def spy(executor, x, timestep, options, seed):
        attached = options["transformer_options"]["boxwright_run"]
        seen.append((attached.conditioning(layout), attached.guider.conds["positive"]))
        return executor(x, timestep, options, seed)

    patched = install(models["sd15"], layout, [GUIDE])
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "spy", spy)
    tiny.run("sd15", patched, positive, negative=negative, steps=1)
    [(guided, positives)] = seen
    assert [entry["uuid"] for entry in guided] == [entry["uuid"] for entry in positives]


@pytest.mark.parametrize("guider", ["dual", "perp"])
def test_guiders_that_order_their_prompts_differently(models, layout, guider):
    from comfy_extras import nodes_perpneg

    positive = tiny.conditioning("sd15", layout.prompt, layout.key)
    other = tiny.conditioning("sd15", tiny.text(seed=2), seed=6)
    third = tiny.conditioning("sd15", tiny.text(seed=3), seed=7)

    def sample(model):
        if guider == "dual":
            made = nodes_custom_sampler.Guider_DualCFG(model)
            made.set_conds(positive, third, other)
            made.set_cfg(4.0, 2.0)
        else:
            made = nodes_perpneg.Guider_PerpNeg(model)
            made.set_conds(positive, other, third)
            made.set_cfg(4.0, 1.0)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 2)
        return made.sample(tiny.latent("sd15"), torch.zeros(1, 4, 16, 24), comfy.samplers.ksampler("euler"), sigmas,
                           disable_pbar=True, seed=1)  # fmt: skip

    plain = sample(models["sd15"])
    for moves in ("latent", "prediction"):
        assert not torch.equal(sample(install(models["sd15"], layout, [replace(GUIDE, moves=moves)])), plain)


# --- what can go wrong ---


def test_out_of_memory_is_tried_once_more_a_row_at_a_time(models, layout, monkeypatch):
    noise = tiny.latent("sd15", batch=3)
    patched = install(models["sd15"], layout, [GUIDE])
    whole = run("sd15", patched, layout, noise=noise, steps=1)
    original, rows = guidance._entry_gradient, []

    def small_memory(run, item, loss, entry, x, *rest):
        rows.append(x.shape[0])
        if x.shape[0] > limit:
            raise torch.OutOfMemoryError("emulated")
        return original(run, item, loss, entry, x, *rest)

    monkeypatch.setattr(guidance, "_entry_gradient", small_memory)
    limit = 1
    split = run("sd15", patched, layout, noise=noise, steps=1)
    assert rows == [3, 1, 1, 1]
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-3 * float(whole.abs().max()))
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        run("sd15", patched, layout, noise=noise, steps=1)


def test_interrupting_stops_at_once(models, layout):
    steps = []

    def interrupting(maps, site):
        steps.append(1)
        comfy.model_management.interrupt_current_processing()
        return left_mass(maps, site)

    patched = install(models["sd15"], layout, [replace(GUIDE, loss=interrupting, iterations=10)])
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run("sd15", patched, layout)
    assert len(steps) == 1


def test_a_gradient_that_is_not_finite_is_refused(models, layout):
    def broken(maps, site):
        found = left_mass(maps, site)
        return replace(found, total=found.total * torch.inf)

    with pytest.raises(BoxwrightError, match="not finite"):
        run("sd15", install(models["sd15"], layout, [replace(GUIDE, loss=broken)]), layout)


def test_weights_without_a_backward_are_refused(layout):
    model = tiny.build("sd15")
    layer = model.model.diffusion_model.middle_block[0].in_layers[2]
    original = layer.forward

    class Packed(type(layer)):
        """A layer of another pack that unpacks its weights by itself."""

        def forward(self, x):
            return original(x)

    layer.__class__ = Packed
    layer._parameters["weight"] = torch.nn.Parameter(torch.zeros(7, dtype=torch.uint8), requires_grad=False)
    layer._parameters["weight"].data = torch.zeros(7, dtype=torch.uint8)
    with torch.inference_mode():
        weight = torch.randn(layer.out_channels, layer.in_channels, 3, 3) * 0.01
    original = lambda x: torch.nn.functional.conv2d(x, weight, None, padding=1)  # noqa: E731
    with pytest.raises(UnsupportedModelError, match="quantised format"):
        run("sd15", install(model, layout, [replace(GUIDE, smallest_side=1)]), layout)


def test_families_without_gradients_are_refused_when_installing(layout):
    with pytest.raises(UnsupportedModelError, match="do(es)? not take through Flux"):
        install(tiny.build("flux"), layout, [GUIDE])


@pytest.mark.parametrize("mode", ["boxdiff", "fast"])
def test_the_report_names_every_phrase_and_the_worst(models, layout, mode):
    lines = []
    (guide,) = BoxConstraint(mode=mode).guides(layout)
    run("sd15", install(models["sd15"], layout, [replace(guide, report=lines.append)]), layout, steps=2)
    assert lines and lines[0].startswith("step 1 of 2") and lines[0].count("(worst)") == 1
    assert all(region.phrase in lines[0] for region in layout.regions)


def test_a_run_behind_the_window_says_so(models, layout):
    lines = []
    guide = replace(GUIDE, window=StepWindow(0.0, 0.3), report=lines.append)
    model = install(models["sd15"], layout, [guide])
    assert torch.equal(run("sd15", model, layout, denoise=0.3), run("sd15", models["sd15"], layout, denoise=0.3))
    assert len(lines) == 1 and "nothing is moved" in lines[0] and "denoise" in lines[0]
    lines.clear()
    run("sd15", model, layout)
    assert not any("nothing is moved" in line for line in lines)
