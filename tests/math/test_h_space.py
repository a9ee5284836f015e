"""The clean term of a step moves, its noise does not; whatever the schedule."""

import math

import pytest
import torch
from pack.attention_patches.core.types import BoxwrightError
from pack.attention_patches.samplers.h_space import HSpace, clean_term_only
from pack.attention_patches.samplers.noise import euler_step
from toy_diffusion import LEVELS


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("target", [0.5, 0.2, 0.0])
def test_an_euler_step_arrives_where_the_asymmetric_process_does(kind, target):
    x, plain, shifted = torch.randn(3, 2, 4, 5)
    level, sigma = LEVELS[kind], 0.8
    noise = (x - level(sigma).signal * plain) / level(sigma).noise
    expected = level(target).signal * shifted + level(target).noise * noise
    told = clean_term_only(plain, shifted, sigma, target, level)
    torch.testing.assert_close(euler_step(x, told, sigma, target), expected)


def test_no_difference_is_no_change():
    plain, h = torch.randn(2, 4, 5, 5), torch.randn(2, 8, 2, 2)
    assert torch.equal(clean_term_only(plain, plain, 3.0, 2.0, LEVELS["eps"]), plain)
    assert HSpace(2.0).shift(h, h).abs().max() == 0
    assert torch.equal(HSpace(-0.5).shift(torch.zeros_like(h), h), -0.5 * h)


@pytest.mark.parametrize("strength", [10.1, -10.1, math.nan, math.inf])
def test_strengths_out_of_range_are_refused(strength):
    with pytest.raises(BoxwrightError, match="choose -10 to 10"):
        HSpace(strength)
