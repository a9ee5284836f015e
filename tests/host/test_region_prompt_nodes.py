"""Region Prompt and Region Conditioning as nodes on the toy: parity with the host's nodes, notes, what is refused."""

import contextlib
from dataclasses import replace

import comfy.hooks
import nodes
import pytest
import tiny_models as tiny
import torch
from pack.attention_patches.core.types import Box, BoxwrightError, Region, UnsupportedModelError
from pack.attention_patches.host.install import install
from pack.attention_patches.host.region_conditioning import RegionConditioning
from pack.attention_patches.host.text.layout import encode_layout
from pack.attention_patches.methods.region_prompt import RegionPrompt
from pack.nodes.region_conditioning import BoxwrightRegionConditioning
from pack.nodes.region_prompt import BoxwrightRegionPrompt
from toyworld import sampling

PROMPT = "a red circle and a blue star"
LEFT, RIGHT = Box(0.0, 0.0, 0.5, 1.0), Box(0.5, 0.25, 0.5, 0.75)
REGIONS = (Region("red circle", LEFT), Region("blue star", RIGHT, 0.5, negative="red heart", end=0.5))
OPTIONS = dict(strength=1.0, overlap="order", start=0.0, end=1.0)
CHOICES = {
    "mode": {
        "couple": dict(base_ratio=0.2, confine_end=0.4, feather=0.0, blocks="all", region_texts=None, background=None),
        "dense": dict(dense_end=0.3, cross_weight=1.0, self_weight=0.3),
    },
    "bound": {"off": {}, "coarse": dict(bound_end=0.5), "all": dict(bound_end=0.5)},
}
CONDITIONED = dict(method="mask", strength=1.0, base="everywhere", base_strength=1.0, feather=0.0, start=0.0, end=1.0)


@pytest.fixture(scope="module")
def encoded(toy):
    """(conditioning, layout) of the prompt with its two regions."""
    return encode_layout(toy[1], PROMPT, REGIONS, append_missing=False)


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    """The nodes ask the executor which node they are."""
    monkeypatch.setattr(BoxwrightRegionPrompt, "hidden", type("Hidden", (), {"unique_id": None}), raising=False)


def inputs(mode="couple", bound="off", **changes):
    """What the host hands to the node: the inputs of a choice stand under its combo."""
    values = OPTIONS | {name: changes.pop(name) for name in OPTIONS if name in changes}
    for combo, key in (("mode", mode), ("bound", bound)):
        own = CHOICES[combo][key]
        values[combo] = {combo: key, **own} | {name: changes.pop(name) for name in own if name in changes}
    assert not changes, changes
    return values


def run_node(toy, layout, **changes):
    return BoxwrightRegionPrompt.execute(toy[0], layout, **inputs(**changes)).result


def draw(toy, model, positive, negative=None, steps=2):
    negative = sampling.encode(toy[1], "") if negative is None else negative
    return sampling.sample(model, toy[2], positive, negative, [0], steps=steps, size=(128, 128))


# --- Layout Prompt carries the negatives ---


def test_negative_phrases_are_encoded_alone(toy, encoded):
    layout = encoded[1]
    assert layout.region_negatives[0] is None
    assert torch.equal(layout.region_negatives[1].embedding, sampling.encode(toy[1], "red heart")[0][0])
    without = tuple(replace(region, negative="", end=None) for region in REGIONS)
    plain = encode_layout(toy[1], PROMPT, without, append_missing=False)[1]
    assert plain.region_negatives == () and plain.key != layout.key


# --- Region Prompt ---


@pytest.mark.parametrize("mode", ["couple", "dense"])
def test_the_node_changes_the_picture_and_strength_0_does_not(toy, encoded, mode):
    positive, layout = encoded
    plain = draw(toy, toy[0], positive)
    on, notes = run_node(toy, layout, mode=mode, bound="coarse")
    assert not torch.equal(draw(toy, on, positive), plain) and f"{mode}: 2 regions" in notes
    off, notes = run_node(toy, layout, mode=mode, bound="coarse", strength=0.0)
    assert torch.equal(draw(toy, off, positive), plain) and f"{mode} is off" in notes


def test_other_texts_and_a_background(toy, encoded):
    """Conditioning of other nodes, joined by the host's Combine; the same as the couple with those texts."""
    positive, layout = encoded
    one, two, rest = (sampling.encode(toy[1], text) for text in ("a green tree", "a moon", "a gray background"))
    (combined,) = nodes.ConditioningCombine().combine(one, two)
    patched, _ = run_node(toy, layout, region_texts=combined, background=rest)
    edits = RegionPrompt().edits(layout, [one[0][0], two[0][0]], rest[0][0])
    assert torch.equal(draw(toy, patched, positive), draw(toy, install(toy[0], layout, edits), positive))
    assert not torch.equal(draw(toy, patched, positive), draw(toy, run_node(toy, layout)[0], positive))


def test_what_has_no_effect_is_said(toy, encoded):
    layout = encoded[1]
    assert "Negative phrases of regions 2" in run_node(toy, layout)[1]
    soft = replace(layout, regions=(replace(layout.regions[0], feather=0.1), layout.regions[1]))
    notes = run_node(toy, soft, mode="dense")[1]
    assert "dense does not use the regions' negative phrases and the regions' own feather" in notes
    masked = nodes.ConditioningSetMask().append(sampling.encode(toy[1], "a"), torch.ones(8, 8), "default", 1.0)[0]
    assert "its mask cannot count in one pass" in run_node(toy, layout, background=masked)[1]
    weak = replace(layout, regions=(layout.regions[0], replace(layout.regions[1], strength=0.0)))
    notes = run_node(toy, weak, bound="coarse")[1]
    assert 'Region 2 ("blue star") has strength 0' in notes and "bound does nothing" in notes
    assert "pooled" not in notes


def test_a_model_that_reads_a_pooled_text_is_told_of(encoded):
    layout = tiny.layout()
    notes = BoxwrightRegionPrompt.execute(tiny.build("sdxl"), layout, **inputs()).result[1]
    assert "pooled text" in notes


def test_what_is_refused(toy, encoded):
    layout, one = encoded[1], sampling.encode(toy[1], "a moon")
    with pytest.raises(BoxwrightError, match="holds 1 text for 2 regions.*Combine"):
        run_node(toy, layout, region_texts=one)
    with pytest.raises(BoxwrightError, match="Text 2 of region_texts has the shape 1x77x5 instead of 1 x tokens x 128"):
        run_node(toy, layout, region_texts=[*one, [torch.zeros(1, 77, 5), {}]])
    with pytest.raises(BoxwrightError, match="background holds 2 texts"):
        run_node(toy, layout, background=[*one, *one])
    hooked = comfy.hooks.set_hooks_for_conditioning(one, comfy.hooks.HookGroup())
    with pytest.raises(BoxwrightError, match="Text 1 of region_texts carries hooks.*Region Conditioning"):
        run_node(toy, layout, region_texts=[*hooked, *one])
    with pytest.raises(BoxwrightError, match="dense_end 0.2 is not after start 0.5"):
        run_node(toy, layout, mode="dense", start=0.5, dense_end=0.2)
    with pytest.raises(UnsupportedModelError, match="Region Conditioning"):
        BoxwrightRegionPrompt.execute(tiny.build("hunyuan_video"), tiny.layout(), **inputs())


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"mode": {"mode": "couples"}}, "mode is 'couples'; choose one of couple, dense."),
        ({"mode": None}, "mode is missing or null; choose one of couple, dense."),
        ({"bound": {"bound": "fine"}}, "bound is 'fine'; choose one of off, coarse, all."),
    ],
)
def test_a_choice_that_there_is_not_is_refused_before_anything_runs(wrong, words):
    """The host leaves such a choice out, with all that hangs on it."""
    right = {"mode": {"mode": "dense"}, "bound": {"bound": "off"}}
    assert BoxwrightRegionPrompt.validate_inputs(**right) is True
    assert BoxwrightRegionPrompt.validate_inputs(**right | wrong) == words


def test_ends_hold_for_regions_with_a_window_of_their_own(toy):
    """A late region is not held back by what ends before it, and an early one does not keep it up."""
    windows = ({"end": 0.9}, {"start": 0.6})
    regions = tuple(replace(region, **{"negative": "", "end": None, **own}) for region, own in zip(REGIONS, windows))
    layout = encode_layout(toy[1], PROMPT, regions, append_missing=False)[1]
    for mode in ("couple", "dense"):
        model, _ = run_node(toy, layout, mode=mode, bound="all")
        installed = model.model_options["transformer_options"]["boxwright_edits"]
        ends = {item.edit.name: item.edit.window.end for item in installed}
        assert ends["bounded attention"] == 0.5
        assert mode == "couple" or ends["dense"] == 0.3


@pytest.mark.parametrize("mode", ["couple", "dense"])
def test_who_is_in_front_counts_by_opacity_where_regions_occlude(toy, mode):
    """Two boxes one on the other. The other choices know no opacity, and say so."""

    def drawn(opacity, overlap="occlude"):
        regions = tuple(Region(phrase, LEFT, opacity=o) for phrase, o in (("red circle", 1.0), ("blue star", opacity)))
        positive, layout = encode_layout(toy[1], PROMPT, regions, append_missing=False)
        model, notes = run_node(toy, layout, mode=mode, overlap=overlap)
        return draw(toy, model, positive), notes

    (opaque, notes), (half, _), (gone, _) = drawn(1.0), drawn(0.5), drawn(0.0)
    assert not torch.equal(opaque, half) and not torch.equal(half, gone) and "opacity" not in notes
    (order, said), (whole, quiet) = drawn(0.5, "order"), drawn(1.0, "order")
    assert torch.equal(order, whole)
    assert "order does not use the regions' opacity; occlude does" in said and "opacity" not in quiet


def test_dense_without_weights_is_off(toy, encoded):
    notes = run_node(toy, encoded[1], mode="dense", bound="coarse", cross_weight=0.0, self_weight=0.0)[1]
    assert "dense is off" in notes
    assert "does not use" not in run_node(toy, encoded[1])[1]


# --- Region Conditioning ---


def mask_of(box):
    """[1, 512, 512] by hand."""
    mask = torch.zeros(1, 512, 512)
    left, top = round(box.x * 512), round(box.y * 512)
    mask[:, top : top + round(box.height * 512), left : left + round(box.width * 512)] = 1.0
    return mask


def by_hand(clip, method):
    """The host's own nodes, wired as a user would."""
    parts = {}
    texts = {"positive": (PROMPT, "red circle", "blue star"), "negative": ("", None, "red heart")}
    for name, (base, *phrases) in texts.items():
        result = sampling.encode(clip, base)
        for region, phrase in zip(REGIONS, phrases):
            if phrase is None:
                continue
            text, box = sampling.encode(clip, phrase), region.area
            if method == "mask":
                (text,) = nodes.ConditioningSetMask().append(text, mask_of(box), "default", 0.8 * region.strength)
            else:
                sizes = (box.width, box.height, box.x, box.y)
                (text,) = nodes.ConditioningSetAreaPercentage().append(text, *sizes, 0.8 * region.strength)
            if region.end is not None:
                (text,) = nodes.ConditioningSetTimestepRange().set_range(text, 0.0, 0.5)
            (result,) = nodes.ConditioningCombine().combine(result, text)
        parts[name] = result
    return parts["positive"], parts["negative"]


def conditioned(toy, regions=REGIONS, **changes):
    clip = toy[1]
    inputs = (clip, regions, sampling.encode(clip, PROMPT), sampling.encode(clip, ""))
    return BoxwrightRegionConditioning.execute(*inputs, **{**CONDITIONED, **changes}).result


@pytest.mark.parametrize("method", ["mask", "area"])
def test_the_same_as_the_hosts_nodes_wired_by_hand_to_the_last_bit(toy, method):
    positive, negative, notes = conditioned(toy, method=method, strength=0.8)
    expected = by_hand(toy[1], method)
    assert torch.equal(draw(toy, toy[0], positive, negative), draw(toy, toy[0], *expected))
    assert [set(o) for _, o in positive + negative] == [set(o) for _, o in expected[0] + expected[1]]
    assert "3, and at CFG above 1 2 more" in notes


@pytest.mark.parametrize("family", ["flux", "qwen", "wan"])
def test_areas_are_for_latents_without_frames_and_the_notes_say_so(toy, models, family):
    """The host's own error, as it stands in the notes; masks go with every model."""
    texts = [tiny.conditioning(family, tiny.text(seed=seed), seed=6) for seed in (9, 10)]
    base = tiny.conditioning(family, tiny.text(seed=3), seed=6)
    plain = tiny.run(family, models[family], base)
    drawn = {}
    for method in ("mask", "area"):
        positive = RegionConditioning(method=method).combined(base, tiny.layout().regions, texts)
        with pytest.raises(IndexError) if method == "area" and plain.ndim == 5 else contextlib.nullcontext() as stopped:
            drawn[method] = tiny.run(family, models[family], positive)
    assert all(not torch.equal(picture, plain) for picture in drawn.values())
    assert len(drawn) == (1 if plain.ndim == 5 else 2)
    assert stopped is None or f'"{stopped.value}"' in conditioned(toy, method="area")[2]
    assert "tuple index" not in conditioned(toy)[2]


def test_outside_the_base_counts_where_no_region_is(toy):
    positive = conditioned(toy, base="outside", base_strength=0.5)[0]
    mask, strength = positive[0][1]["mask"][0], positive[0][1]["strength"]
    outside = 1.0 - torch.maximum(mask_of(LEFT), mask_of(RIGHT))[0]
    assert strength == 0.5 and torch.equal(mask, outside.clamp_min(1e-4))
    assert "mask" not in conditioned(toy)[0][0][1]


@pytest.mark.parametrize("changes", [{"end": 0.3}, {"strength": 0.0}, {"method": "area"}], ids=["late", "off", "area"])
def test_outside_the_base_takes_over_where_no_region_counts(toy, changes):
    """Where no conditioning counts at all the host predicts 0, and guidance the negative turned round."""
    regions = (Region("red circle", Box(0.15, 0.0, 0.4, 1.0)),)  # its area ends a cell before its mask
    positive = conditioned(toy, regions, base="outside", **changes)[0]
    predicted = []
    model = toy[0].clone()
    model.set_model_sampler_pre_cfg_function(lambda args: predicted.append(args["conds_out"][0]) or args["conds_out"])
    draw(toy, model, positive, steps=4)
    columns = [prediction.abs().amax(dim=(0, 1, 2)) for prediction in predicted]
    assert min(float(column.min()) for column in columns) > 0.05


def test_outside_of_painted_regions_of_any_size(toy):
    painted = torch.zeros(64, 96)
    painted[:, :48] = 1.0
    regions = (Region("red circle", painted), Region("blue star", Box(0.5, 0.0, 0.25, 1.0)))
    mask = conditioned(toy, regions, base="outside")[0][0][1]["mask"][0]
    assert mask[:, :380].max() < 1e-3 and torch.equal(mask[:, 390:], torch.ones(512, 122))


def test_negative_phrases_are_prompts_with_emphasis(toy, encoded):
    regions = (REGIONS[0], replace(REGIONS[1], negative="(red:1.5) heart", end=None))
    expected = sampling.encode(toy[1], "(red:1.5) heart")[0][0]
    layout = encode_layout(toy[1], PROMPT, regions, append_missing=False)[1]
    assert torch.equal(layout.region_negatives[1].embedding, expected)
    negative = conditioned(toy, regions)[1]
    assert torch.equal(negative[1][0], expected)


def test_region_conditioning_reads_phrases_as_prompts(toy):
    """Emphasis counts, and orders to other programs are said, not drawn."""
    orders = "a {dark|dim} heart <lora:x:1>"
    regions = (Region("(red:1.5) circle <lora:x:1>", LEFT), Region("blue star", RIGHT, negative=orders))
    positive, negative, notes = conditioned(toy, regions)
    assert torch.equal(positive[1][0], sampling.encode(toy[1], "(red:1.5) circle")[0][0])
    assert torch.equal(negative[1][0], sampling.encode(toy[1], "a {dark|dim} heart")[0][0])
    assert [line.split(".")[0] for line in notes.splitlines()[1:]] == [
        "Region 1: <lora:x:1> left out",
        "The negative of region 2: <lora:x:1> left out",
        "The negative of region 2: {dark|dim} is read as it stands; nothing is put in its place here",
    ]
    with pytest.raises(BoxwrightError, match="Region 1 has no phrase"):
        conditioned(toy, (Region("<lora:x:1>", LEFT),))


def test_texts_of_other_nodes_keep_their_hooks(toy):
    texts = sampling.encode(toy[1], "a moon") + sampling.encode(toy[1], "a tree")
    hooks = comfy.hooks.HookGroup()
    texts = [*comfy.hooks.set_hooks_for_conditioning(texts[:1], hooks), texts[1]]
    positive = conditioned(toy, region_texts=texts)[0]
    assert positive[1][1]["hooks"] is not None and "hooks" not in positive[2][1]
    assert torch.equal(positive[2][0], texts[1][0])


def test_feathered_and_painted_masks_and_refusals(toy):
    painted = (replace(REGIONS[0], area=torch.rand(9, 7)), REGIONS[1])
    assert torch.equal(conditioned(toy, painted)[0][1][1]["mask"][0], painted[0].area)
    soft = conditioned(toy, feather=0.25)[0][1][1]["mask"][0]
    torch.testing.assert_close(soft[0, [255, 256, 319, 384]], torch.tensor([1.0, 1 - 1 / 128, 0.5, 0.0]))
    with pytest.raises(BoxwrightError, match='Region "red circle" is painted'):
        conditioned(toy, painted, method="area")
    with pytest.raises(BoxwrightError, match="holds 1 text for 2 regions"):
        conditioned(toy, region_texts=sampling.encode(toy[1], "a moon"))


def test_frames_of_regions_are_said_to_have_no_effect_in_conditioning(toy):
    timed = (replace(REGIONS[0], start_frame=4), REGIONS[1])
    reports = [conditioned(toy, regions)[2] for regions in (REGIONS, timed)]
    assert ["have no effect: masked conditioning holds in all frames" in report for report in reports] == [False, True]
