"""RePaint, Blended Latent Diffusion and ILVR in a world where the perfect denoiser is known."""

import pytest
import torch
from pack.attention_patches.core.masks import dilated
from pack.attention_patches.core.types import BoxwrightError, StepWindow
from pack.attention_patches.samplers.blended_latents import BlendedLatents
from pack.attention_patches.samplers.ilvr import ILVR, low_pass
from pack.attention_patches.samplers.noise import noised, seeded
from pack.attention_patches.samplers.repaint import RePaint
from toy_diffusion import FINE, LEVELS, SIGMAS, Gaussian, half_mask, picture, scene

KINDS = pytest.mark.parametrize("kind", LEVELS)
METHODS = pytest.mark.parametrize("method", [RePaint(3, 2), BlendedLatents(1), ILVR(2, StepWindow())])


def start(kind, source, seed=1):
    level = LEVELS[kind](SIGMAS[kind][0])
    return noised(source, level, seeded(seed))


# RePaint's walk


@pytest.mark.parametrize(
    "steps, jump, repeats, evaluations",
    [
        (250, 10, 10, 2410),  # the paper's setting, section 5
        (50, 10, 10, 410),
        (20, 5, 5, 80),
        (20, 10, 1, 20),
        (20, 20, 10, 20),
        (20, 19, 3, 58),
        (1, 1, 10, 1),
    ],
)
def test_the_walk_has_the_published_length(steps, jump, repeats, evaluations):
    method = RePaint(jump, repeats)
    walk = [0, *method.walk(steps)]
    moves = [b - a for a, b in zip(walk, walk[1:])]
    assert moves.count(1) == evaluations == method.evaluations(steps)
    assert set(moves) <= {1, -1}
    assert moves.count(-1) == evaluations - steps
    assert walk[-1] == steps and walk.count(steps) == 1 and min(walk) == 0


def test_the_walk_of_a_small_case_by_hand():
    assert RePaint(2, 3).walk(5) == [1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 3, 4, 3, 2, 3, 4, 3, 2, 3, 4, 5]


@KINDS
def test_repaint_calls_the_model_as_often_as_it_says_and_at_the_noisy_ends(kind):
    source, method, model = picture(), RePaint(2, 3), Gaussian(kind)
    seen = []
    method.sample(model, start(kind, source), SIGMAS[kind], scene(kind, source, half_mask(source)), seen.append)
    steps = len(SIGMAS[kind]) - 1
    assert len(model.sigmas) == method.evaluations(steps) == len(seen)
    walk = [0, *method.walk(steps)]
    assert model.sigmas == [SIGMAS[kind][a] for a, b in zip(walk, walk[1:]) if b > a]
    assert [step["i"] for step in seen] == sorted(step["i"] for step in seen) and seen[-1]["i"] == steps - 1


@KINDS
def test_the_filled_part_has_the_worlds_statistics(kind):
    source = picture(4, (40, 60))
    filled = RePaint(8, 2).sample(
        Gaussian(kind, 2.0, 0.5), start(kind, source), FINE[kind], scene(kind, source, half_mask(source))
    )[..., 30:]
    assert float(filled.mean()) == pytest.approx(2.0, abs=0.02)
    assert float(filled.std()) == pytest.approx(0.5, abs=0.06)


# What all share


@KINDS
@pytest.mark.parametrize("method", [RePaint(3, 2), BlendedLatents(0), BlendedLatents(3)])
def test_the_known_part_is_the_source_exactly(kind, method):
    source = picture()
    out = method.sample(Gaussian(kind, 4.0), start(kind, source), SIGMAS[kind], scene(kind, source, half_mask(source)))
    left = source.shape[-1] // 2
    assert torch.equal(out[..., :left], source[..., :left])
    assert float((out[..., left:] - source[..., left:]).abs().mean()) > 0.5


@KINDS
@METHODS
def test_a_batch_is_single_runs_with_following_seeds(kind, method):
    source = picture(3)
    x, mask = start(kind, source), half_mask(source)
    together = method.sample(Gaussian(kind), x, SIGMAS[kind], scene(kind, source, mask, seeded(5)))
    for row in range(3):
        part = slice(row, row + 1)
        alone = scene(kind, source[part], mask[part], seeded(5 + row))
        torch.testing.assert_close(method.sample(Gaussian(kind), x[part], SIGMAS[kind], alone), together[part])


@KINDS
@METHODS
def test_models_of_five_axes_are_sampled_alike(kind, method):
    source = picture()
    x, mask = start(kind, source), half_mask(source)
    flat = method.sample(Gaussian(kind), x, SIGMAS[kind], scene(kind, source, mask, seeded(5)))
    deep = method.sample(
        Gaussian(kind), x[:, :, None], SIGMAS[kind], scene(kind, source[:, :, None], mask[:, :, None], seeded(5))
    )
    torch.testing.assert_close(deep[:, :, 0], flat)


# Blended Latent Diffusion


@KINDS
def test_the_background_carries_the_noise_of_the_level_reached(kind):
    source = 0.0 * picture(4, (40, 60))
    seen = []
    BlendedLatents().sample(
        Gaussian(kind),
        start(kind, source),
        SIGMAS[kind],
        scene(kind, source, half_mask(source)),
        lambda step: seen.append(float(step["x"][..., :30].std())),
    )
    assert seen == pytest.approx([LEVELS[kind](sigma).noise for sigma in SIGMAS[kind][1:]], rel=0.05)


def test_the_mask_shrinks_to_its_own_size():
    method = BlendedLatents(grow=4, grow_until=0.5)
    assert [method.radius(done / 8) for done in range(9)] == [4, 3, 2, 1, 0, 0, 0, 0, 0]
    source = picture(1, (20, 20))
    mask = torch.zeros(1, 1, 20, 20)
    mask[..., 9:11, 9:11] = 1.0
    still = []
    method.sample(
        lambda x, sigma: torch.full_like(x, 50.0),
        source,
        SIGMAS["eps"],
        scene("eps", source, mask, torch.zeros_like),
        lambda step: still.append((step["x"] == source).all(1)[0]),
    )
    for done, kept in enumerate(still, 1):
        assert torch.equal(~kept, dilated(mask[0], method.radius(done / 8))[0] > 0)


def test_thin_masks_grow_by_nothing_is_the_plain_method():
    source = picture()
    mask = half_mask(source)
    runs = [
        BlendedLatents(*setting).sample(Gaussian("eps"), source, SIGMAS["eps"], scene("eps", source, mask, seeded(2)))
        for setting in ((0, 0.5), (0, 1.0), (4, 0.01))
    ]
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])


# ILVR


@KINDS
def test_factor_1_reproduces_the_reference(kind):
    source = picture()
    out = ILVR(1, StepWindow()).sample(Gaussian(kind, 3.0), start(kind, source), SIGMAS[kind], scene(kind, source))
    torch.testing.assert_close(out, source, atol=1e-5, rtol=0)


@KINDS
@pytest.mark.parametrize("factor", [2, 3, 8])
def test_low_frequencies_are_the_references_and_high_ones_the_worlds(kind, factor):
    source = picture(2, (24, 24)) + 2.0
    out = ILVR(factor, StepWindow()).sample(
        Gaussian(kind, 0.0, 0.5), start(kind, source), SIGMAS[kind], scene(kind, source)
    )
    coarse = torch.nn.functional.adaptive_avg_pool2d(out - source, 24 // factor)
    plain = torch.nn.functional.adaptive_avg_pool2d(source, 24 // factor)
    assert float(coarse.abs().mean()) < 0.25 * float(plain.abs().mean())
    assert float((out - source).abs().mean()) > 0.2


@pytest.mark.parametrize("factor", [1, 2, 4, 5, 64])
def test_the_low_pass_keeps_constants_and_size(factor):
    flat = torch.full((2, 4, 9, 13), 0.7)
    torch.testing.assert_close(low_pass(flat, factor), flat)
    assert low_pass(picture(1, (9, 13)), factor).std() <= picture(1, (9, 13)).std()


def test_outside_its_window_and_mask_the_reference_does_not_count():
    source = picture()
    sigmas = SIGMAS["eps"]

    def run(method, mask=None, reference=source):
        rising = {sigma: i / len(sigmas) for i, sigma in enumerate(sigmas)}
        place = scene("eps", reference, mask, torch.zeros_like, rising.__getitem__)
        return method.sample(Gaussian("eps"), start("eps", source), sigmas, place)

    off = run(ILVR(2, StepWindow(0.95, 1.0)))
    torch.testing.assert_close(off, run(ILVR(2, StepWindow(0.95, 1.0)), reference=source + 9))
    assert not torch.allclose(run(ILVR(2, StepWindow(0.0, 0.5))), off)
    half = run(ILVR(1, StepWindow()), half_mask(source))
    left = source.shape[-1] // 2
    torch.testing.assert_close(half[..., left:], source[..., left:], atol=1e-5, rtol=0)
    torch.testing.assert_close(half[..., :left], off[..., :left])


# Settings


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: RePaint(0, 1), "jump length is 0; choose 1 to 100"),
        (lambda: RePaint(101, 1), "jump length is 101"),
        (lambda: RePaint(1, 0), "repeats is 0; choose 1 to 50"),
        (lambda: RePaint(1, 51), "repeats is 51"),
        (lambda: BlendedLatents(-1), "grow by -1 cells; choose 0 to 64"),
        (lambda: BlendedLatents(1, 0.0), "grow_until is 0; choose a value above 0"),
        (lambda: ILVR(0), "factor is 0; choose 1 to 64"),
        (lambda: ILVR(65), "factor is 65"),
    ],
)
def test_settings_out_of_range_are_refused(make, words):
    with pytest.raises(BoxwrightError, match=words):
        make()
