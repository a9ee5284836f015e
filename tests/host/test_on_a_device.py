"""Every method with the model on a pretended device (`pretend_device`), in 16 bits."""

import os
from collections import Counter
from dataclasses import replace
from functools import cache

import comfy.sample
import comfy.samplers
import pretend_device
import pytest
import tiny_models as tiny
import torch
from pack.attention_patches.core.token_alignment import token_alignment
from pack.attention_patches.core.types import StepWindow
from pack.attention_patches.host.install import install
from pack.attention_patches.host.prompt_to_prompt import edited
from pack.attention_patches.host.recorder import recorded
from pack.attention_patches.host.region_prompt import RegionConditioning
from pack.attention_patches.host.samplers.diff_edit import edit
from pack.attention_patches.host.samplers.diff_mask import measure
from pack.attention_patches.host.samplers.h_space import edit_h_space
from pack.attention_patches.host.samplers.inversion import direct_inversion_sampler, invert_latent
from pack.attention_patches.host.samplers.loops import sampler
from pack.attention_patches.methods.bounded_attention import BoundedAttention
from pack.attention_patches.methods.box_constraint import preset
from pack.attention_patches.methods.dense_diffusion import DenseDiffusion
from pack.attention_patches.methods.prompt_to_prompt import LocalBlend, Prompts, PromptToPrompt
from pack.attention_patches.methods.recorder import Recording, Records
from pack.attention_patches.methods.rectified_attention import RectifiedAttention
from pack.attention_patches.methods.region_prompt import RegionPrompt
from pack.attention_patches.methods.reweight import Reweight
from pack.attention_patches.samplers.blended_latents import BlendedLatents
from pack.attention_patches.samplers.diff_mask import DiffMask
from pack.attention_patches.samplers.h_space import HSpace
from pack.attention_patches.samplers.ilvr import ILVR
from pack.attention_patches.samplers.repaint import RePaint
from torch.nn.attention import SDPBackend, sdpa_kernel

FULL = bool(os.environ.get("BOXWRIGHT_FULL"))  # every method on every family in both
HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}
FAMILIES = ["sd15", "sdxl", "flux"]
UNETS = ["sd15", "sdxl"]
SIZE = (8, 12)
ALWAYS = StepWindow()


@pytest.fixture(scope="module")
def models():
    """(family, dtype) -> the same MODEL on the CPU and on the device, made when first asked for."""
    made = {}

    def pair(family, dtype):
        if (family, dtype) not in made:
            there = pretend_device.to_device(tiny.build(family, dtype=dtype))
            made[family, dtype] = tiny.build(family, dtype=dtype), there
        return made[family, dtype]

    return pair


def prompt(family, seed, **values):
    return tiny.conditioning(family, tiny.text(seed=seed), seed=seed, **values)


def draw(family, model, positive, steps=2, batch=1, **options):
    return tiny.run(family, model, positive, noise=tiny.latent(family, SIZE, batch), steps=steps, **options)


def custom(family, model, loop, steps):
    sigmas = schedule(family, model, steps)
    noise = torch.zeros_like(tiny.latent(family, SIZE))
    return comfy.sample.sample_custom(
        model, noise, 3.0, loop, sigmas, prompt(family, 1), prompt(family, 2), tiny.latent(family, SIZE, seed=11),
        disable_pbar=True, seed=5,
    )  # fmt: skip


def schedule(family, model, steps):
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps).cpu()


def with_edits(edits_of):
    def method(family, model, steps):
        layout = tiny.layout()
        patched = install(model, layout, edits_of(layout))
        return draw(family, patched, tiny.conditioning(family, layout.prompt, layout.key), steps)

    return method


def masked(loop):
    def method(family, model, steps):
        mask = torch.zeros(SIZE[0] * 8, SIZE[1] * 8)
        mask[:, :32] = 1.0
        return custom(family, model, sampler("loop", loop.sample, mask), steps)

    return method


def unpatched(family, model, steps):
    return draw(family, model, prompt(family, 1), steps)


def region_conditioning(family, model, steps):
    layout = tiny.layout()
    texts = [prompt(family, 3), prompt(family, 4)]
    positive = RegionConditioning(base="outside").combined(prompt(family, 1), layout.regions, texts)
    return draw(family, model, positive, steps)


def attention_recorder(family, model, steps):
    layout = tiny.layout()
    records = Records(layout.prompt.tokens, Recording(resolutions="all"))
    draw(family, recorded(model, layout, records), tiny.conditioning(family, layout.prompt, layout.key), steps)
    return records.latest.map_of("w1 w2")


def prompt_to_prompt(family, model, steps):
    texts = [tiny.text(seed=1), tiny.text(seed=2)]
    tokens = [text.tokens for text in texts]
    layout = tiny.Layout(texts[0], (), torch.zeros(0, 77, dtype=torch.bool), (), "pair")
    prompts = Prompts(layout, (tokens[1],), (token_alignment(*tokens),))
    (row, extra), (other, more) = (tiny.conditioning(family, text, seed=5 + n)[0] for n, text in enumerate(texts))
    joined = {name: torch.cat([value, more[name]]) for name, value in extra.items()}
    method = PromptToPrompt(ALWAYS, ALWAYS, blend=LocalBlend(("w1",), start=0.0), weights=(("w2", 2.0),))
    positive = [[torch.cat([row, other]), {**joined, "boxwright_layout": "pair"}]]
    return draw(family, edited(model, prompts, method), positive, steps, batch=2)


def h_space(family, model, steps):
    return unpatched(family, edit_h_space(model, prompt(family, 3), prompt(family, 4), HSpace(window=ALWAYS)), steps)


def diff_edit(family, model, steps):
    """Mask, inversion with its check, and the edit itself."""
    latent, sigmas = tiny.latent(family, SIZE, seed=11), schedule(family, model, steps)
    found = measure(model, latent, prompt(family, 1), prompt(family, 4), DiffMask(draws=2, method="otsu"), 3)
    path = invert_latent(model, latent, prompt(family, 1), sigmas, check=True).trajectory
    mask = found.mask.repeat_interleave(8, 1).repeat_interleave(8, 2)
    return edit(model, latent, path, mask, prompt(family, 4), prompt(family, 2), 3.0, sigmas)[0]


def direct_inversion(family, model, steps):
    path = invert_latent(model, tiny.latent(family, SIZE, seed=11), prompt(family, 1), schedule(family, model, steps))
    return custom(family, model, direct_inversion_sampler(path.trajectory), steps)


METHODS = {
    "rectified attention": with_edits(RectifiedAttention(window=ALWAYS, end_tokens="own").edits),
    "reweight": with_edits(Reweight((("w1", 4.0),), region=1).edits),
    "reweight, renormalised": with_edits(Reweight((("w1", 4.0),), renormalize=True).edits),
    "dense": with_edits(DenseDiffusion(window=ALWAYS).edits),
    "bound": with_edits(BoundedAttention(ALWAYS, "all").edits),
    "region conditioning": region_conditioning,
    "couple": with_edits(RegionPrompt().edits),
    "recorder": attention_recorder,
    "prompt to prompt": prompt_to_prompt,
    "repaint": masked(RePaint(jump=1, repeats=2)),
    "ilvr": masked(ILVR(2)),
    "blended latents": masked(BlendedLatents(grow=1)),
    "diff edit": diff_edit,
    "direct inversion": direct_inversion,
}
ON_UNETS = {
    "box constraint": with_edits(replace(preset("strict", "boxdiff"), iterations=1, refine_iterations=1).guides),
    "fast": with_edits(preset("standard", "fast").guides),
    "attend and excite": with_edits(preset("standard", "attend_excite").guides),
    "h-space": h_space,
}
EVERY = {**METHODS, **ON_UNETS}
PAIRS = [(family, name) for name in EVERY for family in (FAMILIES if name in METHODS else UNETS)]
CASES = [(*pair, dtype) for pair in PAIRS for dtype in HALF]
FEW = [("sd15", "float16"), ("sd15", "bfloat16"), ("sdxl", "float16"), ("flux", "bfloat16")]
# Kernels that round otherwise for tensors that lie otherwise; through a gradient in 16 bits it grows.
ROUNDING = {"ilvr": 1e-5, "box constraint": 0.2, "fast": 0.2, "attend and excite": 0.2}


@pytest.mark.parametrize("family, name, dtype", CASES if FULL else [c for c in CASES if (c[0], c[2]) in FEW])
def test_a_method_does_on_a_device_what_it_does_on_the_cpu(models, family, name, dtype):
    here, there = models(family, HALF[dtype])
    with sdpa_kernel(SDPBackend.MATH):  # what the device computes attention with
        expected = EVERY[name](family, here, 2)
    with pretend_device.host_with_device():
        found = EVERY[name](family, there, 2)
    assert bool(torch.isfinite(expected).all())
    assert float((found - expected).norm() / expected.norm()) <= ROUNDING.get(name, 0.0)


# --- waiting for the device ---


def waits_per_step(method, family, model):
    """What a step costs, without what a run costs once."""

    def waits(steps):
        with pretend_device.host_with_device() as traffic:
            method(family, model, steps)
        return Counter(traffic.waits)

    more = waits(3)
    more.subtract(waits(1))
    return {origin: count / 2 for origin, count in more.items() if count}


@pytest.fixture(scope="module")
def of_the_host(models):
    """family -> waits of an unpatched step, counted when first asked for."""

    @cache
    def count(family):
        return sum(waits_per_step(unpatched, family, models(family, torch.bfloat16)[1]).values())

    return count


LEAN = ["rectified attention", "reweight", "reweight, renormalised", "dense", "bound", "region conditioning", "couple"]
ON_OTHERS = [("flux", "rectified attention"), ("flux", "dense"), ("flux", "couple"), ("sdxl", "couple")]


@pytest.mark.parametrize("family, name", [("sd15", name) for name in LEAN] + ON_OTHERS)
def test_a_step_waits_for_the_device_once_more_than_the_hosts_own(models, of_the_host, family, name):
    found = waits_per_step(EVERY[name], family, models(family, torch.bfloat16)[1])
    assert sum(found.values()) <= of_the_host(family) + 1, found


def test_prompt_to_prompt_waits_twice_more_where_it_blends(models, of_the_host):
    found = waits_per_step(prompt_to_prompt, "sd15", models("sd15", torch.bfloat16)[1])
    assert sum(found.values()) <= of_the_host("sd15") + 2, found


# --- the pretended device ---


@pytest.mark.parametrize(
    "mix",
    [
        lambda there, here: there + here,
        lambda there, here: there.add_(here),
        lambda there, here: torch.cat([there, here]),
        lambda there, here: torch.where(here > 0, there, there),
        lambda there, here: here[there.long()],
        lambda there, here: there.index_select(0, here.long()),
        lambda there, here: here.new_zeros(()).add_(there.sum()),
        lambda there, here: there.numpy(),
    ],
)
def test_it_refuses_what_a_device_refuses(mix):
    with pretend_device.pretending():
        here = torch.ones(3)
        there = here.to(pretend_device.DEVICE)
        with pytest.raises(pretend_device.Misplaced):
            mix(there, here)


@pytest.mark.parametrize(
    "operation, waits, arrivals, departures",
    [
        (lambda there: there * torch.tensor(2.0), 0, 0, 0),
        (lambda there: there.masked_fill(there > 0, 1.0), 0, 0, 0),
        (lambda there: there.index_select(0, there.long()), 0, 0, 0),
        (lambda there: bool((there > 0).any()), 1, 0, 0),
        (lambda there: there[there > 0], 1, 0, 0),
        (lambda there: there[torch.tensor([0])], 1, 1, 0),
        (lambda there: there[[0, 1]], 1, 1, 0),
        (lambda there: there.new_tensor([1.0]), 1, 1, 0),
        (lambda there: torch.zeros(2, device=there.device), 0, 0, 0),
        (lambda there: torch.ones(2).to(there, non_blocking=True), 0, 1, 0),
        (lambda there: there.tolist(), 1, 0, 1),
    ],
)
def test_it_counts(operation, waits, arrivals, departures):
    there = pretend_device.OnDevice(torch.ones(3))
    with pretend_device.pretending() as traffic:
        operation(there)
    assert (len(traffic.waits), len(traffic.arrivals), len(traffic.departures)) == (waits, arrivals, departures)


def test_gradients_are_those_of_the_cpu():
    def gradient(x, weight):
        x = x.requires_grad_()
        maps = (x @ weight).softmax(-1)
        return torch.autograd.grad((maps[:, :2].sum(1).square() + (x * maps.mean()).sum(1)).sum(), x)[0]

    with torch.inference_mode(False), torch.enable_grad():
        x, weight = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), torch.eye(5)
        expected = gradient(x.clone(), weight)
        with pretend_device.pretending():
            found = gradient(x.clone().to(pretend_device.DEVICE), weight.to(pretend_device.DEVICE)).cpu()
    torch.testing.assert_close(found, expected)
