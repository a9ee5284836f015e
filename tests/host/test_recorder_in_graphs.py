"""The record of a picture is its own: the host's real executor, in every cache mode."""

import functools
import uuid

import execution
import nodes
import pytest
import torch
from comfy_execution.graph_utils import GraphBuilder
from graph_runs import Silent, Toy, caches
from pack.attention_patches.methods.recorder import Records
from pack.nodes.attention_heatmap import BoxwrightAttentionHeatmap
from pack.nodes.attention_recorder import BoxwrightAttentionRecorder
from pack.nodes.mask_from_word import BoxwrightMaskFromWord

CACHES = caches(lru=50)
every_cache = pytest.mark.parametrize("cache", CACHES)
PROMPT = "a red circle and a blue star"
SETTINGS = dict(phrases="", resolutions="middle", moments=1, start=0.0, end=1.0, budget_mb=64)


class Collect:
    """Keeps what reaches the end of the graph."""

    RETURN_TYPES, FUNCTION, OUTPUT_NODE = (), "keep", True
    found: dict = {}

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("*",), "name": ("STRING",)}}

    def keep(self, value, name):
        self.found.setdefault(name, []).append(value)
        return ()


class Seeds:
    """A list of numbers: what follows runs once for each."""

    RETURN_TYPES, FUNCTION, OUTPUT_IS_LIST = ("INT",), "list", (True,)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"first": ("INT",), "count": ("INT",)}}

    def list(self, first, count):
        return (list(range(first, first + count)),)


class Second:
    """Takes a whole list, and gives the second of it."""

    RETURN_TYPES, FUNCTION, INPUT_IS_LIST = ("IMAGE",), "second", True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",)}}

    def second(self, images):
        return (images[1],)


class Expanded:
    """A node that the host replaces by samplers, one after the other, and a decoder."""

    RETURN_TYPES, FUNCTION = ("IMAGE",), "expand"

    @classmethod
    def INPUT_TYPES(cls):
        kinds = dict(model="MODEL", vae="VAE", positive="CONDITIONING", negative="CONDITIONING", latent="LATENT")
        return {"required": {name: (kind,) for name, kind in {**kinds, "seed": "INT", "runs": "INT"}.items()}}

    def expand(self, model, vae, positive, negative, latent, seed, runs):
        graph = GraphBuilder()
        for _ in range(runs):
            settings = sampler(seed)["inputs"] | dict(model=model, positive=positive, negative=negative)
            latent = graph.node("KSampler", **settings | {"latent_image": latent}).out(0)
        return {"result": (graph.node("VAEDecode", samples=latent, vae=vae).out(0),), "expand": graph.finalize()}


class Twice:
    """A node that runs a sampler twice, one after the other or on two halves, as tiled upscalers do."""

    RETURN_TYPES, FUNCTION = ("LATENT",), "draw"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL",),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent_image": ("LATENT",),
                "seed": ("INT",),
            }
        }

    def draw(self, model, positive, negative, latent_image, seed):
        one = nodes.KSampler().sample(model, seed, 2, 4.0, "euler", "normal", positive, negative, latent_image)[0]
        return nodes.KSampler().sample(model, seed, 2, 4.0, "euler", "normal", positive, negative, one)


@pytest.fixture(scope="module", autouse=True)
def registered(toy):
    """Our nodes and the test's own among the host's."""
    ours = [BoxwrightAttentionRecorder, BoxwrightAttentionHeatmap, BoxwrightMaskFromWord]
    for cls in ours:
        cls.GET_SCHEMA()
    with pytest.MonkeyPatch.context() as patch:
        Toy.parts = toy
        for cls in (*ours, Toy, Collect, Seeds, Second, Expanded, Twice):
            patch.setitem(nodes.NODE_CLASS_MAPPINGS, cls.__name__, cls)
        yield


class Host:
    """One executor, as a server keeps it from prompt to prompt."""

    def __init__(self, cache):
        kind, arguments = CACHES[cache]
        arguments = {"ram": 0.0, "ram_inactive": 0.0, "lru": 0, **arguments}
        self.executor = execution.PromptExecutor(Silent(), kind, arguments)

    def run(self, graph):
        """What the Collect nodes that ran have got; raises what a node raised."""
        Collect.found = {}
        prompt = {name: {**entry, "inputs": dict(entry["inputs"])} for name, entry in graph.items()}
        outputs = [name for name, entry in prompt.items() if entry["class_type"] == "Collect"]
        self.executor.execute(prompt, str(uuid.uuid4()), {}, outputs)
        for kind, message in self.executor.status_messages:
            if kind == "execution_error":
                raise Failed(message["exception_message"])
        return {name: values[0] if len(values) == 1 else values for name, values in Collect.found.items()}


class Failed(Exception):
    """A node of the graph raised."""


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def sampler(seed, model="recorder", latent=("latent", 0), **settings):
    settings = dict(steps=2, cfg=4.0, sampler_name="euler", scheduler="normal", denoise=1.0) | settings
    return node(
        "KSampler",
        model=[model, 0],
        seed=seed,
        positive=["text", 0],
        negative=["nothing", 0],
        latent_image=list(latent),
        **settings,
    )


def base(batch=1, **recorder):
    return {
        "loader": node("Toy"),
        "text": node("CLIPTextEncode", clip=["loader", 1], text=PROMPT),
        "nothing": node("CLIPTextEncode", clip=["loader", 1], text=""),
        "latent": node("EmptyLatentImage", width=64, height=64, batch_size=batch),
        "recorder": node(
            "BoxwrightAttentionRecorder", model=["loader", 0], clip=["loader", 1], prompt=PROMPT, **SETTINGS | recorder
        ),
    }


def watched(name, seed, threshold=0.5, **settings):
    """A sampler on the recorder, its picture, and the picture's mask."""
    return {
        name: sampler(seed, **settings),
        f"{name} picture": node("VAEDecode", samples=[name, 0], vae=["loader", 2]),
        **masked(name, f"{name} picture", threshold),
    }


def masked(name, picture, threshold=0.5):
    return {
        f"{name} mask": node(
            "BoxwrightMaskFromWord", record=["recorder", 1], images=[picture, 0], phrase="star", threshold=threshold
        ),
        f"{name} end": node("Collect", value=[f"{name} mask", 0], name=name),
    }


@functools.cache
def expected(seed, threshold=0.5, batch=1):
    """The mask of a run of its own."""
    return Host("none").run({**base(batch), **watched("a", seed, threshold)})["a"]


@every_cache
def test_an_earlier_picture_gets_its_own_record(cache):
    """Seed 1, seed 2, then seed 1 with another threshold: its sampler need not run again."""
    host = Host(cache)
    for seed, threshold in ((1, 0.5), (2, 0.5), (1, 0.4)):
        found = host.run({**base(), **watched("a", seed, threshold)})["a"]
        assert torch.equal(found, expected(seed, threshold))
    assert not torch.equal(expected(1, 0.4), expected(2, 0.4))


@every_cache
def test_two_samplers_on_one_recorder_and_then_one(cache):
    host = Host(cache)
    found = host.run({**base(), **watched("a", 1), **watched("b", 2)})
    assert torch.equal(found["a"], expected(1)) and torch.equal(found["b"], expected(2))
    for name, seed in (("a", 1), ("b", 2)):
        found = host.run({**base(), **watched(name, seed, 0.4)})
        assert torch.equal(found[name], expected(seed, 0.4))


@every_cache
def test_a_batch_and_a_list_of_seeds(cache):
    """Each picture of a list is drawn by a run of its own; those of a batch share one."""
    host = Host(cache)
    found = host.run({**base(batch=2), **watched("a", 1)})["a"]
    assert torch.equal(found, expected(1, batch=2)) and found.shape[0] == 2
    graph = {**base(), "seeds": node("Seeds", first=1, count=2), **watched("a", ["seeds", 0])}
    for threshold in (0.5, 0.4):
        graph["a mask"]["inputs"]["threshold"] = threshold
        found = host.run(graph)["a"]
        assert [torch.equal(mask, expected(seed, threshold)) for mask, seed in zip(found, (1, 2))] == [True, True]


@every_cache
def test_a_second_pass_over_the_picture_counts_if_it_has_the_recorder(cache):
    host, later = Host(cache), sampler(2, latent=("a", 0), denoise=0.5)
    first = {**base(), **watched("a", 1)}
    graph = {**first, "b": later, "b picture": node("VAEDecode", samples=["b", 0], vae=["loader", 2])}
    found = host.run({**graph, **masked("b", "b picture")})
    assert torch.equal(found["a"], expected(1)) and not torch.equal(found["b"], found["a"])
    graph["b"]["inputs"]["model"] = ["loader", 0]
    assert torch.equal(host.run({**graph, **masked("b", "b picture", 0.4)})["b"], expected(1, 0.4))


@every_cache
def test_pictures_through_other_nodes(cache):
    graph = {
        **base(),
        **watched("a", 1),
        "larger": node("ImageScaleBy", image=["a picture", 0], scale_by=2.0, upscale_method="bilinear"),
    }
    graph["a mask"]["inputs"]["images"] = ["larger", 0]
    found = Host(cache).run(graph)["a"]
    assert found.shape == (1, 128, 128)


def test_pictures_of_another_sampler_are_refused():
    """Also where a recorded picture led to them, by a mask for one."""
    graph = {
        **base(),
        **watched("a", 1),
        "b": sampler(2, model="loader"),
        "b picture": node("VAEDecode", samples=["b", 0], vae=["loader", 2]),
    }
    graph |= masked("b", "b picture")
    with pytest.raises(Failed, match="None of this recorder's runs|The record is empty"):
        Host("classic").run(graph)
    graph["b"] = sampler(2, model="loader", latent=("masked", 0))
    graph["masked"] = node("SetLatentNoiseMask", samples=["latent", 0], mask=["a mask", 0])
    with pytest.raises(Failed, match="None of this recorder's runs drew these pictures"):
        Host("classic").run(graph)


def test_pictures_of_two_samplers_are_refused():
    graph = {**base(), **watched("a", 1), **watched("b", 2)}
    graph["both"] = node("ImageBatch", image1=["a picture", 0], image2=["b picture", 0])
    with pytest.raises(Failed, match="come from 2 runs"):
        Host("classic").run({**graph, **masked("a", "both")})


def test_a_picture_out_of_a_list_is_refused():
    """A list of seeds, of whose pictures another node gives the second: no one here knows that it is the second."""
    graph = {**base(), "seeds": node("Seeds", first=1, count=2), **watched("a", ["seeds", 0])}
    graph["second"] = node("Second", images=["a picture", 0])
    with pytest.raises(Failed, match="went through a node that takes a whole list.*which of the 2 runs"):
        Host("classic").run({**graph, **masked("b", "second")})


@every_cache
def test_a_second_pass_behind_a_node_that_the_host_expands(cache):
    """The pass behind it counts, as it does behind a sampler that stands in the graph."""
    inside = node(
        "Expanded",
        model=["recorder", 0],
        vae=["loader", 2],
        positive=["text", 0],
        negative=["nothing", 0],
        latent=["latent", 0],
        seed=1,
        runs=1,
    )
    behind = {
        "pixels": node("VAEEncode", pixels=["a", 0], vae=["loader", 2]),
        "b": sampler(2, latent=("pixels", 0), denoise=0.5),
        "b picture": node("VAEDecode", samples=["b", 0], vae=["loader", 2]),
    }
    found = Host(cache).run({**base(), "a": inside, **behind, **masked("b", "b picture")})["b"]
    plain = {**base(), "b1": sampler(1), "a": node("VAEDecode", samples=["b1", 0], vae=["loader", 2]), **behind}
    assert torch.equal(found, Host(cache).run({**plain, **masked("b", "b picture")})["b"])


def test_a_node_that_samples_twice_is_refused():
    graph = {**base(), **watched("a", 1)}
    wires = {name: graph["a"]["inputs"][name] for name in ("model", "positive", "negative", "latent_image", "seed")}
    graph["a"] = node("Twice", **wires)
    with pytest.raises(Failed, match="A node that runs a sampler several times"):
        Host("classic").run(graph)


def test_a_record_that_the_host_dropped_is_missed_and_drawn_again():
    """Under memory pressure models go first: the recorder's entry may be gone while its pictures are there."""
    host, graph = Host("ram"), {**base(), **watched("a", 1)}
    host.run(graph)
    cache = host.executor.caches.outputs
    holds = {key: [type(value) for output in entry.outputs for value in output] for key, entry in cache.cache.items()}
    (recorder,) = [key for key, kinds in holds.items() if Records in kinds]
    del cache.cache[recorder]
    graph["a mask"]["inputs"]["threshold"] = 0.4
    with pytest.raises(Failed, match="The record is empty.*change the seed or a setting of the sampler"):
        host.run(graph)
    assert torch.equal(host.run({**base(), **watched("a", 2, 0.4)})["a"], expected(2, 0.4))


@every_cache
@pytest.mark.parametrize("runs", [1, 2])
def test_samplers_inside_a_node_that_the_host_expands(cache, runs):
    host = Host(cache)
    for seed, threshold in ((1, 0.5), (2, 0.5), (1, 0.4)):
        graph = {
            **base(),
            "a": node(
                "Expanded",
                model=["recorder", 0],
                vae=["loader", 2],
                positive=["text", 0],
                negative=["nothing", 0],
                latent=["latent", 0],
                seed=seed,
                runs=runs,
            ),
            **masked("a", "a", threshold),
        }
        found = host.run(graph)["a"]
        alone = {**base(), **watched("a", seed, threshold)}
        if runs == 2:
            alone |= {"b": sampler(seed, latent=("a", 0)), **masked("a", "b picture", threshold)}
            alone["b picture"] = node("VAEDecode", samples=["b", 0], vae=["loader", 2])
        assert torch.equal(found, Host("none").run(alone)["a"])


def test_the_heatmap_draws_the_record_of_its_pictures():
    host, drawn = Host("lru"), []
    for seed, opacity in ((1, 1.0), (2, 1.0), (1, 0.99)):
        graph = {**base(), **watched("a", seed)}
        graph["a mask"] = node(
            "BoxwrightAttentionHeatmap",
            record=["recorder", 1],
            images=["a picture", 0],
            phrases="star",
            columns="mean",
            opacity=opacity,
            threshold=0.5,
        )
        drawn.append(host.run(graph)["a"])
    first, second, again = drawn
    assert (again - first).abs().max() < 0.03 < (second - first).abs().max()
