"""Samplers whose latent, or prediction, is moved along a gradient in the real host."""

import types
from dataclasses import replace

import comfy.context_windows
import comfy.controlnet
import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import tiny_models as tiny
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrappersMP
from comfy_extras import nodes_custom_sampler, nodes_model_downscale
from guides import GUIDE, UNETS, gradients, left_mass, relative, run
from pack.attention_patches.core.seam import AttentionEdit
from pack.attention_patches.core.types import BoxwrightError, StepWindow
from pack.attention_patches.host.attention.calls import Installed
from pack.attention_patches.host.guidance import latent as moving
from pack.attention_patches.host.guidance import prediction as predicting
from pack.attention_patches.host.guidance.gradient import Gradient, loss_gradient
from pack.attention_patches.host.install import install
from pack.attention_patches.methods.box_constraint import BoxConstraint, preset
from pack.attention_patches.methods.rectified_attention import RectifiedAttention


@pytest.fixture(scope="module")
def models():
    return {family: tiny.build(family) for family in UNETS}


@pytest.fixture
def layout():
    return tiny.layout()


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

    def second(run, guide, gradient, level):
        calls.append(level)
        return delta.to(gradient) if len(calls) == 2 else torch.zeros_like(gradient)

    def sample(model, noise, latent, part):
        return comfy.sample.sample_custom(
            model, noise, 4.0, comfy.samplers.sampler_object(sampler), part, positive, negative, latent,
            disable_pbar=True, seed=1,
        )  # fmt: skip

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


FAST = replace(GUIDE, moves="prediction")


def prediction(family, model, layout, positive=None, **options):
    """What the sampler is told of the first step: the denoised latent."""
    seen = []
    positive = positive or tiny.conditioning(family, layout.prompt, layout.key)
    tiny.run(family, model, positive, steps=1, callback=lambda step, out, x, total: seen.append(out.clone()), **options)
    return seen[0]


@pytest.mark.parametrize("family", UNETS)
def test_the_prediction_moves_by_the_gradient_of_the_ordinary_pass(models, layout, family):
    """iLGD's change of the predicted noise, as a change of the denoised latent."""
    found = []

    def spy(executor, x, timestep, options, seed):
        attached = options["transformer_options"]["boxwright_run"]
        (item,) = attached.installed
        found.append((float(timestep[0]), loss_gradient(attached, item, item.edit.loss, x, timestep, options).values))
        return executor(x, timestep, options, seed)

    guided = install(models[family], layout, [replace(FAST, step_size=lambda p: 1.0)])
    guided.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "a spy", spy)
    moved = prediction(family, guided, layout) - prediction(family, models[family], layout)
    ((sigma, gradient),) = found
    expected = (-1.0 * sigma**2 * (1 + sigma**2) ** 0.5 * gradient).clamp(-predicting.MOST, predicting.MOST)
    assert expected.abs().max() > 0.1
    assert relative(moved, expected) < 0.01


@pytest.mark.parametrize("cfg", [1.0, 2.0, 5.0, 12.0])
def test_the_move_of_the_prediction_does_not_grow_with_cfg(models, layout, cfg):
    guided = install(models["sd15"], layout, [replace(FAST, max_change=0.7)])
    plain, moved = (prediction("sd15", model, layout, cfg=cfg) for model in (models["sd15"], guided))
    assert float((moved - plain).abs().max()) == pytest.approx(0.7, rel=1e-3)


def test_what_others_evaluate_in_the_same_step_moves_nothing_more(models, layout):
    """PAG and SAG evaluate the prompt again, beside the guider's own evaluation."""

    def again(args):
        out, *_ = comfy.samplers.calc_cond_batch(
            args["model"], [args["cond"]], args["input"], args["sigma"], args["model_options"]
        )
        return args["denoised"] + 2.0 * (args["cond_denoised"] - out)

    model = models["sd15"].clone()
    model.set_model_sampler_post_cfg_function(again)
    guided = [install(m, layout, [replace(FAST, max_change=0.7)]) for m in (models["sd15"], model)]
    alone, beside = (prediction("sd15", model, layout) for model in guided)
    torch.testing.assert_close(alone, beside, rtol=0, atol=1e-4)


def test_a_patch_that_evaluates_the_prompts_by_itself_is_refused(models, layout):
    model = models["sd15"].clone()
    model.model_options["sampler_calc_cond_batch_function"] = lambda args: [torch.zeros_like(args["input"])] * 2
    run("sd15", model, layout)
    with pytest.raises(BoxwrightError, match="evaluates the prompts by itself.*boxdiff"):
        run("sd15", install(model, layout, [FAST]), layout)


@pytest.mark.parametrize("limit", [0.0, 0.3])
def test_the_move_of_the_prediction_is_bounded_at_every_sigma(models, layout, limit):
    """The step grows with the cube of sigma: zero terminal SNR begins at thousands."""
    guide = replace(FAST, step_size=lambda p: 1000.0, max_change=limit)
    guider = types.SimpleNamespace(inner_model=models["sd15"].model)
    attached = types.SimpleNamespace(progress=lambda level: 0.0, guider=guider)
    gradient = torch.randn(1, 4, 16, 24)
    for level in (4518.0, 14.6, 1.0, 0.1):
        change = predicting.prediction_change(attached, guide, gradient, level)
        assert float(change.abs().max()) == pytest.approx((limit or predicting.MOST) * min(level, 1.0))


def test_zero_terminal_snr_does_not_explode(layout):
    model = tiny.build("sd2")
    from comfy_extras import nodes_model_advanced

    model = nodes_model_advanced.ModelSamplingDiscrete().patch(model, "v_prediction", True)[0]
    plain = run("sd2", model, layout, steps=1)
    guided = run("sd2", install(model, layout, [replace(FAST, step_size=lambda p: 1000.0)]), layout, steps=1)
    assert 0 < float((guided - plain).abs().max()) <= predicting.MOST / model.model.latent_format.scale_factor * 1.01


def test_the_graph_ends_at_the_last_layer_that_is_read(models, layout):
    """Behind it nothing is kept for a backward pass that does not come there."""
    tracked = []
    handles = [
        layer.register_forward_hook(lambda *_, name=name: tracked.append((name, torch.is_grad_enabled())))
        for name, layer in models["sd15"].model.diffusion_model.named_modules()
        if name.endswith("attn2")
    ]
    try:
        run("sd15", install(models["sd15"], layout, [replace(FAST, smallest_side=8)]), layout, steps=1, cfg=1.0)
    finally:
        for handle in handles:
            handle.remove()
    graph = [on for _, on in tracked]
    assert graph == sorted(graph, reverse=True) and True in graph and False in graph


@pytest.mark.parametrize("entries", [1, 2])
def test_entries_of_one_layout_share_the_move_of_the_prediction(models, layout, entries):
    """As in the other modes: it does not grow with their number."""
    positive = [*tiny.conditioning("sd15", layout.prompt, layout.key)] * entries
    guided = install(models["sd15"], layout, [replace(FAST, max_change=0.7)])
    plain, moved = (prediction("sd15", model, layout, positive) for model in (models["sd15"], guided))
    assert float((moved - plain).abs().max()) == pytest.approx(0.7, rel=1e-3)


def test_two_guides_of_one_pass_each_move_the_prediction(models, layout):
    def right_mass(maps, site):
        return left_mass(maps.flip(-1), site)

    guided = install(models["sd15"], layout, [replace(FAST, max_change=0.7)])
    both = install(guided, layout, [replace(FAST, loss=right_mass, max_change=0.2)])
    one, two = (prediction("sd15", model, layout) for model in (guided, both))
    assert float((two - one).abs().max()) == pytest.approx(0.2, rel=1e-2)


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
        seen.append((attached.conditioning(attached.installed[0]), attached.guider.conds["positive"]))
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
        first = []
        out = made.sample(tiny.latent("sd15"), torch.zeros(1, 4, 16, 24), comfy.samplers.ksampler("euler"), sigmas,
                          callback=lambda step, denoised, x, total: first.append(denoised.clone()),
                          disable_pbar=True, seed=1)  # fmt: skip
        return out, first[0]

    plain, prediction = sample(models["sd15"])
    assert not torch.equal(sample(install(models["sd15"], layout, [GUIDE]))[0], plain)
    _, moved = sample(install(models["sd15"], layout, [replace(FAST, max_change=0.7)]))
    assert float((moved - prediction).abs().max()) == pytest.approx(0.7, rel=1e-3), "however prompts are combined"


# --- what can go wrong ---


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


@pytest.mark.parametrize("mode", ["boxdiff", "fast"])
def test_the_report_names_every_phrase_and_the_worst(models, layout, mode):
    lines = []
    (guide,) = BoxConstraint(mode=mode).guides(layout)
    run("sd15", install(models["sd15"], layout, [replace(guide, report=lines.append)]), layout, steps=2)
    assert lines and lines[0].startswith("step 1 of 2") and lines[0].count("(worst)") == 1
    assert all(region.phrase in lines[0] for region in layout.regions)


@pytest.mark.parametrize("moves", ["latent", "prediction"])
def test_a_run_behind_the_window_says_so(models, layout, moves):
    lines = []
    guide = replace(GUIDE, window=StepWindow(0.0, 0.3), report=lines.append, moves=moves)
    model = install(models["sd15"], layout, [guide])
    assert torch.equal(run("sd15", model, layout, denoise=0.3), run("sd15", models["sd15"], layout, denoise=0.3))
    assert len(lines) == 1 and "nothing is moved" in lines[0] and "denoise" in lines[0]
    lines.clear()
    run("sd15", model, layout)
    assert not any("nothing is moved" in line for line in lines)


def test_the_prediction_is_not_moved_in_parts(models, layout):
    """The host's context windows run the guider's evaluation once for each part of the batch."""
    windows, model = comfy.context_windows, models["sd15"].clone()
    model.model_options["context_handler"] = windows.IndexListContextHandler(
        windows.get_matching_context_schedule(windows.ContextSchedules.STATIC_STANDARD),
        windows.get_matching_fuse_method(windows.ContextFuseMethods.FLAT),
        context_length=2,
        context_overlap=1,
    )
    with pytest.raises(BoxwrightError, match='Context windows .*mode "fast"'):
        run("sd15", install(model, layout, [FAST]), layout, noise=tiny.latent("sd15", batch=4))
