"""Bad input over HTTP: one clear error before sampling, from a server that goes on serving; and odd input that works.

The graph is small (64 x 64 pixels, two steps): these tests ask what is refused, not what is drawn.
"""

import io
import itertools
import json
import math

import comfy.model_base
import comfy.model_patcher
import comfy.supported_models
import numpy as np
import pytest
import tiny_models
import torch
from pack.attention_patches.core.types import UnsupportedModelError
from pack.nodes.rectified_attention import BoxwrightRectifiedAttention
from pack.nodes.reweight import BoxwrightReweight
from PIL import Image
from wb_common import Failure
from wb_demo import execute

FRESH_SEEDS = itertools.count(1000)  # a graph the server has drawn before would come from its cache
LEFT = {"x": 0.0, "y": 0.0, "width": 0.5, "height": 1.0}
RIGHT = {"x": 0.5, "y": 0.0, "width": 0.5, "height": 1.0}
CIRCLE, STAR = {"phrase": "red circle", **LEFT}, {"phrase": "blue star", **RIGHT}


def written(*regions, **changes):
    """The text of regions_json for these regions, with keys of the whole replaced."""
    return json.dumps({"type": "boxwright.regions", "version": 1, "regions": regions, **changes})


def wired(*boxes):
    """A constant for the bounding_boxes socket, as the host passes lists that are not links."""
    return {"regions_json": "", "width": 100, "height": 100, "bounding_boxes": {"__value__": list(boxes)}}


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


def good(**changes):
    """The graph that works, with inputs of its nodes replaced, or with whole nodes (made by `node`) added."""
    graph = {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name="toyworld.safetensors"),
        "regions": node("BoxwrightRegions", regions_json=written(CIRCLE, STAR), width=64, height=64, phrases=""),
        "prompt": node(
            "BoxwrightLayoutPrompt",
            clip=["checkpoint", 1],
            regions=["regions", 0],
            prompt="a red circle and a blue star",
            append_missing=False,
        ),
        "negative": node("CLIPTextEncode", clip=["checkpoint", 1], text=""),
        "method": node(
            "BoxwrightRectifiedAttention",
            model=["checkpoint", 0],
            layout=["prompt", 1],
            strength=1.0,
            start=0.0,
            end=1.0,
            feather=0.0,
            resolutions="all",
            end_tokens="visible",
        ),
        "latent": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "sampler": node(
            "KSampler",
            model=["method", 0],
            positive=["prompt", 0],
            negative=["negative", 0],
            latent_image=["latent", 0],
            seed=1,
            steps=2,
            cfg=5.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["checkpoint", 2]),
        "show": node("PreviewImage", images=["decode", 0]),
    }
    for name, change in changes.items():
        if "class_type" in change:
            graph[name] = change
        else:
            graph[name]["inputs"].update(change)
    return graph


def reweight(weights, **settings):
    """The reweight node in the place of the method."""
    inputs = dict(weights=weights, start=0.0, end=1.0, region=0, renormalize=False) | settings
    return {"method": node("BoxwrightReweight", model=["checkpoint", 0], layout=["prompt", 1], **inputs)}


def regional(**inputs):
    """The region prompt in the place of the method, with inputs replaced or, as None, left out."""
    usual = {
        "mode": "couple",
        "mode.base_ratio": 0.2,
        "mode.confine_end": 0.4,
        "mode.feather": 0.0,
        "bound": "off",
        "mode.blocks": "all",
    }
    usual |= dict(strength=1.0, overlap="order", start=0.0, end=1.0, model=["checkpoint", 0], layout=["prompt", 1])
    inputs = {name: value for name, value in {**usual, **inputs}.items() if value is not None}
    return {"method": node("BoxwrightRegionPrompt", **inputs)}


def painted(value):
    """Nodes whose mask, 100 x 40 pixels, holds `value` in its left half and 0 elsewhere; and their regions."""
    return {
        "canvas": node("SolidMask", value=0.0, width=100, height=40),
        "paint": node("SolidMask", value=value, width=50, height=40),
        "mask": node("MaskComposite", destination=["canvas", 0], source=["paint", 0], x=0, y=0, operation="add"),
        "regions": {"regions_json": written(STAR), "phrases": "red circle", "masks": ["mask", 0]},
    }


def draw(server, graph):
    """The pictures of a graph that works, uint8 [n, height, width, 3]."""
    return pictures_of(server, execute(server, graph)["show"]["images"])


def pictures_of(server, shown):
    """What a node showed, uint8 [n, height, width, 3]."""
    return np.stack([np.asarray(Image.open(io.BytesIO(server.get("/view", **picture)))) for picture in shown])


def unpatched(server, **changes):
    return draw(server, good(**changes | {"sampler": changes.get("sampler", {}) | {"model": ["checkpoint", 0]}}))


def refusal(server, graph):
    """What the user reads when the server refuses the graph, or when a node of it fails."""
    with pytest.raises(Failure) as refused:
        execute(server, graph)
    return str(refused.value)


BAD = {
    # the phrase and the prompt
    "phrase absent": (
        {"prompt": {"prompt": "a red circle and a blue moon"}}, ['"blue star"', "not in the prompt", "append_missing"]),
    "reweighted phrase absent": (
        reweight("blu star: 2"), ['"blu star"', "not in the prompt", 'closest words are "blue star"']),
    "prompt of 1 MB": ({"prompt": {"prompt": "red " * 250_000}}, ["1000000 characters", "shorten"]),
    "another prompt at the sampler": (
        {"other": node("CLIPTextEncode", clip=["checkpoint", 1], text="a blue star"),
         "sampler": {"positive": ["other", 0]}},
        ['"a red circle and a blue star"', "wire `positive` of the same Layout Prompt"]),
    # regions
    "nothing at all": ({"regions": {"regions_json": ""}}, ["There is no region", "connect"]),
    "no region in the list": ({"regions": {"regions_json": written()}}, ["at least one region", "[]", "Add"]),
    "no box on the wire": ({"regions": wired()}, ["holds no box", "disconnect"]),
    "box outside": (
        {"regions": {"regions_json": written({**CIRCLE, "x": 0.7})}},
        ["red circle", "x 0.7", "reaches outside the image", "at most 1"]),
    "wired box outside": (
        {"regions": {**wired({"x": 200, "y": 0, "width": 50, "height": 50}), "phrases": "red circle"}},
        ["Box 1", "100 x 100 pixels", "outside the image", "Move"]),
    "zero size": (
        {"regions": {"regions_json": written({**CIRCLE, "width": 0})}}, ["red circle", "width 0", "above 0", "Give"]),
    "negative size": (
        {"regions": {"regions_json": written({**CIRCLE, "height": -0.5})}}, ["height -0.5", "above 0", "Give"]),
    "wired box of negative size": (
        {"regions": wired({"x": 9, "y": 9, "width": -5, "height": 5})}, ["Box 1", "width -5", "above 0", "Give"]),
    "NaN": ({"regions": {"regions_json": written({**CIRCLE, "x": math.nan})}}, ["NaN", "ordinary numbers", "Replace"]),
    "NaN on the wire": ({"regions": wired({**LEFT, "x": math.nan})}, ["Box 1", "x must be an ordinary number", "nan"]),
    "string for a number": (
        {"regions": {"regions_json": written({**CIRCLE, "x": "0.1"})}}, ["red circle", "x must be a number", "'0.1'"]),
    "string for a number on the wire": (
        {"regions": wired({**LEFT, "width": "wide"})}, ["Box 1", "width must be a number", "'wide'"]),
    "10 000 regions": (
        {"regions": {"regions_json": written(*[CIRCLE] * 10_000)}}, ["10000 regions", "at most 64", "Remove"]),
    "10 000 boxes on the wire": ({"regions": wired(*[LEFT] * 10_000)}, ["10000 regions", "at most 64", "Remove"]),
    "label of 1 MB": (
        {"regions": {"regions_json": written({**CIRCLE, "phrase": "x" * 10**6})}}, ["characters", "1000000", "Remove"]),
    "label of 1 MB on the wire": (
        {"regions": wired({**LEFT, "label": "x" * 10**6})}, ["box 1", "1000000 characters", "at most 1000", "Shorten"]),
    "phrases of 1 MB": (
        {"regions": {**wired(LEFT), "phrases": "x" * 10**6}}, ["1000000 characters", "at most 1000", "Shorten"]),
    "JSON not ours": (
        {"regions": {"regions_json": '{"nodes": [], "links": []}'}},
        ["a ComfyUI workflow", "no box was found", "Write x, y, width and height"]),
    "future version": (
        {"regions": {"regions_json": written(CIRCLE, version=2)}}, ["version 2", "newer", "Update"]),
    "malformed JSON": ({"regions": {"regions_json": written(CIRCLE)[:-1]}}, ["not valid JSON", "line 1, column"]),
    "empty mask": (painted(0.0), ["Mask 1", "red circle", "every pixel is 0", "Paint it"]),
    # settings
    "strength in words": ({"method": {"strength": "strong"}}, ["strength", "strong", "FLOAT"]),
    "strength NaN": ({"method": {"strength": math.nan}}, ["strength must be an ordinary number", "nan", "Replace"]),
    # what is wired, whose range the host does not check
    **{
        f"editor {value} pixels wide": (
            {"number": node("PrimitiveInt", value=value),
             "editor": node("BoxwrightBoxEditor", regions_json=written(CIRCLE, STAR), width=["number", 0], height=512,
                            prompt="", image_opacity=0.5),
             "prompt": {"regions": ["editor", 0]}},
            ["width", str(value), "choose a number from 64 to 8192"])
        for value in (-5, 0, 2**40)
    },
    "mode that there is not": (regional(mode="couples"), ["mode", "choose one of couple, dense"]),
    "bound that there is not": (regional(bound="fine"), ["bound", "choose one of off, coarse, all"]),
    "inputs of a mode without its name": (
        regional(**{"mode.base_ratio": None, "base_ratio": 0.2}), ["BoxwrightRegionPrompt", "base_ratio", "missing"]),
    "input of a mode out of range": (regional(**{"mode.feather": 2.0}), ["feather", "2.0", "max"]),
    "input of a mode out of range on a wire": (
        {"number": node("PrimitiveFloat", value=7.0), **regional(**{"mode.base_ratio": ["number", 0]})},
        ["base_ratio is 7.0", "choose a number from 0.0 to 1.0"]),
    "window turned around": (
        {"method": {"start": 0.8, "end": 0.2}}, ["0.8 to 0.2", "empty", "choose start below end"]),
    "factor out of range": (reweight("red: 11"), ["11", '"red"', "outside -5 to 10"]),
    "no factor": (reweight("red"), ["Line 1", '"red"', "a colon and a number"]),
    "no such region": (reweight("red: 2", region=3), ["Region 3", "the layout has 2", "1 to 2"]),
    "negative and renormalized": (
        reweight("red: -1", renormalize=True), ["-1", '"red"', "not negative", "switch renormalize off"]),
}  # fmt: skip


@pytest.mark.parametrize("changes, words", BAD.values(), ids=BAD)
def test_bad_input_is_one_clear_error_and_the_server_goes_on(server, changes, words):
    message = refusal(server, good(**changes))
    for word in words:
        assert word in message
    assert message.count("(node ") == 1, "more than one node is blamed"
    assert "\n" not in message and len(message) < 700
    for sign_of_a_traceback in ("Traceback", 'File "', ".py", "Error"):
        assert sign_of_a_traceback not in message
    assert draw(server, good(sampler={"seed": next(FRESH_SEEDS)})).shape == (1, 64, 64, 3)


def test_a_run_that_failed_leaves_the_next_picture_as_it_was(server):
    before = draw(server, good())
    refusal(server, good(**BAD["another prompt at the sampler"][0]))
    # The same latent by another way: the server keeps the patched model but not the picture, and draws it anew.
    detour = {
        "copy": node("RepeatLatentBatch", samples=["latent", 0], amount=1),
        "sampler": {"latent_image": ["copy", 0]},
    }
    assert np.array_equal(draw(server, good(**detour)), before)


@pytest.mark.parametrize(
    "execute_node",
    [
        lambda model, layout: BoxwrightRectifiedAttention.execute(model, layout, 1.0, 0.0, 1.0, 0.0, "all", "visible"),
        lambda model, layout: BoxwrightRectifiedAttention.execute(model, layout, 0.0, 0.0, 1.0, 0.0, "all", "visible"),
        lambda model, layout: BoxwrightReweight.execute(model, layout, "w1: 2", 0.0, 1.0, 0, False),
    ],
    ids=["rectified", "rectified, off", "reweight"],
)
def test_a_model_of_another_family_is_refused(execute_node):
    unet = dict(n_layers=1, n_double_layers=1, dim=64, n_heads=2, cond_seq_dim=64, dtype=torch.float32)
    model = comfy.supported_models.AuraFlow(unet).get_model({}, "")
    model.__class__ = type("AuroraFlow", (type(model),), {})  # what derives from a family may order its tokens anew
    cpu = torch.device("cpu")
    with pytest.raises(UnsupportedModelError, match="AuroraFlow with a MMDiT.*SD 1.x.*Flux.1.*Load one of these"):
        execute_node(comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu), tiny_models.layout())


# What is unusual, and works.


def test_a_mask_of_another_size_is_stretched_over_the_image(server):
    """The left half, painted on 100 x 40 pixels, draws what the left half as a box draws."""
    regions = written(STAR, CIRCLE)  # masks come after what is written
    as_box = draw(server, good(regions={"regions_json": regions}))
    assert np.array_equal(draw(server, good(**painted(1.0))), as_box)
    assert not np.array_equal(as_box, unpatched(server))


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"mode": "dense", "mode.dense_end": 0.3, "mode.cross_weight": 1.0, "mode.self_weight": 0.3},
        {"bound": "coarse", "bound.bound_end": 0.5},
    ],
    ids=["couple", "dense", "bound"],
)
def test_what_a_mode_reads_arrives_in_the_node(server, inputs):
    assert not np.array_equal(draw(server, good(**regional(**inputs))), unpatched(server))
    off = draw(server, good(**regional(strength=0.0, **inputs)))
    assert np.array_equal(off, unpatched(server))


def test_cfg_1(server):
    sampler = {"cfg": 1.0}
    assert not np.array_equal(draw(server, good(sampler=sampler)), unpatched(server, sampler=sampler))


def test_a_batch_of_four_with_one_layout(server):
    latent = {"batch_size": 4}
    patched, plain = draw(server, good(latent=latent)), unpatched(server, latent=latent)
    assert patched.shape == (4, 64, 64, 3)
    assert all(not np.array_equal(a, b) for a, b in zip(patched, plain, strict=True))
    alone = draw(server, good())[0]
    assert np.abs(patched[0].astype(int) - alone).max() <= 2  # kernels for one and for four rows round differently


def test_a_latent_of_33_by_57_cells(server):
    latent = {"width": 456, "height": 264}
    patched = draw(server, good(latent=latent))
    assert patched.shape == (1, 264, 456, 3)
    assert not np.array_equal(patched, unpatched(server, latent=latent))


def test_the_same_node_twice_is_one_stronger_node(server):
    """Half strength twice leaves a word (1 - 0.5)^2 of its odds outside its region, as 0.75 does once."""

    def drawn(first, second):
        graph = good(method={"strength": first})
        graph["again"] = node("BoxwrightRectifiedAttention", **graph["method"]["inputs"] | {"strength": second})
        graph["again"]["inputs"]["model"] = ["method", 0]
        graph["sampler"]["inputs"]["model"] = ["again", 0]
        return draw(server, graph).astype(int)

    once = drawn(0.75, 0.0)
    assert np.abs(drawn(0.5, 0.5) - once).max() <= 2
    assert np.abs(drawn(0.5, 0.0) - once).max() > 2
    assert np.array_equal(drawn(1.0, 1.0), drawn(1.0, 0.0))
