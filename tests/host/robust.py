"""One host for the robustness suite: our nodes and some of its own, its real executor, and what a graph came to."""

import asyncio
import contextlib
import gc
import importlib
import importlib.util
import inspect
import sys
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import execution
import folder_paths
import nodes
import safetensors.torch
import tiny_loras
import torch
from graph_runs import Given, Silent, Toy, caches
from graph_sense import LORA, VISION
from pack.attention_patches.core.types import BoxwrightError
from pack.nodes.parts.schema import guarded
from test_clip_loss import clip_of, vision_of

NODES = Path(__file__).resolve().parents[2] / "nodes"
EXTRAS = (
    "custom_sampler", "mask", "freelunch", "pag", "sag", "hypertile", "tomesd", "easycache", "model_advanced",
    "model_downscale", "differential_diffusion", "primitive", "images", "rebatch", "hooks", "perpneg", "cfg",
    "apg", "tcfg", "fresca", "mahiro", "nag", "model_merging", "eps", "attention_multiply", "advanced_samplers",
    "bounding_boxes", "lora_debug",
)  # fmt: skip
CACHES = caches(lru=10)


class Vision(Given):
    """A tiny random CLIP_VISION, and the CLIP that belongs to it."""

    RETURN_TYPES = ("CLIP_VISION", "CLIP")


class Look:
    """Keeps what reaches the end of the graph."""

    RETURN_TYPES, FUNCTION, OUTPUT_NODE = (), "keep", True
    found: list = []

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("*",)}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):
        return True

    def keep(self, value):
        self.found.append(value)
        return ()


class Executor(execution.PromptExecutor):
    """The host's, which keeps the exception itself."""

    error = None

    def handle_execution_error(self, *args):
        self.error = args[-1]
        super().handle_execution_error(*args)


async def _nodes_of(module):
    extension = module.comfy_entrypoint()
    extension = await extension if inspect.isawaitable(extension) else extension
    return await extension.get_node_list()


def our_nodes():
    """Node id -> class, as the pack's extension hands them out."""
    found = {}
    for path in sorted(NODES.glob("*.py")):
        if path.stem != "__init__":
            for cls in getattr(importlib.import_module(f"pack.nodes.{path.stem}"), "NODES", ()):
                found[cls.GET_SCHEMA().node_id] = guarded(cls)
    return found


def host_nodes():
    """Node id -> class, of those of the host's extras that graphs hold; older hosts lack some."""
    found = {}
    for name in EXTRAS:
        if not importlib.util.find_spec(f"comfy_extras.nodes_{name}"):
            continue
        module = importlib.import_module(f"comfy_extras.nodes_{name}")
        found |= getattr(module, "NODE_CLASS_MAPPINGS", {})
        if hasattr(module, "comfy_entrypoint"):
            found |= {cls.GET_SCHEMA().node_id: cls for cls in asyncio.run(_nodes_of(module))}
    return found


@contextlib.contextmanager
def registered(toy, folder):
    """All nodes of random graphs among the host's, and a LoRA in its folder; gone afterwards."""
    loras, paths = folder / "loras", folder_paths.folder_names_and_paths["loras"]
    loras.mkdir()
    file = tiny_loras.tensors(toy[0], only=("attn2",), size=0.05)
    safetensors.torch.save_file(file, str(loras / LORA))
    vision = vision_of(folder)
    kept, added = dict(nodes.NODE_CLASS_MAPPINGS), {"RobustToy": Toy, VISION: Vision, "Look": Look}
    Toy.parts, Vision.parts = toy, (vision, clip_of())
    try:
        folder_paths.folder_names_and_paths["loras"] = ([str(loras), *paths[0]], paths[1])
        folder_paths.filename_list_cache.pop("loras", None)
        nodes.NODE_CLASS_MAPPINGS.update(host_nodes() | our_nodes() | added)
        yield
    finally:
        nodes.NODE_CLASS_MAPPINGS.clear()
        nodes.NODE_CLASS_MAPPINGS.update(kept)
        folder_paths.folder_names_and_paths["loras"] = paths
        folder_paths.filename_list_cache.pop("loras", None)
        Toy.parts = Vision.parts = ()


@dataclass
class Outcome:
    """What became of a graph: "drawn", "refused by the host" (its check of inputs), "refused" (by us), "fault", or, if
    the graph does no better without our nodes, "fault of the host"."""

    kind: str
    words: str = ""
    found: tuple = ()
    where: str = ""  # the node that failed


class Host:
    """One executor, as a server keeps it from prompt to prompt."""

    def __init__(self, cache="classic", server=None):
        kind, arguments = CACHES[cache]
        arguments = {"ram": 0.0, "ram_inactive": 0.0, "lru": 0, **arguments}
        self.executor = Executor(server or Silent(), kind, arguments)

    def run(self, graph):
        """Check a graph and execute it, as the server's queue does."""
        prompt = {name: {**entry, "inputs": dict(entry["inputs"])} for name, entry in graph.items()}
        number = str(uuid.uuid4())
        valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt(number, prompt, None))
        if not valid:
            details = [f"{e['message']}: {e['details']}" for errors in node_errors.values() for e in errors["errors"]]
            faulty = [e for errors in node_errors.values() for e in errors["errors"] if "exception" in e["type"]]
            return Outcome("fault" if faulty else "refused by the host", "; ".join(details) or error["message"])
        Look.found, self.executor.error = [], None
        self.executor.execute(prompt, number, {}, outputs)
        error, found = self.executor.error, tuple(Look.found)
        Look.found, self.executor.error = [], None
        if error is None:
            return Outcome("drawn", found=found)
        (message,) = [data for kind, data in self.executor.status_messages if kind == "execution_error"]
        words = str(error)
        if isinstance(error, BoxwrightError):
            return Outcome("refused", words, where=message["node_type"])
        trace = "".join(message["traceback"][-6:])
        return Outcome("fault", f"{type(error).__name__}: {words}\n{trace}", where=message["node_type"])


def plain(seed=1):
    """A graph without anything of ours."""
    node = lambda kind, **inputs: {"class_type": kind, "inputs": inputs}  # noqa: E731
    return {
        "toy": node("RobustToy"),
        "text": node("CLIPTextEncode", clip=["toy", 1], text="a red circle and a blue star"),
        "nothing": node("CLIPTextEncode", clip=["toy", 1], text=""),
        "latent": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "draw": node("KSampler", model=["toy", 0], seed=seed, positive=["text", 0], negative=["nothing", 0],
                     latent_image=["latent", 0], steps=2, cfg=4.0, sampler_name="euler", scheduler="normal",
                     denoise=1.0),
        "picture": node("VAEDecode", samples=["draw", 0], vae=["toy", 2]),
        "end": node("Look", value=["picture", 0]),
    }  # fmt: skip


def well_said(words):
    """Whether an error of ours reads like one: a sentence or more on one line, not endless, without a traceback."""
    signs = ("Traceback", 'File "', ".py", "Error:", "\n")
    return words.rstrip()[-1:] in ".)" and len(words) < 1200 and not any(sign in words for sign in signs)


def alive():
    """How many objects of our own classes there are, by class."""
    gc.collect()
    return Counter(
        type(thing).__qualname__ for thing in gc.get_objects() if str(type(thing).__module__).startswith("pack.")
    )


def resident():
    """Main memory of this process in MiB."""
    comfy.model_management.soft_empty_cache()
    gc.collect()
    if sys.platform.startswith("linux"):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096 / 2**20
    import psutil

    return psutil.Process().memory_info().rss / 2**20


def same(a, b):
    return torch.equal(a, b)
