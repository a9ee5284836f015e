"""Every method with the model on a pretended device (`pretend_device`), in 16 bits."""

import os
import tempfile
from collections import Counter
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import comfy.sample
import comfy.samplers
import pretend_device
import pytest
import tiny_loras
import tiny_models as tiny
import torch
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise
from pack.attention_patches.core.pictures import Part, PictureGuide
from pack.attention_patches.core.token_alignment import token_alignment
from pack.attention_patches.core.types import Box, StepWindow
from pack.attention_patches.host.arranged_noise import arrange
from pack.attention_patches.host.clip_losses import direction_loss, text_loss
from pack.attention_patches.host.install import install
from pack.attention_patches.host.loss_guidance import guide_by_pictures
from pack.attention_patches.host.prompt_fit import fit_prompt
from pack.attention_patches.host.prompt_to_prompt import edited
from pack.attention_patches.host.recorder import recorded
from pack.attention_patches.host.region_conditioning import RegionConditioning
from pack.attention_patches.host.samplers.diff_edit import edit
from pack.attention_patches.host.samplers.diff_mask import measure
from pack.attention_patches.host.samplers.flow_edit import FlowEditing, edit_by_flow
from pack.attention_patches.host.samplers.h_space import edit_h_space
from pack.attention_patches.host.samplers.inversion import direct_inversion_sampler, invert_latent
from pack.attention_patches.host.samplers.loops import sampler
from pack.attention_patches.host.samplers.region_strength import redrawn_by_strength
from pack.attention_patches.host.word_mask import WordMask, attended
from pack.attention_patches.methods.arranged_noise import ArrangedNoise
from pack.attention_patches.methods.bounded_attention import BoundedAttention
from pack.attention_patches.methods.box_constraint import preset
from pack.attention_patches.methods.dense_diffusion import DenseDiffusion
from pack.attention_patches.methods.prompt_to_prompt import LocalBlend, Prompts, PromptToPrompt
from pack.attention_patches.methods.recorder import Recording, Records
from pack.attention_patches.methods.rectified_attention import RectifiedAttention
from pack.attention_patches.methods.region_lora import RegionLora
from pack.attention_patches.methods.region_prompt import RegionPrompt
from pack.attention_patches.methods.reweight import Reweight
from pack.attention_patches.samplers.blended_latents import BlendedLatents
from pack.attention_patches.samplers.clip_loss import Crops
from pack.attention_patches.samplers.color_loss import ColorLoss
from pack.attention_patches.samplers.diff_mask import DiffMask
from pack.attention_patches.samplers.h_space import HSpace
from pack.attention_patches.samplers.ilvr import ILVR
from pack.attention_patches.samplers.prompt_fit import PromptFit
from pack.attention_patches.samplers.repaint import RePaint
from pack.nodes.parts.arrangement import draw_arrangement
from region_loras import with_loras
from robust import our_nodes
from test_clip_loss import clip_of, vision_of
from torch.nn.attention import SDPBackend, sdpa_kernel

FULL = bool(os.environ.get("BOXWRIGHT_FULL"))  # every method on every family in both
HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}
FAMILIES = ["sd15", "sdxl", "flux"]
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
        model,
        noise,
        3.0,
        loop,
        sigmas,
        prompt(family, 1),
        prompt(family, 2),
        tiny.latent(family, SIZE, seed=11),
        disable_pbar=True,
        seed=5,
    )


def schedule(family, model, steps):
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps).cpu()


def with_edits(edits_of):
    def method(family, model, steps):
        layout = tiny.layout()
        patched = install(model, layout, edits_of(layout))
        return draw(family, patched, tiny.conditioning(family, layout.prompt, layout.key), steps)

    return method


def left_part():
    """A MASK, in pixels."""
    mask = torch.zeros(SIZE[0] * 8, SIZE[1] * 8)
    mask[:, :32] = 1.0
    return mask


def picture(family):
    return 0.7 * tiny.latent(family, SIZE, seed=11)


def masked(loop):
    def method(family, model, steps):
        return custom(family, model, sampler("loop", loop.sample, left_part()), steps)

    return method


def occluding(method_of):
    """Regions of some opacity, one in front of the other."""

    def method(family, model, steps):
        layout = tiny.layout(areas=(Box(0.0, 0.0, 1.0, 0.8), tiny.RIGHT))
        layout = replace(layout, regions=tuple(replace(region, opacity=0.6) for region in layout.regions))
        patched = install(model, layout, method_of(overlap="occlude").edits(layout))
        return draw(family, patched, tiny.conditioning(family, layout.prompt, layout.key), steps)

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


def difference_mask(family, model, steps):
    settings = DiffMask(draws=steps, method="otsu")
    found = measure(model, picture(family), prompt(family, 1), prompt(family, 4), settings, 3)
    return found.heat + found.mask


def invert(family, model, steps):
    """With its check."""
    sigmas = schedule(family, model, steps)
    return invert_latent(model, picture(family), prompt(family, 1), sigmas, check=True).trajectory.states


def diff_edit(family, model, steps):
    """The edit, by the inversion and a mask of its own."""
    sigmas = schedule(family, model, steps)
    path = invert_latent(model, picture(family), prompt(family, 1), sigmas).trajectory
    prompts = prompt(family, 4), prompt(family, 2)
    return edit(model, picture(family), path, left_part()[None], *prompts, 3.0, sigmas)[0]


def direct_inversion(family, model, steps):
    path = invert_latent(model, tiny.latent(family, SIZE, seed=11), prompt(family, 1), schedule(family, model, steps))
    return custom(family, model, direct_inversion_sampler(path.trajectory), steps)


def file_of_kinds(model, *kinds):
    """A LoRA file whose layers are of these kinds in turn."""
    names, found = list(tiny_loras.layers(model)), {}
    for number, kind in enumerate(kinds):
        starts = tuple(f"{tiny_loras.ROOT}{name}." for name in names[number :: len(kinds)])
        file = tiny_loras.tensors(model, kind, seed=number, size=0.1)
        found |= {key: value for key, value in file.items() if key.startswith(starts)}
    return found


def region_lora(*kinds):
    def method(family, model, steps):
        layout, files = tiny.layout(), [file_of_kinds(model, kind) for kind in kinds]
        if len(kinds) > 2:
            files = [file_of_kinds(model, *kinds)]
        patched = with_loras(model, layout, files, RegionLora(feather=0.1))
        return draw(family, patched, tiny.conditioning(family, layout.prompt, layout.key), steps)

    return method


def arranged_noise(family, model, steps):
    layout = tiny.layout()
    patched = install(model, layout, ArrangedNoise().edits(layout))
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    return draw(family, patched, positive, steps, noise_mask=left_part()[None])


def arranged_before(family, model, steps):
    """Arrange a Noise: a run that ends before its first step, then the noise in another one."""
    layout = tiny.layout()
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    latent = {"samples": torch.zeros_like(picture(family))}
    found, plan = arrange(model, positive, layout, ArrangedNoise(), Noise_RandomNoise(7), latent)
    seen = draw_arrangement(plan, layout.regions)
    assert plan.report() and seen.device.type == "cpu"
    return tiny.run(family, model, positive, noise=found.generate_noise(latent), steps=steps)


def loss_guidance(through, loss=None):
    parts = (Part(tiny.LEFT), Part(left_part(), 0.5))

    def method(family, model, steps):
        wanted = ColorLoss(((0.1, 0.2, 0.9),)) if loss is None else loss(model)
        return unpatched(family, guide_by_pictures(model, PictureGuide(wanted, parts, 2.0, through=through)), steps)

    return method


def clip_loss(model):
    """Both kinds of it, and beside them another loss; its CLIP pair lies where the model does, and is run there."""
    with tempfile.TemporaryDirectory() as folder:
        vision, clip = vision_of(Path(folder)), clip_of()
    if model.load_device == pretend_device.DEVICE:
        pretend_device.move(vision.model)
        vision.load_device = pretend_device.DEVICE
    vision.model.register_forward_pre_hook(partial(_runs_at, vision.load_device), with_kwargs=True)
    image = torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(2))
    near = text_loss(vision, clip, "a red cat", Crops(2, 5))
    ahead = direction_loss(vision, clip, "a dog", "a red cat", image, Crops(2, 5))
    beside = ColorLoss(((0.1, 0.2, 0.9),))
    return lambda seen: near(seen) + ahead(seen) + beside(seen)


def _runs_at(device, module, args, kwargs):
    assert kwargs["pixel_values"].device == device, "the encoder is run elsewhere than where it lies"


def flow_edit(method):
    def edited_by(family, model, steps):
        settings, sigmas = FlowEditing(method, source_cfg=1.5), schedule(family, model, steps)
        prompts = (prompt(family, seed) for seed in (1, 4, 2))
        return edit_by_flow(model, picture(family), *prompts, settings, 3.0, sigmas, left_part(), 5)[0]

    return edited_by


def region_strength(family, model, steps):
    latent = {"samples": picture(family), "noise_mask": left_part()[None]}
    model, latent = redrawn_by_strength(model, latent, torch.tensor([[0.9, 0.4]]))
    noise, mask = tiny.latent(family, SIZE), latent["noise_mask"]
    return comfy.sample.sample(
        model,
        noise,
        steps,
        3.0,
        "euler",
        "simple",
        prompt(family, 1),
        prompt(family, 2),
        latent["samples"],
        disable_pbar=True,
        seed=1,
        noise_mask=mask,
    )


def prompt_fit(family, model, steps):
    found = fit_prompt(model, picture(family), prompt(family, 4), PromptFit(steps=steps, learning_rate=0.01), 3)
    assert len(found.losses) == steps
    return found.conditioning[0][0] - prompt(family, 4)[0][0]


def find_word(family, model, steps):
    layout, settings = tiny.layout(), WordMask("w1", base=DiffMask(draws=steps))
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    found = attended(model, picture(family), positive, layout, settings, seed=3)
    assert found.mask.device.type == "cpu"
    return found.heat


def unets(tiny_family):
    return tiny_family.unet


def with_gradients(tiny_family):
    return tiny_family.gradients


METHODS = {
    "rectified attention": with_edits(RectifiedAttention(window=ALWAYS, end_tokens="own").edits),
    "reweight": with_edits(Reweight((("w1", 4.0),), region=1).edits),
    "reweight, renormalised": with_edits(Reweight((("w1", 4.0),), renormalize=True).edits),
    "dense": with_edits(DenseDiffusion(window=ALWAYS).edits),
    "dense, occluding": occluding(partial(DenseDiffusion, window=ALWAYS)),
    "bound": with_edits(BoundedAttention(ALWAYS, "all").edits),
    "region conditioning": region_conditioning,
    "couple": with_edits(RegionPrompt().edits),
    "couple, occluding": occluding(RegionPrompt),
    "region lora": region_lora("lora", "dora"),
    "region lora, other kinds": region_lora("diff", "bias", "loha", "lokr", "tucker", "loha dora"),
    "recorder": attention_recorder,
    "prompt to prompt": prompt_to_prompt,
    "arranged noise": arranged_noise,
    "arrange a noise": arranged_before,
    "loss guidance: direct": loss_guidance("direct"),
    "loss guidance: CLIP": loss_guidance("direct", clip_loss),
    "repaint": masked(RePaint(jump=1, repeats=2)),
    "ilvr": masked(ILVR(2)),
    "blended latents": masked(BlendedLatents(grow=1)),
    "region strength": region_strength,
    "difference mask": difference_mask,
    "invert": invert,
    "diff edit": diff_edit,
    "direct inversion": direct_inversion,
    "FlowEdit": flow_edit("FlowEdit"),
    "FlowAlign": flow_edit("FlowAlign"),
    "Uni-Edit": flow_edit("Uni-Edit"),
    "find word": find_word,
    "box constraint": with_edits(replace(preset("strict", "boxdiff"), iterations=1, refine_iterations=1).guides),
    "fast": with_edits(preset("standard", "fast").guides),
    "attend and excite": with_edits(preset("standard", "attend_excite").guides),
    "loss guidance: through model": loss_guidance("through model"),
    "prompt fit": prompt_fit,
    "h-space": h_space,
}
# Of every node that takes a model or makes a sampler, or a loss for one: the methods that it is run by.
OF_NODES = {
    "BoxwrightArrangedNoise": ("arranged noise",),
    "BoxwrightArrangeNoise": ("arrange a noise",),
    "BoxwrightAttentionRecorder": ("recorder",),
    "BoxwrightBlendedLatents": ("blended latents",),
    "BoxwrightBoxConstraint": ("box constraint", "fast", "attend and excite"),
    "BoxwrightClipLoss": ("loss guidance: CLIP",),
    "BoxwrightColorLoss": ("loss guidance: direct",),
    "BoxwrightDiffEdit": ("diff edit",),
    "BoxwrightDiffEditSampler": ("diff edit",),
    "BoxwrightDiffMask": ("difference mask",),
    "BoxwrightDirectInversionSampler": ("direct inversion",),
    "BoxwrightFindWord": ("find word",),
    "BoxwrightFlowEdit": ("FlowEdit", "FlowAlign", "Uni-Edit"),
    "BoxwrightFlowEditSampler": ("FlowEdit", "FlowAlign", "Uni-Edit"),
    "BoxwrightHSpace": ("h-space",),
    "BoxwrightILVR": ("ilvr",),
    "BoxwrightInvert": ("invert",),
    "BoxwrightLossGuidance": ("loss guidance: direct", "loss guidance: through model"),
    "BoxwrightPromptFit": ("prompt fit",),
    "BoxwrightPromptToPrompt": ("prompt to prompt",),
    "BoxwrightRectifiedAttention": ("rectified attention",),
    "BoxwrightRegionLora": ("region lora", "region lora, other kinds"),
    "BoxwrightRegionPrompt": ("couple", "couple, occluding", "dense", "dense, occluding", "bound"),
    "BoxwrightRegionStrength": ("region strength",),
    "BoxwrightRePaint": ("repaint",),
    "BoxwrightReweight": ("reweight", "reweight, renormalised"),
}
# What else a family has to declare.
NEEDS = {
    **dict.fromkeys(
        ("box constraint", "fast", "attend and excite", "loss guidance: through model", "prompt fit"), with_gradients
    ),
    "h-space": unets,
}
EVERY = METHODS
PAIRS = [(family, name) for name in EVERY for family in FAMILIES if NEEDS.get(name, bool)(tiny.FAMILIES[family])]
CASES = [(*pair, dtype) for pair in PAIRS for dtype in HALF]
# One UNet and one joint attention for each method; some of them on more.
ONE_EACH = [("sd15", "float16"), ("flux", "bfloat16")]
MORE = [("sd15", "bfloat16"), ("sdxl", "float16")]
ON_MORE = ("rectified attention", "reweight", "reweight, renormalised", "dense", "bound", "region conditioning",
           "couple", "recorder", "prompt to prompt", "region lora", "box constraint", "fast", "attend and excite",
           "h-space")  # fmt: skip
SOME = [c for c in CASES if (c[0], c[2]) in ONE_EACH or (c[1] in ON_MORE and (c[0], c[2]) in MORE)]


def test_every_node_that_runs_a_model_is_here():
    def runs(schema):
        taken = {part.io_type for part in schema.inputs} & {"MODEL"}
        return taken or {part.io_type for part in schema.outputs} & {"SAMPLER", schema_of_losses}

    schemas = {name: node.GET_SCHEMA() for name, node in our_nodes().items()}
    (schema_of_losses,) = {part.io_type for part in schemas["BoxwrightColorLoss"].outputs}
    assert {name for name, schema in schemas.items() if runs(schema)} == set(OF_NODES)
    assert {name for names in OF_NODES.values() for name in names} == set(EVERY) - {"region conditioning"}


# Kernels that round otherwise for tensors that lie otherwise; through a gradient in 16 bits it grows.
ROUNDING = {
    "ilvr": 1e-5,
    "loss guidance: CLIP": 1e-5,
    "loss guidance: through model": 0.01,
    **dict.fromkeys(("box constraint", "fast", "attend and excite", "prompt fit"), 0.2),
}


@pytest.mark.parametrize("family, name, dtype", CASES if FULL else SOME)
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


# What else waits in a step, the host's own and the progress of the run included; docs/benchmarks.md has the numbers.
MORE_WAITS = {
    "box constraint": 6.5,
    "fast": 4,
    "attend and excite": 4.5,
    "recorder": 2,
    "region lora": 2,
    "loss guidance: direct": 7,
    "prompt fit": 7,
}


WAITS_ON = {("flux", "prompt fit"): 3}  # where a family waits less often


@pytest.mark.parametrize("name", MORE_WAITS)
@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_how_often_a_step_waits(models, family, name):
    found = waits_per_step(EVERY[name], family, models(family, torch.bfloat16)[1])
    assert sum(found.values()) <= WAITS_ON.get((family, name), MORE_WAITS[name]), found


@pytest.mark.parametrize("heeds", [False, True], ids=["ignores", "heeds"])
@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_a_step_beside_an_override_waits_once_more_however_many_layers_there_are(models, of_the_host, family, heeds):
    """What it does with masks is asked in the first step alone."""

    def override(func, q, k, v, heads, mask=None, *args, **kwargs):
        return func(q, k, v, heads, mask if heeds else None, *args, **kwargs)

    model = models(family, torch.bfloat16)[1].clone()
    model.get_free_memory = lambda device: 10**10
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    found = waits_per_step(METHODS["rectified attention"], family, model)
    assert sum(found.values()) <= of_the_host(family) + 2, found


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
