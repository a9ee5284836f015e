"""Noise levels and single steps against their definitions and their statistics."""

import math

import pytest
import torch
from pack.attention_patches.core.types import BoxwrightError, StepWindow
from pack.attention_patches.samplers.blended_latents import BlendedLatents
from pack.attention_patches.samplers.diff_edit import sample_diff_edit
from pack.attention_patches.samplers.ilvr import ILVR
from pack.attention_patches.samplers.inversion import Trajectory, decode, invert, sample_beside
from pack.attention_patches.samplers.noise import ddpm_step, euler_step, falling, noised, renoised, seeded
from pack.attention_patches.samplers.repaint import RePaint
from pack.attention_patches.samplers.scene import Scene
from toy_diffusion import LEVELS

KINDS = pytest.mark.parametrize("kind, high, low", [("eps", 7.0, 2.0), ("flow", 0.8, 0.3), ("flow", 1.0, 0.9)])
MANY = 200_000


def spread_after(kind, step, high, low):
    """Standard deviation of the noise and mean of the picture after `step` from high to low or back."""
    torch.manual_seed(0)
    clean = torch.full((MANY,), 3.0)
    x = step(clean)
    level = LEVELS[kind](low)
    return float(x.std()), float(x.mean()), level.noise, 3.0 * level.signal


@KINDS
def test_an_ancestral_step_lands_on_the_lower_level(kind, high, low):
    up, down = LEVELS[kind](high), LEVELS[kind](low)

    def step(clean):
        return ddpm_step(noised(clean, up, torch.randn_like), clean, up, down, torch.randn_like)

    std, mean, noise, signal = spread_after(kind, step, high, low)
    assert std == pytest.approx(noise, rel=0.02) and mean == pytest.approx(signal, abs=0.05)


@KINDS
def test_noise_added_lands_on_the_higher_level(kind, high, low):
    up, down = LEVELS[kind](high), LEVELS[kind](low)
    std, mean, noise, signal = spread_after(
        kind, lambda clean: renoised(noised(clean, down, torch.randn_like), down, up, torch.randn_like), low, high
    )
    assert std == pytest.approx(noise, rel=0.02) and mean == pytest.approx(signal, abs=0.05)


def test_the_ancestral_step_is_the_hosts_for_noise_models():
    """k-diffusion's Euler ancestral step: x + d * (down - sigma) + up * noise."""
    x, clean, noise = torch.randn(3, 5), torch.randn(3, 5), torch.randn(3, 5)
    high, low = 5.0, 2.0
    up = (low**2 * (high**2 - low**2) / high**2) ** 0.5
    expected = x + (x - clean) / high * ((low**2 - up**2) ** 0.5 - high) + up * noise
    level = LEVELS["eps"]
    torch.testing.assert_close(ddpm_step(x, clean, level(high), level(low), lambda like: noise), expected)


@pytest.mark.parametrize("kind", LEVELS)
def test_the_last_step_is_the_prediction(kind):
    x, clean = torch.randn(4), torch.randn(4)
    level = LEVELS[kind]
    torch.testing.assert_close(ddpm_step(x, clean, level(0.5), level(0.0), torch.randn_like), clean)
    torch.testing.assert_close(euler_step(x, clean, 0.5, 0.0), clean)


@pytest.mark.parametrize("kind", LEVELS)
def test_an_euler_step_keeps_the_noise_of_the_picture(kind):
    clean, noise, level = torch.randn(9), torch.randn(9), LEVELS[kind]
    at = [clean * level(s).signal + noise * level(s).noise for s in (0.7, 0.2)]
    torch.testing.assert_close(euler_step(at[0], clean, 0.7, 0.2), at[1])


def test_rows_draw_from_seeds_that_follow_each_other():
    like = torch.zeros(3, 2, 4)
    draw = seeded(7)
    first, second = draw(like), draw(like)
    alone = seeded(8)
    assert torch.equal(alone(like[:1])[0], first[1]) and torch.equal(alone(like[:1])[0], second[1])
    assert not torch.equal(first[0], first[1]) and not torch.equal(first, second)


BAD_SCHEDULES = {
    "empty": ([], "has no noise level.*needs two.*more steps"),
    "single": ([14.6], r"has 1 noise level \(14.6\).*needs two.*more steps"),
    "one level, repeated": ([2.0, 2.0, 2.0], r"has 1 noise level \(2\).*needs two"),
    "flipped": ([0.0, 0.5, 1.0], "Sigma 2 of 3 is 0.5, after 0: .*must fall.*Flip Sigmas"),
    "rising at the end": ([1.0, 0.5, 0.6, 0.0], "Sigma 3 of 4 is 0.6, after 0.5: .*must fall"),
    "negative": ([1.0, 0.5, -0.1], "Sigma 3 of 3 is -0.1.*below 0.*scheduler node"),
    "NaN first": ([math.nan, 1.0, 0.0], "Sigma 1 of 3 is nan.*ordinary numbers.*another scheduler"),
    "NaN last": ([2.0, 1.0, math.nan], "Sigma 3 of 3 is nan"),
    "infinite": ([math.inf, 1.0, 0.0], "Sigma 1 of 3 is inf"),
}
bad_schedules = pytest.mark.parametrize("sigmas, words", BAD_SCHEDULES.values(), ids=BAD_SCHEDULES)


@bad_schedules
def test_a_bad_schedule_is_refused_with_value_place_rule_and_remedy(sigmas, words):
    for given in (sigmas, torch.tensor(sigmas)):
        with pytest.raises(BoxwrightError, match=words):
            falling(given)


def test_a_repeated_level_counts_once():
    assert falling(torch.tensor([2.0, 1.0, 1.0, 0.5, 0.0, 0.0])) == [2.0, 1.0, 0.5, 0.0]


PICTURE = torch.linspace(-1, 1, 16).view(1, 1, 4, 4)
PATH = Trajectory((0.0, 1.0, 2.0), torch.stack([PICTURE, PICTURE + 1, PICTURE + 2]), "toy")
MASK = torch.ones(1, 1, 4, 4)


def in_a_scene(method):
    """A masked sampler as a function of (model, sigmas, callback)."""

    def run(model, sigmas, callback=None):
        scene = Scene(PICTURE, MASK, LEVELS["eps"], seeded(3), lambda sigma: 0.5)
        return method.sample(model, PICTURE + 2, sigmas, scene, callback)

    return run


LOOPS = {
    "RePaint": in_a_scene(RePaint(1, 2)),
    "Blended Latents": in_a_scene(BlendedLatents(1)),
    "ILVR": in_a_scene(ILVR(2, StepWindow())),
    "DiffEdit": lambda model, sigmas, callback=None: sample_diff_edit(model, PATH, MASK, sigmas, callback),
    "Direct Inversion": lambda model, sigmas, callback=None: sample_beside(model, PICTURE, PATH, sigmas, callback),
    "decode": lambda model, sigmas, callback=None: decode(model, PICTURE + 2, sigmas, callback),
    "invert": lambda model, sigmas, callback=None: invert(model, PICTURE, sigmas, LEVELS["eps"], 0, None, callback),
}
every_loop = pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)


@every_loop
@bad_schedules
def test_every_loop_refuses_a_bad_schedule_before_its_first_evaluation(loop, sigmas, words):
    def model(x, sigma):
        raise AssertionError("the model was called")

    with pytest.raises(BoxwrightError, match=words):
        loop(model, torch.tensor(sigmas))


@every_loop
def test_a_repeated_level_changes_no_loop(loop):
    def run(sigmas):
        steps = []
        out = loop(lambda x, sigma: 0.3 * x, torch.tensor(sigmas), lambda told: steps.append(told["i"]))
        return out, len(steps)

    (once, steps), (again, other) = run([2.0, 1.0, 0.0]), run([2.0, 2.0, 1.0, 1.0, 0.0, 0.0])
    assert torch.equal(once, again) and steps == other > 0
