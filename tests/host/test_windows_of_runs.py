"""A run that comes to no step in the time of a node's edits: the node says so before the first step, and else not."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import comfy.sample
import comfy.samplers
import comfy.utils
import folder_paths
import pytest
import robust
import tiny_loras
import tiny_models as tiny
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from comfy_api.latest import io
from guides import GUIDE
from pack.attention_patches.core.pictures import WHOLE, PictureGuide
from pack.attention_patches.core.seam import AttentionEdit, ContextEdit
from pack.attention_patches.core.types import Box, BoxwrightError, Region, StepWindow
from pack.attention_patches.host.install import install
from pack.attention_patches.host.loss_guidance import guide_by_pictures
from pack.attention_patches.host.run.schedule import no_step_line
from pack.attention_patches.host.samplers.h_space import edit_h_space
from pack.attention_patches.host.text.layout import encode_layout
from pack.attention_patches.methods.box_constraint import BoxConstraint
from pack.attention_patches.methods.rectified_attention import RectifiedAttention
from pack.attention_patches.methods.region_prompt import RegionPrompt
from pack.attention_patches.samplers.h_space import HSpace
from pack.nodes.arranged_noise import BoxwrightArrangedNoise
from pack.nodes.box_constraint import BoxwrightBoxConstraint
from pack.nodes.ilvr import BoxwrightILVR
from pack.nodes.parts import losses, progress, schema
from pack.nodes.rectified_attention import BoxwrightRectifiedAttention
from schemas import defaults
from toyworld import sampling

EARLY, LATE = StepWindow(0.0, 0.25), StepWindow(0.75, 1.0)
SPLIT = 2  # of four steps


def counting(window, calls):
    """An edit that changes nothing and notes its calls."""
    return AttentionEdit("counting", "probs", lambda probs, site: calls.append(site.progress) or probs, window)


def reddish(pictures):
    return -pictures[:, 0].mean(dim=(1, 2))


def draw(family, model, layout, steps=4, **kw):
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    return tiny.run(family, model, positive, noise=tiny.latent(family, (8, 12)), steps=steps, **kw)


# --- what is said, and when ---


@pytest.mark.parametrize(
    "windows, line",
    [
        ([EARLY], "no effect from 0.6 to 1 of the noise schedule: no step of this run lies between 0 and 0.25; move "),
        ([StepWindow(0.4, 0.5), EARLY], "lies between 0 and 0.25 or 0.4 and 0.5; "),
        ([StepWindow(0.2, 0.5), EARLY, StepWindow(0.3, 0.4)], "lies between 0 and 0.5; "),
    ],
)
def test_the_line_names_the_times_and_the_remedy(windows, line):
    said = no_step_line(windows, [0.6, 0.804, 1.0])
    assert line in said and said.endswith("move start and end, or change denoise")


@pytest.mark.parametrize("family", ["sd15", "flux"])
@pytest.mark.parametrize("sampler, scheduler", [("euler", "simple"), ("heun", "karras"), ("uni_pc", "beta")])
def test_it_is_said_exactly_where_an_edit_is_never_asked(models, layout, family, sampler, scheduler):
    """Whatever the schedule; a window between two steps takes the step before."""
    found = set()
    for steps, denoise in ((1, 1.0), (4, 1.0), (2, 0.4), (2, 0.1)):
        model, heard = models[family], []
        for window in (EARLY, StepWindow(0.3, 0.35), StepWindow(0.5, 0.7), LATE):
            calls, said = [], []
            heard.append((window, calls, said))
            model = install(model, layout, [counting(window, calls)], said.append)
        draw(family, model, layout, steps, denoise=denoise, sampler=sampler, scheduler=scheduler)
        for window, calls, said in heard:
            assert len(said) == (0 if calls else 1), (steps, denoise, window, said)
            found.add(bool(calls))
    assert found == {True, False}


def edits_of(layout):
    """What acts in different ways -> its edits."""
    return {
        "bias": RectifiedAttention(window=EARLY).edits(layout),
        "texts": RegionPrompt(window=EARLY).edits(layout),
        "context": [ContextEdit("twice", lambda context, layout: 2 * context, EARLY)],
        "read": [AttentionEdit("look", "read", lambda probs, site: None, EARLY)],
        "latent": [replace(GUIDE, window=EARLY)],
        "prediction": [replace(GUIDE, window=EARLY, moves="prediction")],
    }


@pytest.mark.parametrize("kind", edits_of(tiny.layout()))
@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_image_to_image_behind_the_window_is_the_plain_one_and_said(models, layout, family, kind):
    said = []
    model = install(models[family], layout, edits_of(layout)[kind], said.append)
    plain = draw(family, models[family], layout, denoise=0.3)
    assert torch.equal(draw(family, model, layout, denoise=0.3), plain)
    assert len(said) == 1 and "no step of this run lies between 0 and 0.25" in said[0]
    said.clear()
    draw(family, model, layout)
    assert not any("no step" in line for line in said)


@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_of_two_parts_the_one_without_a_step_says_so(models, layout, family):
    for window, parts in ((EARLY, (0, 1)), (LATE, (1, 0))):
        said = []
        model = install(models[family], layout, [counting(window, [])], said.append)
        lines = []
        for part in (dict(last_step=SPLIT), dict(start_step=SPLIT, disable_noise=True)):
            draw(family, model, layout, **part)
            lines.append(len(said))
            said.clear()
        assert tuple(lines) == parts


@pytest.mark.parametrize("sampler", ["heun", "dpm_2"])
def test_what_acts_on_the_way_of_a_step_alone_says_nothing(models, layout, sampler):
    """In the last step of a first part, which ends inside the window and begins before it.

    H-Space Edit and Loss Guidance likewise."""
    said, calls, points = [], [], []
    look = AttentionEdit("look", "read", lambda probs, site: points.append(float(site.progress)))
    draw("sd15", install(models["sd15"], layout, [look]), layout, last_step=SPLIT, sampler=sampler)
    begins, last = sorted(set(points))[-2:]
    window = StepWindow((begins + last) / 2, 1.0)
    model = install(models["sd15"], layout, [counting(window, calls)], said.append)
    draw("sd15", model, layout, last_step=SPLIT, sampler=sampler)
    assert calls and not said

    source, target = (tiny.conditioning("sd15", tiny.text(seed=seed), seed=seed) for seed in (3, 4))
    moved = edit_h_space(models["sd15"], source, target, HSpace(1.0, window), said.append)
    part = dict(last_step=SPLIT, sampler=sampler)
    plain = draw("sd15", models["sd15"], layout, **part)
    assert not torch.equal(draw("sd15", moved, layout, **part), plain)
    assert not said

    guided = guide_by_pictures(models["sd15"], PictureGuide(reddish, WHOLE, window=window, report=said.append))
    assert not torch.equal(draw("sd15", guided, layout, **part), plain)
    assert not any("no step of this run" in line for line in said)


def test_only_the_node_none_of_whose_edits_acts_says_so(models, layout):
    idle, both, late = [], [], []
    model = install(models["sd15"], layout, [counting(EARLY, []), counting(StepWindow(0.0, 0.1), [])], idle.append)
    model = install(model, layout, [counting(EARLY, []), counting(LATE, [])], both.append)
    model = install(model, layout, [counting(LATE, [])], late.append)
    model = install(model, layout, [counting(EARLY, [])])  # nobody listens
    draw("sd15", model, layout, denoise=0.3)
    assert len(idle) == 1 and both == late == []


def test_it_is_said_before_the_first_step_once_in_each_run_and_of_copied_options(models, layout):
    order = []
    model = install(models["sd15"], layout, [counting(EARLY, [])], lambda line: order.append("said"))

    def draws(model):
        order.clear()
        draw("sd15", model, layout, denoise=0.3, callback=lambda *args: order.append("step"))
        return order

    expected = ["said", *["step"] * 4]
    assert draws(model) == expected and draws(model) == expected
    copied = model.clone()
    copied.model_options = copy.deepcopy(model.model_options)
    assert draws(copied) == expected


def test_a_run_inside_another_says_nothing_of_its_part(models, layout):
    """A sampler that has another one take its last steps: they are some of the run's."""
    said, ran = [], []

    def outer(model, x, sigmas, extra_args=None, callback=None, disable=None):
        inner = comfy.samplers.sampler_object("euler")
        wrappers = get_all_wrappers(WrappersMP.SAMPLER_SAMPLE, extra_args["model_options"], is_model_options=True)
        executor = WrapperExecutor.new_class_executor(inner.sample, inner, wrappers)
        ran.append(executor.execute(model.inner_model, sigmas[-2:], {**extra_args}, None, x, 0.0 * x, None, True))
        return x

    model = install(models["sd15"], layout, [counting(EARLY, [])], said.append)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 4)
    positive, noise = tiny.conditioning("sd15", layout.prompt, layout.key), tiny.latent("sd15", (8, 12))
    sampler, options = comfy.samplers.KSAMPLER(outer), dict(disable_pbar=True, seed=1)
    comfy.sample.sample_custom(model, noise, 1.0, sampler, sigmas, positive, positive, 0.0 * noise, **options)
    assert ran and said == []


# --- methods with runs of their own ---


def test_h_space_says_it_and_refuses_areas_before_the_first_step(models):
    def prompt(seed, **values):
        return tiny.conditioning("sd15", tiny.text(seed=seed), seed=seed, **values)

    def draws(model, positive=None, **kw):
        steps = []
        noise = tiny.latent("sd15", (8, 12))
        try:
            return tiny.run(
                "sd15", model, positive or prompt(1), noise=noise, callback=lambda *a: steps.append(1), **kw
            )
        except BoxwrightError:
            assert steps == []
            raise

    said = []
    edit = lambda window: edit_h_space(models["sd15"], prompt(3), prompt(4), HSpace(1.0, window), said.append)  # noqa: E731
    assert torch.equal(draws(edit(EARLY), denoise=0.3), draws(models["sd15"], denoise=0.3))
    assert len(said) == 1 and "no step of this run lies between 0 and 0.25" in said[0]
    draws(edit(EARLY))
    assert len(said) == 1
    draws(edit(StepWindow(0.3, 0.35)))  # between two steps: here each counts by itself
    assert len(said) == 2
    area = prompt(1, area=(8, 6, 0, 0), strength=1.0)
    with pytest.raises(BoxwrightError, match="has an area of its own"):
        draws(edit(LATE), area, steps=8)
    draws(edit(EARLY), area, denoise=0.3)  # where nothing is edited nothing is in the way
    early_area = prompt(1, area=(8, 6, 0, 0), strength=1.0, start_percent=0.0, end_percent=0.2)
    draws(edit(LATE), prompt(1) + early_area, steps=8)


def test_loss_guidance_names_the_times_of_its_parts(models):
    said = []
    parts = (replace(WHOLE[0], window=StepWindow(0.1, 0.2)),)
    guide = PictureGuide(reddish, parts, window=EARLY, report=said.append)
    tiny.run("sd15", guide_by_pictures(models["sd15"], guide), tiny.conditioning("sd15", tiny.text()), denoise=0.3)
    assert len(said) == 1 and "no step of this run lies between 0.1 and 0.2;" in said[0]
    with pytest.raises(BoxwrightError, match="Nothing is guided from start 0.75 to end 1"):
        replace(guide, window=LATE)


@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_ilvr_says_it_of_the_later_part_of_a_schedule(models, monkeypatch, family):
    said = []
    monkeypatch.setattr(progress, "progress_reporter", lambda node_id: said.append if node_id == "7" else None)
    monkeypatch.setattr(BoxwrightILVR, "hidden", SimpleNamespace(unique_id="7"), raising=False)
    model, noise = models[family], tiny.latent(family, (8, 12))
    positive = tiny.conditioning(family, tiny.text())
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 8)
    for window, part, lines in ((EARLY, sigmas[-3:], 1), (EARLY, sigmas, 0), (LATE, sigmas[-3:], 0)):
        said.clear()
        for node_id in ("7", None):  # nobody listens to the second
            monkeypatch.setattr(BoxwrightILVR.hidden, "unique_id", node_id)
            sampler = BoxwrightILVR.execute(2, window.start, window.end).result[0]
            comfy.sample.sample_custom(
                model, noise, 1.0, sampler, part, positive, positive, 0.5 * noise, disable_pbar=True, seed=1
            )
        assert len(said) == lines and all("no step of this run lies between 0 and 0.25" in line for line in said)


# --- nodes ---

WITHOUT_TIMES = {"BoxwrightRegionStrength"}  # changes the sampler's mask, all through the run
PATCHING = [
    name
    for name, node in robust.our_nodes().items()
    if any(output.get_io_type() == "MODEL" for output in node.GET_SCHEMA().outputs) and name not in WITHOUT_TIMES
]
OTHERWISE = {"end": 0.5, "source": "a red circle", "targets": "a blue circle"}


@pytest.mark.parametrize("name", PATCHING)
def test_every_node_that_patches_a_model_shows_it_on_itself(toy, tmp_path, monkeypatch, name):
    """With its defaults, its time ended at half of the schedule, before a run of the last twentieth."""
    said = {}
    monkeypatch.setattr(progress, "progress_reporter", lambda node_id: said.setdefault(node_id, []).append)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    file = tiny_loras.tensors(toy[0], only=["attn"], size=0.05)
    comfy.utils.save_torch_file({key: t.contiguous() for key, t in file.items()}, str(tmp_path / "one.safetensors"))
    regions = [
        Region(phrase, Box(x, 0.0, 0.5, 1.0), lora="one.safetensors")
        for phrase, x in (("red circle", 0.0), ("blue star", 0.5))
    ]
    positive, layout = encode_layout(toy[1], "a red circle and a blue star", tuple(regions), append_missing=False)
    negative = sampling.encode(toy[1], "")
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    wired = {"MODEL": toy[0], "CLIP": toy[1], "CONDITIONING": negative, "LATENT": latent, losses.Loss.io_type: reddish}
    wired[schema.Layout.io_type] = layout

    node = robust.our_nodes()[name]
    described = node.GET_SCHEMA()
    values = defaults(described)
    for entry in described.inputs:
        if entry.get_io_type() in wired and (not entry.optional or entry.id == "layout"):
            values[entry.id] = wired[entry.get_io_type()]
        elif entry.id in OTHERWISE:
            values[entry.id] = OTHERWISE[entry.id]
    assert io.Hidden.unique_id in described.hidden
    monkeypatch.setattr(node, "hidden", SimpleNamespace(unique_id="7"), raising=False)
    made = list(zip([output.get_io_type() for output in described.outputs], node.execute(**values).result))
    result = dict(reversed(made))  # of two of a type the first
    for told in said.values():
        told.clear()
    empty = result.get("LATENT", latent)["samples"]
    prompts, late = (result.get("CONDITIONING", positive), negative), dict(denoise=0.05, disable_pbar=True, seed=1)
    comfy.sample.sample(result["MODEL"], empty + 1.0, 1, 4.0, "euler", "normal", *prompts, empty, **late)
    assert list(said) == ["7"] and len(said["7"]) == 1
    assert "no step of this run lies" in said["7"][0] or "the noise stays as it is" in said["7"][0]


@pytest.mark.parametrize(
    "node, settings, off",
    [
        (BoxwrightBoxConstraint, ("boxdiff", "standard"), ("boxdiff", "standard", BoxConstraint(step_size=0.0))),
        (BoxwrightRectifiedAttention, (1.0, 0.0, 1.0, 0.0, "all", "hidden"), (0.0, 0.0, 1.0, 0.0, "all", "visible")),
        (BoxwrightArrangedNoise, (1.0, 0), (0.0, 0)),
    ],
)
def test_regions_that_all_have_strength_0_are_refused_where_the_node_is_on(models, node, settings, off):
    idle, half = tiny.layout(strengths=[0.0, 0.0]), tiny.layout(strengths=[0.0, 0.5])
    for layout in (idle, tiny.layout(areas=())):
        with pytest.raises(BoxwrightError, match="no region of the layout has a strength above 0. Raise"):
            node.execute(models["sd15"], layout, *settings)
    assert node.execute(models["sd15"], half, *settings).result
    assert node.execute(models["sd15"], idle, *off).result
