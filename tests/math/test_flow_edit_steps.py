"""FlowEdit, FlowAlign and Uni-Edit where the exact velocity is known, and against steps computed by hand."""

import pytest
import torch
from pack.attention_patches.core.types import BoxwrightError
from pack.attention_patches.samplers.flow_align import FlowAlign
from pack.attention_patches.samplers.flow_edit import FlowEdit
from pack.attention_patches.samplers.inversion import decode
from pack.attention_patches.samplers.noise import noised, seeded
from pack.attention_patches.samplers.straight import PathTime, Prompts
from pack.attention_patches.samplers.uni_edit import UniEdit, uni_inverted
from toy_diffusion import FINE, LEVELS, SIGMAS, Gaussian, half_mask, picture, scene

KINDS = pytest.mark.parametrize("kind", LEVELS)
NAMED = dict(ids=lambda method: type(method).__name__)
METHODS = pytest.mark.parametrize("method", [FlowEdit(2, 0.3), FlowAlign(2), UniEdit(2.0)], **NAMED)


def pair(kind, before=0.0, after=1.5, spread=0.7):
    return Prompts(Gaussian(kind, before, spread), Gaussian(kind, after, spread))


def same_noise(seed=4):
    """A draw that returns the same noise every time."""
    return lambda like: seeded(seed)(like)


def curved(a, b):
    """A model of no use whose predictions no formula could get right by accident."""
    return lambda x, sigma: torch.tanh(a * x + sigma) * b + 0.1 * x.roll(1, dims=1)


@KINDS
def test_the_host_latent_of_a_point_is_what_the_host_makes_of_picture_and_noise(kind):
    clean, noise = picture(seed=1), picture(seed=2)
    for sigma in SIGMAS[kind]:
        moment = PathTime.of(sigma, LEVELS[kind])
        expected = noised(clean, LEVELS[kind](sigma), lambda like: noise)
        torch.testing.assert_close(moment.on_path(clean, noise) * moment.scale, expected)


@KINDS
@pytest.mark.parametrize("method", [FlowEdit(), FlowEdit(3), FlowAlign(), FlowAlign(3)])
def test_equal_prompts_return_the_picture(kind, method):
    source = picture()
    same = Prompts(*[curved(0.8, 1.3)] * 2)
    edited = method.sample(same, SIGMAS[kind], scene(kind, source, draw=seeded(1)))
    torch.testing.assert_close(edited, source, atol=1e-5, rtol=0)


@KINDS
@pytest.mark.parametrize("skip", [0, 20])
def test_flow_edit_moves_a_normal_picture_as_the_exact_flow_does(kind, skip):
    """Both worlds normal with one spread: at time t the way left is (1 - t) of the difference of their means, and what
    the edit has missed by starting at t0 shrinks as the spread of the noisy pictures does."""
    source, sigmas = picture(), FINE[kind][skip:]
    edited = FlowEdit().sample(pair(kind), sigmas, scene(kind, source, draw=seeded(1)))
    t0, spread = PathTime.of(sigmas[0], LEVELS[kind]).time, 0.7
    missed = (1 - t0) * spread / ((1 - t0) ** 2 * spread**2 + t0**2) ** 0.5
    assert (missed > 0.1) == (skip > 0)
    torch.testing.assert_close(edited - source, torch.full_like(source, 1.5 * (1 - missed)), atol=0.04, rtol=0)


@KINDS
def test_a_source_that_knows_nothing_but_the_picture_makes_it_ordinary_sampling(kind):
    """Then the picture's own velocity leads back to it, and the edit's noisy point is that of image to image; for a
    flow model from full noise, of text to image. `finish` 1 says the same without a source."""
    source, target = picture(), Gaussian(kind, 1.5, 0.7)
    start = noised(source, LEVELS[kind](SIGMAS[kind][0]), same_noise())
    assert kind != "flow" or torch.equal(start, same_noise()(source))
    expected = decode(target, start, SIGMAS[kind])
    knows = Prompts(lambda x, sigma: source, target)
    for method in (FlowEdit(), FlowEdit(finish=1.0), FlowEdit(finish=0.5)):
        edited = method.sample(knows, SIGMAS[kind], scene(kind, source, draw=same_noise()))
        torch.testing.assert_close(edited, expected, atol=1e-4, rtol=0)


def path_point(kind, x0, noise, sigma):
    """(t, what the model's latent has to be divided by, the point), written out for both kinds of model."""
    t, scale = (sigma, 1.0) if kind == "flow" else (sigma / (1 + sigma), 1 + sigma)
    return t, scale, (1 - t) * x0 + t * noise


@KINDS
@pytest.mark.parametrize("method", [FlowEdit(), FlowAlign()], **NAMED)
def test_two_steps_are_those_computed_by_hand(kind, method):
    sigmas = [0.9, 0.4, 0.0] if kind == "flow" else [6.0, 0.5, 0.0]
    x0, prompts, draw = picture(), Prompts(curved(0.8, 1.3), curved(-0.5, 0.9)), seeded(3)
    edited = method.sample(prompts, sigmas, scene(kind, x0, draw=seeded(3)))
    x = x0
    for sigma, lower in zip(sigmas, sigmas[1:]):
        t, scale, q = path_point(kind, x0, draw(x0), sigma)
        step = path_point(kind, x0, x0, lower)[0] - t
        p = x + q - x0
        v_p = (p - prompts.target(p * scale, sigma)) / t
        v_q = (q - prompts.source(q * scale, sigma)) / t
        x = x + step * (v_p - v_q)
        if isinstance(method, FlowAlign):
            x = x + 0.01 * (q - t * v_q - p + t * v_p)
    torch.testing.assert_close(edited, x)
    assert (edited - x0).abs().mean() > 0.1


@KINDS
def test_uni_edit_takes_the_step_computed_by_hand(kind):
    sigmas = [0.9, 0.4, 0.0] if kind == "flow" else [6.0, 0.5, 0.0]
    x0, prompts = picture(), Prompts(curved(0.8, 1.3), curved(-0.5, 0.9))
    edited = UniEdit(5.0).sample(prompts, sigmas, scene(kind, x0))
    x = uni_inverted(prompts.source, x0, sigmas)[0]
    for sigma, lower in zip(sigmas, sigmas[1:]):
        v_source, v_target = ((x - prompt(x, sigma)) / sigma for prompt in (prompts.source, prompts.target))
        g = v_target - v_source
        m = g.abs().mean(1)
        low, high = m.flatten(1).min(1).values[:, None, None], m.flatten(1).max(1).values[:, None, None]
        m = ((m - low) / (high - low))[:, None]
        step = lower - sigma
        x = x + 5.0 * step * (1 + m) * g + step * (m * v_target + (1 - m) * v_source)
    torch.testing.assert_close(edited, x, atol=1e-4, rtol=1e-4)


@KINDS
def test_the_step_of_uni_edit_is_the_same_on_the_straight_path(kind):
    """So models of noise need no conversion there: x of the host is the point times its scale, at both ends."""
    sigma, lower = SIGMAS[kind][2:4]
    x, clean = picture(seed=7), picture(seed=8)
    here, there = PathTime.of(sigma, LEVELS[kind]), PathTime.of(lower, LEVELS[kind])
    point = x / here.scale
    moved = point + (there.time - here.time) * here.velocity(point, clean)
    torch.testing.assert_close(moved * there.scale, x + (lower - sigma) * (x - clean) / sigma, atol=1e-5, rtol=1e-5)


@KINDS
def test_the_inverted_picture_is_drawn_again(kind):
    source, model = picture(), Gaussian(kind, 0.5, 0.7)
    noise, path = uni_inverted(model, source, FINE[kind])
    assert len(model.sigmas) == len(FINE[kind])  # one for each step, one more at first
    torch.testing.assert_close(decode(model, noise, FINE[kind]), source, atol=0.05, rtol=0)
    assert torch.equal(path.at(0.0), source) and torch.equal(path.at(FINE[kind][0]), noise)
    assert (noise - source).abs().mean() > 0.5


@KINDS
@METHODS
def test_what_the_mask_leaves_out_is_the_picture_itself(kind, method):
    source = picture()
    mask = half_mask(source)
    edited = method.sample(pair(kind), SIGMAS[kind], scene(kind, source, mask, draw=seeded(1)))
    keep = mask.expand_as(source) == 0
    assert torch.equal(edited[keep], source[keep])
    assert (edited[~keep] - source[~keep]).abs().mean() > 0.5


@KINDS
@pytest.mark.parametrize("method", [FlowEdit(), FlowAlign()])
def test_grey_takes_a_share_of_the_step(kind, method):
    source, sigmas = picture(), [SIGMAS[kind][1], 0.0]
    whole, half, none = (
        method.sample(pair(kind), sigmas, scene(kind, source, torch.full_like(source[:, :1], share), seeded(1)))
        for share in (1.0, 0.5, 0.0)
    )
    torch.testing.assert_close(half - source, (whole - source) / 2, atol=1e-5, rtol=1e-5)
    assert torch.equal(none, source)


@KINDS
@METHODS
def test_prompts_are_asked_as_often_as_announced_and_every_step_is_reported(kind, method):
    prompts, seen, steps = pair(kind), [], len(SIGMAS[kind]) - 1
    method.sample(prompts, SIGMAS[kind], scene(kind, picture(), draw=seeded(1)), seen.append)
    calls = method.calls(steps)
    assert (len(prompts.source.sigmas), len(prompts.target.sigmas)) == (calls.source, calls.target)
    assert [report["i"] for report in seen] == list(range(steps))
    assert [report["sigma"] for report in seen] == SIGMAS[kind][:-1]


@KINDS
@METHODS
def test_a_row_is_the_same_in_any_batch(kind, method):
    source = picture(3)
    together = method.sample(pair(kind), SIGMAS[kind], scene(kind, source, draw=seeded(10)))
    for row in range(3):
        alone = method.sample(pair(kind), SIGMAS[kind], scene(kind, source[row : row + 1], draw=seeded(10 + row)))
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


@KINDS
def test_draws_bring_the_result_closer_to_the_mean_of_many(kind):
    """With models that are not linear the result depends on the noise; the more draws, the less."""
    source, prompts = picture(1), Prompts(curved(0.8, 1.3), curved(-0.5, 0.9))

    def scatter(draws):
        edits = [FlowEdit(draws).sample(prompts, SIGMAS[kind], scene(kind, source, draw=seeded(s))) for s in range(6)]
        return float(torch.stack(edits).std(0).mean())

    assert scatter(16) < 0.5 * scatter(1)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: FlowEdit(0), "draws is 0; choose 1 to 64"),
        (lambda: FlowAlign(65), "draws is 65"),
        (lambda: FlowEdit(finish=1.1), "finish is 1.1"),
        (lambda: UniEdit(-1.0), "Uni-Edit is -1; choose 0 to 100"),
    ],
)
def test_bad_settings_are_refused(make, words):
    with pytest.raises(BoxwrightError, match=words):
        make()
