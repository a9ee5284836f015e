"""The noise of a run in the real host, arranged once before its first step: every family, sampler and kind of run."""

from dataclasses import replace

import comfy.sample
import comfy.samplers
import pytest
import tiny_loras
import tiny_models as tiny
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from comfy_extras import nodes_custom_sampler
from pack.attention_patches.core.seam import AttentionEdit
from pack.attention_patches.core.token_alignment import token_alignment
from pack.attention_patches.core.types import BoxwrightError, Layout, StepWindow
from pack.attention_patches.host import prompt_to_prompt
from pack.attention_patches.host.arranged_noise import FixedNoise, arrange
from pack.attention_patches.host.install import install
from pack.attention_patches.host.layers.lora import lora_for
from pack.attention_patches.methods.arranged_noise import ArrangedNoise
from pack.attention_patches.methods.box_constraint import preset
from pack.attention_patches.methods.prompt_to_prompt import Prompts, PromptToPrompt
from pack.attention_patches.methods.rectified_attention import RectifiedAttention
from pack.attention_patches.methods.region_lora import RegionLora
from pack.attention_patches.methods.region_prompt import RegionPrompt
from pack.nodes.parts.arrangement import draw_arrangement

every_family = pytest.mark.parametrize("family", tiny.SUPPORTED)


class Models(dict):
    """Tiny models by family, each built when it is first asked for."""

    def __missing__(self, family):
        return self.setdefault(family, tiny.build(family))


@pytest.fixture(scope="module")
def models():
    return Models()


def arranged(model, layout, lines=None, **settings):
    report = None if lines is None else lines.append
    return install(model, layout, ArrangedNoise(**settings).edits(layout), report)


def watched(model, starts, calls):
    """The model, noting the noise that each sampler starts from, and the rows of each model call."""

    def start(executor, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
        starts.append(noise.clone())
        return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)

    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "watch", start)

    def call(apply_model, args):
        calls.append(args["input"].shape[0])
        return apply_model(args["input"], args["timestep"], **args["c"])

    patched.set_model_unet_function_wrapper(call)
    return patched


def run(family, model, layout, **options):
    return tiny.run(family, model, tiny.conditioning(family, layout.prompt, layout.key), **options)


def start_of(family, model, layout, **options):
    """The noise as the sampler gets it."""
    starts = []
    run(family, watched(model, starts, []), layout, **{"steps": 1, **options})
    return starts[0]


def same_values(a, b):
    return torch.equal(a.flatten(-2).sort().values, b.flatten(-2).sort().values)


@every_family
@pytest.mark.parametrize("size", [(16, 24), (17, 25)], ids=["even", "odd"])
def test_a_run_starts_from_a_permutation_of_its_noise(models, layout, family, size):
    if tiny.FAMILIES[family].even:
        size = tuple(side + side % 2 for side in size)
    noise, lines = tiny.latent(family, size, batch=2), []
    model = arranged(models[family], layout, lines)
    out = start_of(family, model, layout, noise=noise)
    assert same_values(out, noise) and not torch.equal(out, noise)
    (line,) = lines
    assert line.startswith("1 evaluation; ") and "w1 w2 " in line and "%" in line


@every_family
def test_a_second_run_is_the_same_and_the_model_without_it_is_untouched(models, layout, family):
    before = run(family, models[family], layout)
    model = arranged(models[family], layout)
    first = run(family, model, layout)
    assert not torch.equal(first, before)
    assert torch.equal(run(family, model, layout), first)
    assert torch.equal(run(family, models[family], layout), before)


@every_family
def test_strength_0_is_the_model_as_it_was(models, layout, family):
    off = arranged(models[family], layout, strength=0.0)
    assert torch.equal(run(family, off, layout), run(family, models[family], layout))


SAMPLERS = ["euler", "heun", "euler_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "lcm", "ddim", "uni_pc"]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_picture_is_that_of_a_run_from_the_arranged_noise(models, layout, sampler):
    """Samplers that draw noise on the way go on as they would."""
    model = arranged(models["sd15"], layout)
    noise = start_of("sd15", model, layout)
    found, expected = (
        run("sd15", each, layout, sampler=sampler, steps=3, **start)
        for each, start in ((model, {}), (models["sd15"], {"noise": noise}))
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_rows_of_a_batch_and_cfg_1_are_the_same_as_one_by_one(models, layout, family):
    model = arranged(models[family], layout)
    noise = tiny.latent(family, batch=4)
    together = start_of(family, model, layout, noise=noise)
    assert torch.equal(together, start_of(family, model, layout, noise=noise, cfg=1.0))
    for i in range(4):
        assert torch.equal(together[i : i + 1], start_of(family, model, layout, noise=noise[i : i + 1]))


def test_it_costs_one_call_of_the_prompts_own_rows(models, layout):
    """The reading goes past other packs' wrappers: what the sampler asks for is counted there, as without."""
    read, calls = [], []
    unet = models["sd15"].model.diffusion_model
    handle = unet.register_forward_pre_hook(lambda module, args: read.append(args[0].shape[0]))
    try:
        run("sd15", watched(arranged(models["sd15"], layout), [], calls), layout, noise=tiny.latent("sd15", batch=2))
    finally:
        handle.remove()
    assert calls == [4, 4] and read == [2, 4, 4]


def test_edits_of_other_nodes_do_not_change_what_is_read(models, layout):
    """What Region Prompt and Rectified Attention confine to the boxes says nothing of the noise."""
    expected = start_of("sd15", arranged(models["sd15"], layout), layout)
    confined = [*RectifiedAttention().edits(layout), *RegionPrompt().edits(layout)]
    others = [*confined, *preset("standard", "boxdiff").guides(layout)]
    for first in (True, False):
        model = models["sd15"]
        for ours in (first, not first):
            model = arranged(model, layout) if ours else install(model, layout, others)
        assert torch.equal(start_of("sd15", model, layout), expected)


def test_readers_of_the_run_hear_nothing_of_the_reading(models, layout):
    heard = []
    edit = AttentionEdit("look", "read", lambda probs, site: heard.append(site.layer), StepWindow(0.0, 0.01))
    run("sd15", install(models["sd15"], layout, [edit]), layout)
    alone, heard[:] = list(heard), []
    run("sd15", install(arranged(models["sd15"], layout), layout, [edit]), layout)
    assert heard == alone


def told(models, layout, **options):
    lines, noise = [], options.get("noise", tiny.latent("sd15"))
    out = start_of("sd15", arranged(models["sd15"], layout, lines), layout, **options)
    assert torch.equal(out, noise) and len(lines) == 1
    return lines[0]


def test_a_run_that_adds_no_noise_is_left_alone_and_says_so(models, layout):
    assert "adds none" in told(models, layout, noise=torch.zeros_like(tiny.latent("sd15")), start_step=1, steps=4)


def test_a_run_that_begins_late_is_left_alone_and_says_so(models, layout):
    assert "begins at 0.7" in told(models, layout, start_step=7, steps=10)


def test_a_run_inside_a_run_is_left_alone_and_says_so(models, layout):
    """A sampler that has another one take its steps starts that from what it has come to."""
    lines, inner_starts = [], []

    def outer(model, x, sigmas, extra_args=None, callback=None, disable=None):
        inner = comfy.samplers.sampler_object("euler")
        options = extra_args["model_options"]
        wrappers = get_all_wrappers(WrappersMP.SAMPLER_SAMPLE, options, is_model_options=True)
        executor = WrapperExecutor.new_class_executor(inner.sample, inner, wrappers)
        noise = tiny.latent("sd15", seed=11)
        executor.execute(model.inner_model, sigmas, {**extra_args}, None, noise, torch.zeros_like(noise), None, True)
        return x

    patched = watched(arranged(models["sd15"], layout, lines), inner_starts, [])
    sigmas = comfy.samplers.calculate_sigmas(patched.get_model_object("model_sampling"), "simple", 2)
    positive = tiny.conditioning("sd15", layout.prompt, layout.key)
    noise = tiny.latent("sd15")
    comfy.sample.sample_custom(
        patched,
        noise,
        1.0,
        comfy.samplers.KSAMPLER(outer),
        sigmas,
        positive,
        positive,
        torch.zeros_like(noise),
        disable_pbar=True,
        seed=1,
    )
    assert len(lines) == 2 and lines[0].startswith("1 evaluation") and "part of another" in lines[1]
    assert torch.equal(inner_starts[1], tiny.latent("sd15", seed=11)) and not torch.equal(inner_starts[0], noise)


def test_of_a_picture_the_added_noise_is_arranged(models, layout):
    """img2img: what is read has the picture in it."""
    noise = tiny.latent("sd15")
    model = arranged(models["sd15"], layout)
    starts = []
    for picture in (torch.zeros_like(noise), 3.0 * tiny.latent("sd15", seed=8)):
        comfy.sample.sample(
            watched(model, starts, []),
            noise,
            4,
            4.0,
            "euler",
            "simple",
            tiny.conditioning("sd15", layout.prompt, layout.key),
            tiny.conditioning("sd15", tiny.text(seed=2), seed=6),
            picture,
            denoise=0.8,
            disable_pbar=True,
            seed=1,
        )
    assert same_values(starts[0], noise) and same_values(starts[1], noise)
    assert not torch.equal(starts[0], starts[1])


@pytest.mark.parametrize("family", ["sd15", "flux", "qwen"])
def test_outside_the_mask_of_an_inpainting_nothing_moves(models, layout, family):
    mask = torch.zeros(1, 1, 16, 24)
    mask[..., 4:20] = 1.0
    noise = tiny.latent(family)
    out = start_of(family, arranged(models[family], layout), layout, noise=noise, noise_mask=mask)
    assert same_values(out, noise) and not torch.equal(out, noise)
    assert torch.equal(out[..., :4], noise[..., :4]) and torch.equal(out[..., 20:], noise[..., 20:])


def test_two_layouts_are_arranged_one_after_the_other(models):
    left, right = tiny.layout(areas=(tiny.LEFT,)), tiny.layout(tiny.text(seed=3), areas=(tiny.RIGHT,), key="other")
    noise, lines = tiny.latent("sd15"), []
    model = arranged(arranged(models["sd15"], left, lines), right, lines)
    positive = tiny.conditioning("sd15", left.prompt, left.key) + tiny.conditioning("sd15", right.prompt, right.key)
    starts = []
    tiny.run("sd15", watched(model, starts, []), positive, noise=noise)
    assert len(lines) == 2 and same_values(starts[0], noise)
    assert not torch.equal(starts[0], start_of("sd15", arranged(models["sd15"], left), left, noise=noise))


def test_a_prompt_that_comes_later_is_not_read_and_that_is_said(models, layout):
    lines = []
    late = tiny.conditioning("sd15", layout.prompt, layout.key, start_percent=0.5, end_percent=1.0)
    both = late + tiny.conditioning("sd15", tiny.text(seed=4), seed=3, start_percent=0.0, end_percent=0.5)
    starts = []
    tiny.run("sd15", watched(arranged(models["sd15"], layout, lines), starts, []), both, noise=tiny.latent("sd15"))
    assert torch.equal(starts[0], tiny.latent("sd15")) and "takes no part in the first step" in lines[0]


@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_half_precision(layout, family):
    model = tiny.build(family, dtype=torch.bfloat16)
    noise = tiny.latent(family)
    out = start_of(family, arranged(model, layout), layout, noise=noise)
    assert same_values(out, noise) and not torch.equal(out, noise)


def test_prompt_to_prompts_source_is_arranged_and_its_targets_get_the_same_noise(models, layout):
    """The layout is of the source's text alone; the conditioning of the run holds source and target."""
    texts = [layout.prompt, tiny.text(seed=9)]
    prompt = torch.cat([text.embedding for text in texts])
    positive = [[prompt, {"boxwright_layout": "prompts"}]]
    prompts = Layout(layout.prompt, (), torch.zeros(0, 77, dtype=torch.bool), (), "prompts")
    pair = Prompts(prompts, (texts[1].tokens,), (token_alignment(texts[0].tokens, texts[1].tokens, "auto"),))
    noise = tiny.latent("sd15", batch=2).repeat_interleave(2, dim=0)
    starts = []
    edited = prompt_to_prompt.edited(models["sd15"], pair, PromptToPrompt())
    for model in (arranged(edited, layout), arranged(models["sd15"], layout)):
        layouts_own = tiny.conditioning("sd15", layout.prompt, layout.key)
        tiny.run("sd15", watched(model, starts, []), positive if not starts else layouts_own, noise=noise, steps=1)
    assert torch.equal(starts[0], starts[1]) and torch.equal(starts[0][::2], starts[0][1::2])
    assert not torch.equal(starts[0], noise)


def test_a_noise_arranged_at_once_is_that_of_a_run(models, layout):
    """The node for Sampler Custom (Advanced): what it makes, a picture of it, and what it refuses."""
    latent = {"samples": torch.zeros(2, 4, 16, 24)}
    drawn = nodes_custom_sampler.Noise_RandomNoise(3)
    positive = tiny.conditioning("sd15", layout.prompt, layout.key)
    found, plan = arrange(models["sd15"], positive, layout, ArrangedNoise(), drawn, latent)
    expected = start_of("sd15", arranged(models["sd15"], layout), layout, noise=drawn.generate_noise(latent))
    assert torch.equal(found.generate_noise(latent), expected) and found.seed == 3
    assert plan.sources.shape[0] == 2
    with pytest.raises(BoxwrightError, match="shape.*Wire the same latent"):
        found.generate_noise({"samples": torch.zeros(1, 4, 16, 24)})
    silent, late = FixedNoise(0, torch.zeros(2, 4, 16, 24)), torch.tensor([1.0, 0.0])
    for noise, sigmas in ((silent, None), (drawn, late)):
        with pytest.raises(BoxwrightError, match="nothing to arrange"):
            arrange(models["sd15"], positive, layout, ArrangedNoise(), noise, latent, sigmas)
    off, _ = arrange(models["sd15"], positive, layout, ArrangedNoise(strength=0.0), drawn, latent)
    assert torch.equal(off.generate_noise(latent), drawn.generate_noise(latent))


def test_sigmas_without_a_step_are_refused(models, layout):
    """A scheduler of denoise 0 makes none at all."""
    drawn, latent = nodes_custom_sampler.Noise_RandomNoise(3), {"samples": torch.zeros(1, 4, 16, 24)}
    positive = tiny.conditioning("sd15", layout.prompt, layout.key)
    for sigmas in (torch.FloatTensor([]), torch.tensor([14.6])):
        with pytest.raises(BoxwrightError, match="nothing to arrange: the sigmas have no step"):
            arrange(models["sd15"], positive, layout, ArrangedNoise(), drawn, latent, sigmas)


def test_a_scheduler_that_makes_no_number_is_named(models, layout):
    """kl_optimal, of one step."""
    with pytest.raises(BoxwrightError, match="first sigma of this run is nan.*another scheduler"):
        run("sd15", arranged(models["sd15"], layout), layout, scheduler="kl_optimal", steps=1)


def test_an_empty_latent_made_for_another_model_fits_as_the_hosts_sampler_makes_it_fit(models, layout):
    """Empty Latent Image makes cells of 8 pixels, and says so; this model has cells of 32."""
    family, model = "hunyuan_image", models["hunyuan_image"]
    latent = {"samples": torch.zeros(1, 4, 64, 96), "downscale_ratio_spacial": 8}
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    drawn, sigmas = nodes_custom_sampler.Noise_RandomNoise(3), torch.tensor([1.0, 0.0])
    found, _ = arrange(model, positive, layout, ArrangedNoise(), drawn, latent, sigmas)
    guider = nodes_custom_sampler.Guider_Basic(model)
    guider.set_conds(positive)
    starts = []
    guider.model_patcher = watched(model, starts, [])
    guider.model_options = guider.model_patcher.model_options
    nodes_custom_sampler.SamplerCustomAdvanced.execute(
        found, guider, comfy.samplers.sampler_object("euler"), sigmas, latent
    )
    assert starts[0].shape[-2:] == (16, 24) and torch.equal(starts[0], found.values)
    found.generate_noise({"samples": starts[0]}).zero_()
    assert torch.equal(starts[0], found.values)


@pytest.mark.parametrize("size", [(16, 24), (40, 8)])
def test_the_picture_of_an_arrangement_shows_each_phrase_before_and_after(models, layout, size):
    latent = {"samples": torch.zeros(2, 4, *size)}
    positive = tiny.conditioning("sd15", layout.prompt, layout.key)
    noise = nodes_custom_sampler.Noise_RandomNoise(3)
    _, plan = arrange(models["sd15"], positive, layout, ArrangedNoise(), noise, latent)
    picture = draw_arrangement(plan, layout.regions)
    assert picture.shape[0] == 2 and picture.shape[3] == 3 and 0.0 <= picture.min() and picture.max() <= 1.0
    assert not torch.equal(picture[0], picture[1])
    still = draw_arrangement(replace(plan, sources=torch.arange(plan.sources.shape[1]).expand(2, -1)), layout.regions)
    half = picture.shape[1] // 2
    assert torch.equal(still[:, :half, : picture.shape[2] // 2], picture[:, :half, : picture.shape[2] // 2])
    assert not torch.equal(still[:, half:], picture[:, half:])


def pair_of(layout):
    """Source and target of a Prompt to Prompt in one entry; the source is the layout's text."""
    return [[torch.cat([layout.prompt.embedding, tiny.text(seed=9).embedding]), {"boxwright_layout": "prompts"}]]


@pytest.mark.parametrize("first", [True, False])
def test_what_needs_the_layouts_own_prompt_does_not_hide_behind_it(models, layout, first):
    """The first of several prompts in one entry is enough for the noise, and not for edits of attention."""
    noise = tiny.latent("sd15", batch=2)
    model = models["sd15"]
    for ours in (first, not first):
        model = arranged(model, layout) if ours else install(model, layout, RectifiedAttention().edits(layout))
    with pytest.raises(BoxwrightError, match="No positive conditioning"):
        tiny.run("sd15", model, pair_of(layout), noise=noise, steps=1)


def test_a_guide_beside_it_reads_the_layouts_own_prompt_alone(models, layout):
    noise, starts = tiny.latent("sd15", batch=2), []
    both = tiny.conditioning("sd15", layout.prompt, layout.key) + pair_of(layout)
    guided = install(models["sd15"], layout, preset("standard", "boxdiff").guides(layout))
    found = tiny.run("sd15", watched(arranged(guided, layout), starts, []), both, noise=noise, steps=2)
    assert torch.equal(found, tiny.run("sd15", guided, both, noise=starts[0], steps=2))


@pytest.mark.parametrize("family", ["sd15", "flux"])
@pytest.mark.parametrize("lora_first", [True, False])
def test_beside_loras_of_regions_both_act(models, layout, family, lora_first):
    """The reading ends in the middle of the model, and the run after it is the LoRAs' own from the arranged noise."""
    placed = {0: (lora_for(models[family], tiny_loras.tensors(models[family]), "file"), 0.8)}
    loras = RegionLora().edits(layout, placed)
    if lora_first:
        both = arranged(install(models[family], layout, loras), layout)
    else:
        both = install(arranged(models[family], layout), layout, loras)
    found = run(family, both, layout)
    noise = start_of(family, both, layout)
    assert not torch.equal(noise, tiny.latent(family))
    torch.testing.assert_close(found, run(family, install(models[family], layout, loras), layout, noise=noise))
    assert not torch.allclose(found, run(family, models[family], layout, noise=noise), atol=1e-3)
    assert torch.equal(run(family, both, layout), found)
