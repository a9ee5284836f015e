"""Noise levels and single steps against their definitions and their statistics."""

import pytest
import torch
from pack.attention_patches.noise import ddpm_step, euler_step, falling, noised, renoised, seeded
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


@pytest.mark.parametrize("sigmas", [[1.0], [1.0, 1.0, 0.0], [0.5, 1.0], [1.0, -0.1]])
def test_schedules_must_fall(sigmas):
    with pytest.raises(ValueError, match="fall"):
        falling(torch.tensor(sigmas))
