"""Guides that look at the predicted picture, in the real host's samplers on tiny models."""

import contextlib
import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import comfy.sample
import comfy.samplers
import pytest
import tiny_models as tiny
import torch
from comfy.patcher_extension import WrappersMP
from pack.attention_patches.core.pictures import Part, PictureGuide, part_share, schedule_weight, window_of_part
from pack.attention_patches.core.seam import AttentionEdit
from pack.attention_patches.core.types import Box, BoxwrightError, Region, StepWindow, UnsupportedModelError
from pack.attention_patches.host.guidance import pictures
from pack.attention_patches.host.guidance.decoders import latent_colors
from pack.attention_patches.host.install import install
from pack.attention_patches.host.loss_guidance import guide_by_pictures
from pack.attention_patches.samplers.color_loss import ColorLoss
from pack.nodes.color_loss import BoxwrightColorLoss
from pack.nodes.loss_guidance import BoxwrightLossGuidance, parts_of
from pack.nodes.parts.colors import colors_of
from pack.nodes.parts.schema import guarded

FLOWS = ("flux", "chroma", "qwen", "zimage", "lumina2", "sd3")
LEFT = Part(Box(0.0, 0.0, 0.5, 1.0))
BLUE = ColorLoss(((0.1, 0.2, 0.9),))
MODES = ("direct", "through model")


def smooth(seen):
    """A loss with no corner anywhere: of every pixel, weighted differently."""
    weights = torch.linspace(0.5, 2.0, seen[0].numel()).view(seen.shape[1:])
    return (seen * weights).sin().mean(dim=(1, 2, 3))


def guide_of(through="direct", loss=smooth, parts=(LEFT,), **values):
    return PictureGuide(loss, parts, **{"strength": 1e-3, "max_change": 4.0, "through": through, **values})


def run(family, model, **options):
    positive = tiny.conditioning(family, tiny.text())
    return tiny.run(family, model, positive, **{"steps": 2, **options})


def inside_a_run(family, model, look, cfg=1.0, batch=1, size=(8, 12)):
    """`look(executor, x, timestep, options)` at the first prediction of a run, below the guides; what it returned."""
    found = []

    def spy(executor, x, timestep, options, seed):
        if not found:
            found.append(None)
            at = torch.full_like(timestep, 0.6 if family in FLOWS else 3.0)
            found[0] = look(executor, x, at, options)
        return executor(x, timestep, options, seed)

    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "spy", spy)
    run(family, patched, steps=1, cfg=cfg, noise=0.5 * tiny.latent(family, size, batch))
    return found[0]


# --- the gradient ---


@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux", "sd3"])
@pytest.mark.parametrize("through", MODES)
def test_a_move_is_the_gradient_by_central_differences(models, family, through, monkeypatch):
    """Along three random directions: of the loss of what the model predicts, by the latent or by the prediction."""
    monkeypatch.setattr("pack.attention_patches.host.guidance.decoders._bounded", lambda pictures: pictures)
    # Far from the limit, and far from the rounding of what is moved.
    guide = guide_of(through, strength=10.0 if through == "direct" or family in FLOWS else 0.2)

    def look(executor, x, at, options):
        base, flow = executor.class_obj.inner_model, family in FLOWS
        clean = executor(x, at, options, None)
        moved = pictures.predict_by_pictures(executor, x, at, options, None)
        found = (clean - moved) / (guide.strength * schedule_weight(float(at[0]), flow, through))
        share = part_share(LEFT, tuple(x.shape[-2:]))

        def loss(latent):
            seen = window_of_part(latent_colors(base, latent.double()), share.double())
            return float(share.sum() * smooth(seen).sum())

        pairs = []
        for seed in range(3):
            way = tiny.latent(family, tuple(x.shape[-2:]), seed=seed + 20)
            if through == "direct":
                h, value = 1e-3, lambda step, way=way: loss(clean + step * way)
            else:
                way[..., share.shape[1] // 2 :] = 0.0  # outside the part nothing is moved, whatever its gradient
                h, value = 1e-2, lambda step, way=way: loss(executor(x + step * way, at, options, None))
            pairs.append((float((found * way).sum()), (value(h) - value(-h)) / (2 * h)))
        return pairs

    for found, expected in inside_a_run(family, guide_by_pictures(models[family], guide), look):
        assert found == pytest.approx(expected, rel=0.02, abs=2e-4)


@pytest.mark.parametrize("through", MODES)
def test_a_batch_is_moved_as_its_pictures_alone(models, through):
    guided = guide_by_pictures(models["sd15"], guide_of(through, BLUE, strength=3.0))
    noise = tiny.latent("sd15", batch=3)
    together = run("sd15", guided, noise=noise)
    for row in range(3):
        alone = run("sd15", guided, noise=noise[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=2e-3 * float(alone.abs().max()))


@pytest.mark.parametrize("through", MODES)
def test_only_the_part_is_moved_and_no_value_by_more_than_the_limit(models, through):
    guide = guide_of(through, BLUE, (Part(Box(0.25, 0.25, 0.3, 0.5)),), strength=500.0, max_change=0.3)

    def look(executor, x, at, options):
        return pictures.predict_by_pictures(executor, x, at, options, None) - executor(x, at, options, None)

    moves = inside_a_run("sd15", guide_by_pictures(models["sd15"], guide), look, cfg=5.0, batch=2)
    share = part_share(guide.parts[0], tuple(moves.shape[-2:]))
    assert float(moves[..., share == 0].abs().max()) == 0.0
    limit = 0.3 * 3.0 / 10**0.5
    assert float(moves.abs().max()) == pytest.approx(limit, rel=1e-3)
    assert bool((moves.abs() <= share * limit + 1e-5).all())


def test_the_size_of_the_part_and_the_number_of_steps_hardly_matter():
    """An exact model of Gaussian data: half a picture and a quarter, 10 steps and 40, end at the same colour."""
    model = gaussian_model()
    colors = {}
    for steps in (10, 40):
        for name, box in (("half", Box(0, 0, 0.5, 1)), ("quarter", Box(0, 0, 0.5, 0.5))):
            guided = guide_by_pictures(model, PictureGuide(BLUE, (Part(box),), 2.0))
            drawn = run("sd15", guided, steps=steps, noise=tiny.latent("sd15", (32, 32)), cfg=1.0)
            plain = run("sd15", model, steps=steps, noise=tiny.latent("sd15", (32, 32)), cfg=1.0)
            shift = latent_colors(model.model, drawn) - latent_colors(model.model, plain)
            colors[name, steps] = shift[0, :, : 32 if name == "half" else 16, :16].mean(dim=(1, 2))
    spread = torch.stack(list(colors.values()))
    assert float(spread[:, 2].min()) > 0.05  # towards blue
    assert float((spread - spread.mean(dim=0)).abs().max()) < 0.15 * float(spread.abs().max())


def gaussian_model():
    """SD 1.5's schedule over data that is independent noise of deviation 1: its prediction is linear."""
    model = tiny.build("sd15")

    def exact(executor, x, timestep, options, seed):
        return x / (1.0 + timestep.view(-1, 1, 1, 1) ** 2)

    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "gaussian", exact)
    return model


# --- runs ---


@pytest.mark.parametrize("through", MODES)
def test_strength_0_is_off_and_the_model_stays_as_it_is(models, through):
    plain = run("sd15", models["sd15"])
    assert torch.equal(run("sd15", guide_by_pictures(models["sd15"], guide_of(through, strength=0.0))), plain)
    guided = guide_by_pictures(models["sd15"], guide_of(through, BLUE, strength=3.0))
    assert not torch.allclose(run("sd15", guided), plain, atol=1e-3)
    assert torch.equal(run("sd15", models["sd15"]), plain)


def test_two_guides_add(models):
    other = Part(Box(0.5, 0.0, 0.5, 1.0))
    left, right = guide_of(loss=BLUE, strength=2.0), guide_of(loss=BLUE, parts=(other,), strength=2.0)
    chained = guide_by_pictures(guide_by_pictures(models["sd15"], left), right)
    both = guide_by_pictures(models["sd15"], replace(left, parts=(LEFT, other)))
    torch.testing.assert_close(run("sd15", chained), run("sd15", both), rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m", "heun", "uni_pc", "dpmpp_sde"])
def test_samplers_take_the_moves_and_a_colour_comes_nearer(models, sampler):
    """uni_pc too, which keeps a latent of its own."""
    loss = [
        float(BLUE(latent_colors(models["sd15"].model, run("sd15", model, steps=4, sampler=sampler))))
        for model in (models["sd15"], guide_by_pictures(models["sd15"], guide_of(loss=BLUE, strength=3.0)))
    ]
    assert loss[1] < loss[0]


def test_outside_its_time_nothing_is_moved_and_the_node_says_so(models):
    said = []
    early = guide_of(loss=BLUE, strength=3.0, window=StepWindow(0.2, 0.21), report=said.append)
    guided = guide_by_pictures(models["sd15"], early)
    assert torch.equal(run("sd15", guided, denoise=0.5), run("sd15", models["sd15"], denoise=0.5))
    assert len(said) == 1 and "no step of this run lies between 0.2 and 0.21" in said[0]


def test_a_time_between_two_steps_of_a_short_run_takes_the_step_before(models):
    said = []
    between = guide_of(loss=BLUE, strength=3.0, window=StepWindow(0.2, 0.21), report=said.append)
    assert not torch.equal(run("sd15", guide_by_pictures(models["sd15"], between)), run("sd15", models["sd15"]))
    assert len(said) == 1 and said[0].startswith("step 1 of 2")


def test_each_evaluation_tells_its_loss(models):
    said = []
    run(
        "sd15",
        guide_by_pictures(models["sd15"], guide_of(loss=BLUE, report=said.append)),
        noise=tiny.latent("sd15", batch=2),
        steps=2,
    )
    assert [line.split(", loss")[0] for line in said] == ["step 1 of 2", "step 2 of 2"]
    assert len(said[0].split("loss ")[1].split(", ")) == 2


def test_readers_do_not_hear_the_pass_for_the_gradient_but_edits_act_in_it(models):
    layout, heard, edited = tiny.layout(), [], []

    def look(probs, site):
        heard.append(probs.requires_grad)

    def edit(scores, site):
        edited.append(scores.requires_grad)
        return scores

    edits = [AttentionEdit("look", "read", look), AttentionEdit("edit", "scores", edit)]
    positive = tiny.conditioning("sd15", layout.prompt, layout.key)
    counts = {}
    for through in MODES:
        guided = guide_by_pictures(install(models["sd15"], layout, edits), guide_of(through))
        tiny.run("sd15", guided, positive, steps=2)
        counts[through] = (len(heard), len(edited), any(edited))
        assert heard and not any(heard)
        heard.clear(), edited.clear()
    assert counts["direct"][0] == counts["through model"][0]
    assert counts["direct"][1] < counts["through model"][1]
    assert counts["through model"][2] and not counts["direct"][2]


@pytest.mark.parametrize("through", MODES)
def test_a_latent_with_an_axis_of_frames_is_moved_too(through):
    model = tiny.build("qwen")
    guided = guide_by_pictures(model, guide_of(through, BLUE, strength=3.0))
    assert not torch.allclose(run("qwen", guided), run("qwen", model), atol=1e-4)


# --- memory, precision, weights ---


def test_a_batch_too_large_for_the_card_is_taken_a_picture_at_a_time(models, monkeypatch):
    guided = guide_by_pictures(models["sd15"], guide_of("through model", BLUE, strength=3.0))
    noise = tiny.latent("sd15", batch=3)
    whole = run("sd15", guided, noise=noise, steps=1)
    original, rows = pictures.finite_gradient, []

    def small_memory(model, loss, latent, **options):
        rows.append(latent.shape[0])
        if latent.shape[0] > limit:
            raise torch.OutOfMemoryError("emulated")
        return original(model, loss, latent, **options)

    monkeypatch.setattr(pictures, "finite_gradient", small_memory)
    limit = 1
    split = run("sd15", guided, noise=noise, steps=1)
    assert rows == [3, 1, 1, 1]
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-3 * float(whole.abs().max()))
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        run("sd15", guided, noise=noise, steps=1)


def test_a_picture_too_large_for_the_card_is_kept_in_main_memory(models, monkeypatch):
    places = ["card"]

    @contextlib.contextmanager
    def main_memory():
        places.append("main memory")
        yield
        places.append("card")

    def loss(seen):
        if places[-1] == "card":
            raise torch.OutOfMemoryError("emulated")
        return BLUE(seen)

    monkeypatch.setattr(torch.autograd.graph, "save_on_cpu", main_memory)
    run("sd15", guide_by_pictures(models["sd15"], guide_of(loss=loss)), steps=1)
    assert places == ["card", "main memory", "card"]


def test_the_host_is_asked_for_room_for_the_graph(models, monkeypatch):
    asked = []
    original = comfy.sampler_helpers.estimate_memory
    monkeypatch.setattr(
        comfy.sampler_helpers,
        "estimate_memory",
        lambda model, shape, conds: asked.append(shape[0]) or original(model, shape, conds),
    )
    for through in MODES:
        run("sd15", guide_by_pictures(models["sd15"], guide_of(through)), steps=1)
    assert asked == [1, 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_16_bits_has_the_same_gradient(models, dtype):
    def look(executor, x, at, options):
        moved = pictures.predict_by_pictures(executor, x, at, options, None)
        return (moved - executor(x, at, options, None)).float()

    guide = guide_of("through model", BLUE, strength=1e-2)
    exact = inside_a_run("sd15", guide_by_pictures(models["sd15"], guide), look)
    half = inside_a_run("sd15", guide_by_pictures(tiny.build("sd15", dtype=dtype), guide), look)
    assert float((half - exact).norm() / exact.norm()) < 0.1


def test_weights_without_a_way_back_are_refused_but_for_the_direct_mode(models):
    model = tiny.build("sd15")
    layer = model.model.diffusion_model.middle_block[1].proj_in
    layer.weight = torch.nn.Parameter(torch.zeros(7, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UnsupportedModelError, match="gradients cannot pass.*direct"):
        guide_by_pictures(model, guide_of("through model"))
    guide_by_pictures(model, guide_of("direct"))


def test_a_family_that_boxwright_does_not_know_takes_the_direct_mode():
    model = gaussian_model()
    model.model.diffusion_model = torch.nn.Module()
    with pytest.raises(UnsupportedModelError, match='cannot reach.*"direct"'):
        guide_by_pictures(model, guide_of("through model"))
    guide_by_pictures(model, guide_of("direct"))


# --- what is refused ---


@pytest.mark.parametrize(
    "loss, words",
    [
        (lambda seen: seen.mean(), r"returned \(\) for 1 pictures"),
        (lambda seen: None, "returned NoneType"),
        (lambda seen: (seen > 0.5).float().mean(dim=(1, 2, 3)), "no gradient|has a gradient"),
        (lambda seen: seen.mean(dim=(1, 2, 3)) / 0.0, "no finite number"),
    ],
)
def test_a_loss_that_is_none_is_named(models, loss, words):
    with pytest.raises(BoxwrightError, match=words):
        run("sd15", guide_by_pictures(models["sd15"], guide_of(loss=loss)))


def test_a_video_is_refused():
    model = tiny.build("qwen")
    noise = torch.randn(1, 16, 3, 8, 8)
    with pytest.raises(BoxwrightError, match=r"\(1, 16, 3, 8, 8\), that of a video"):
        run("qwen", guide_by_pictures(model, guide_of()), noise=noise)


def test_a_model_without_known_colours_needs_its_vae(models, monkeypatch):
    monkeypatch.setattr(models["sd15"].model.latent_format, "latent_rgb_factors", None)
    with pytest.raises(UnsupportedModelError, match="Wire its VAE"):
        guide_by_pictures(models["sd15"], guide_of())


def test_a_vae_of_other_latents_is_refused(models):
    class Other:
        latent_channels = 16

    with pytest.raises(BoxwrightError, match="16 channels, this model makes 4"):
        guide_by_pictures(models["sd15"], guide_of(), Other())


# --- the nodes ---


def test_the_nodes_join_losses_and_places(models):
    color = guarded(BoxwrightColorLoss)
    (first,) = color.execute(colors="blue", of="mean", weight=1.0).result
    (loss,) = color.execute(colors="#ff0000", of="every pixel", weight=0.5, more=first).result
    inputs = dict(model=models["sd15"], loss=loss, strength=2.0, gradient="direct", start=0.0, end=1.0, max_change=1.0)
    mask = torch.zeros(1, 64, 96)
    mask[:, :, :48] = 1.0
    (painted,) = guarded(BoxwrightLossGuidance).execute(**inputs, mask=mask).result
    regions = (Region("sky", Box(0, 0, 0.5, 1)), Region("sea", Box(0.5, 0, 0.5, 1)))
    (boxed,) = guarded(BoxwrightLossGuidance).execute(**inputs, regions=regions, phrase="sky").result
    torch.testing.assert_close(run("sd15", painted), run("sd15", boxed), rtol=0, atol=1e-5)
    assert not torch.allclose(run("sd15", painted), run("sd15", models["sd15"]), atol=1e-3)


def test_regions_bring_their_own_strength_and_time():
    parts = parts_of((Region("sky", Box(0, 0, 0.5, 1), 0.5, end=0.3), Region("sea", Box(0.5, 0, 0.5, 1))), "", None)
    assert [(part.strength, part.window) for part in parts] == [(0.5, StepWindow(0.0, 0.3)), (1.0, StepWindow())]


@pytest.mark.parametrize(
    "inputs, words",
    [
        ({"regions": ()}, "no regions to guide"),
        ({"mask": torch.zeros(1, 8, 8)}, "mask is empty"),
        ({"regions": (Region("sky", Box(0, 0, 1, 1), 0.0),)}, "Every region has strength 0.*Raise"),
        (
            {"regions": (Region("sky", Box(0, 0, 1, 1), 0.0), Region("sea", Box(0, 0, 1, 1))), "phrase": "sky"},
            "Every region with this phrase has strength 0",
        ),
        ({"mask": torch.ones(2, 8, 8)}, "2 masks"),
        ({"mask": torch.full((1, 8, 8), 2.0)}, "values from 2 to 2"),
        ({"regions": (Region("sky", Box(0, 0, 1, 1)),), "phrase": "sea"}, 'No region has the phrase "sea".*"sky"'),
        ({"regions": (Region("sky", Box(0, 0, 1, 1)),), "mask": torch.ones(1, 8, 8)}, "not both"),
        ({"loss": 3.0}, "loss is a float"),
        ({"start": 0.5, "end": 0.5}, "is empty"),
        ({"strength": float("nan")}, "strength"),
    ],
)
def test_bad_input_is_named(models, inputs, words):
    good = dict(model=models["sd15"], loss=BLUE, strength=1.0, gradient="direct", start=0.0, end=1.0, max_change=1.0)
    with pytest.raises(BoxwrightError, match=words):
        guarded(BoxwrightLossGuidance).execute(**good | inputs)


def test_colours_are_read_as_people_write_them():
    assert colors_of(" #ff0000, blue\n#0f0") == ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0))


@pytest.mark.parametrize("text, words", [("", "no colour"), ("redd", "'redd' is no colour"), ("x" * 2000, "1000")])
def test_words_that_are_no_colours_are_named(text, words):
    with pytest.raises(BoxwrightError, match=words):
        colors_of(text)


# --- losses of other packs ---


def test_the_example_of_the_documentation_works_as_it_stands(models, tmp_path):
    text = (Path(__file__).resolve().parents[2] / "docs" / "writing-a-loss.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "mirror_loss.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("mirror_loss", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (loss,) = module.NODES[0].execute().result
    assert module.NODES[0].define_schema().outputs[0].io_type == "BOXWRIGHT_LOSS"
    inputs = dict(model=models["sd15"], strength=8.0, gradient="direct", start=0.0, end=1.0, max_change=1.0)
    (guided,) = guarded(BoxwrightLossGuidance).execute(**inputs, loss=loss).result
    losses = [
        float(loss(latent_colors(models["sd15"].model, run("sd15", model, steps=6))))
        for model in (models["sd15"], guided)
    ]
    assert losses[1] < 0.7 * losses[0]
