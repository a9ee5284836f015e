"""The pictures of the help pages and of the README: what the example workflows draw on the toy model, side by side.

    python tools/pictures.py                draws those that are lacking
    python tools/pictures.py --again NAME   draws these anew: nodes by their id, or README; without a name all

Each is a row of tiles: drawings, pictures, masks, as its entry in PAGES says. There are no words on them but those of
the prompts, so that one picture serves the pages of all languages; the page says under it what is to be seen. Needs the
environment of the tests (COMFYUI_PATH). The box editor's picture is a screenshot and not made here.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from wb_common import ROOT, Failure, exit_status
from wb_demo import execute, load_workflow, save_pictures
from wb_graph import to_api
from wb_templates import TOY_BATCH, boxes_of, for_toy, seeded, template

HELP, OVERVIEW = ROOT / "web" / "docs", ROOT / "docs" / "overview.jpg"
SIDE, GAP = 240, 8  # pixels of a tile, and between two
PAPER, INK = (255, 255, 255), (40, 40, 40)
COLOURS = ((200, 110, 0), (0, 110, 180), (0, 130, 90), (180, 60, 140))  # of words on paper
COMPARED = ("unpatched", "patched")
SHOWN_ONLY = ("SaveImage", "PreviewImage", "MaskPreview", "BoxwrightRegionsPreview")  # of a workflow: not run here
MAX_BYTES, MAX_OVERVIEW = 40_000, 150_000


@dataclass(frozen=True)
class Page:
    """Which tiles, of which workflow.

    `graph` is the stem of an example workflow, or a function of the host's object_info that makes an API graph.
    `settings` are inputs to change first, by class. A tile is

    - "unpatched" or "patched": what the workflow saves under that name, of a batch the picture with the largest gain
    - "patched:1": the picture of that place in the batch; "latent:7": what node 7 of the graph has made, decoded
    - "picture": what an edit begins with; "boxes": the regions, drawn; "on the picture": drawn on it
    - "NODE.output": of the NODE by its class without "Boxwright"; "words:NODE.output": a text
    - "prompt": the prompt with its phrases in colours; "template": the workflow's own picture; "crops": see `crops`
    """

    graph: object
    tiles: tuple[str, ...]
    settings: dict = field(default_factory=dict)


BOXES = ("boxes", "unpatched", "patched")
SHAPES = json.dumps(
    {
        "type": "boxwright.regions",
        "version": 1,
        "regions": [
            {"phrase": "red heart", "x": 0.06, "y": 0.08, "width": 0.4, "height": 0.38},
            {"phrase": "moon", "x": 0.6, "y": 0.08, "width": 0.3, "height": 0.3, "shape": {"kind": "ellipse"}},
            {
                "phrase": "green tree",
                "x": 0.08,
                "y": 0.56,
                "width": 0.38,
                "height": 0.38,
                "shape": {"kind": "polygon", "points": [5000, 0, 10000, 10000, 0, 10000]},
            },
            {"phrase": "blue star", "x": 0.54, "y": 0.52, "width": 0.4, "height": 0.4},
        ],
    }
)
CAPTION = "A red heart and a blue star [[0.1, 0.1, 0.5, 0.5], [0.5, 0.5, 0.4, 0.4]]"


def node(kind: str, **inputs) -> dict:
    """A node of an API graph."""
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


def drawn_regions(info: dict) -> dict:
    return {"1": node("BoxwrightRegions", regions_json=SHAPES, width=512, height=512, phrases="", frame=0)}


def written_layout(info: dict) -> dict:
    graph = templates_graph("box_constraint", info)
    editor = only(graph, "BoxwrightBoxEditor")
    graph["90"] = node(
        "BoxwrightLayoutToPrompt",
        regions=[editor, 0],
        format="FLUX.3",
        prompt=[editor, 1],
        background="",
        style="",
        unsupported="leave out",
        template="",
        width=0,
        height=0,
    )
    return graph


def read_layout(info: dict) -> dict:
    graph = written_layout(info)
    graph["91"] = node(
        "BoxwrightPromptToRegions",
        text=["90", 0],
        format="auto",
        keep_marks=False,
        width=512,
        height=512,
        template="",
    )
    return graph


def arranged(info: dict) -> dict:
    """The noise of the template of Arranged Noise, as a noise of its own."""
    graph = templates_graph("arranged_noise", info)
    prompt, latent = only(graph, "BoxwrightLayoutPrompt"), only(graph, "EmptyLatentImage")
    graph["90"] = node("RandomNoise", noise_seed=3)
    graph["91"] = node(
        "BoxwrightArrangeNoise",
        noise=["90", 0],
        model=[only(graph, "CheckpointLoaderSimple"), 0],
        positive=[prompt, 0],
        layout=[prompt, 1],
        latent=[latent, 0],
        strength=1.0,
        block=0,
    )
    return graph


def word_found(info: dict) -> dict:
    """The word of a picture that is there already: the one of the template of DiffEdit."""
    graph = templates_graph("diff_edit", info)
    load = only(graph, "CheckpointLoaderSimple")
    graph["90"] = node(
        "BoxwrightFindWord",
        model=[load, 0],
        clip=[load, 1],
        vae=[load, 2],
        image=graph[only(graph, "BoxwrightDiffEdit")]["inputs"]["image"],
        prompt="a green circle and a red star on a white background",
        phrase="green circle",
        draws=8,
        noise_level=0.5,
        threshold=0.0,
        dilate=0,
        seed=1,
    )
    return graph


def sampled_flow(info: dict) -> dict:
    """Flow Edit part by part: the sampler, in the mask that Flow Edit found."""
    graph = templates_graph("flow_edit", info)
    load, edit = only(graph, "CheckpointLoaderSimple"), only(graph, "BoxwrightFlowEdit")
    wires = graph[edit]["inputs"]
    graph["90"] = node("VAEEncode", pixels=wires["image"], vae=[load, 2])
    graph["91"] = node("BasicScheduler", model=[load, 0], scheduler="normal", steps=20, denoise=0.8)
    graph["92"] = node(
        "BoxwrightFlowEditSampler",
        source=wires["source"],
        method="FlowEdit",
        source_cfg=1.0,
        averages=1,
        finish=0.0,
        mask=[edit, names(info, "BoxwrightFlowEdit").index("mask")],
    )
    graph["93"] = node(
        "SamplerCustom",
        model=[load, 0],
        add_noise=True,
        noise_seed=1,
        cfg=5.0,
        positive=wires["target"],
        negative=wires["negative"],
        sampler=["92", 0],
        sigmas=["91", 0],
        latent_image=["90", 0],
    )
    return graph


def inverted(info: dict) -> dict:
    """A picture inverted, and drawn again from its noise by the host's own sampler."""
    graph = templates_graph("prompt_to_prompt_on_a_picture", info)
    invert = only(graph, "BoxwrightInvert")
    wires = graph[invert]["inputs"]
    graph["91"] = node("BasicGuider", model=wires["model"], conditioning=wires["positive"])
    graph["92"] = node("KSamplerSelect", sampler_name="euler")
    graph["94"] = node(
        "SamplerCustomAdvanced",
        noise=[invert, names(info, "BoxwrightInvert").index("noise")],
        guider=["91", 0],
        sampler=["92", 0],
        sigmas=wires["sigmas"],
        latent_image=wires["latent"],
    )
    return graph


def settled(info: dict) -> dict:
    """Box Constraint by its preset (as the workflow has it), and by settings that fill boxes better."""
    graph = templates_graph("box_constraint", info)
    old = only(graph, "BoxwrightBoxConstraint")
    given = {
        name: options[1]["default"]
        for name, options in info["BoxwrightBoxConstraintSettings"]["input"]["required"].items()
        if "default" in options[1]
    }
    graph["90"] = node("BoxwrightBoxConstraintSettings", **(given | {"top_fraction": 0.5, "corner": 2.0}))
    graph["91"] = node("BoxwrightBoxConstraint", **(graph[old]["inputs"] | {"settings": ["90", 0]}))
    (sampler,) = [key for key, each in graph.items() if each["inputs"].get("model") == [old, 0]]
    graph["92"] = node("KSampler", **(graph[sampler]["inputs"] | {"model": ["91", 0]}))
    return graph


def recoloured(info: dict) -> dict:
    """The template of Loss Guidance with a box around one thing, and white around it."""
    graph = templates_graph("loss_guidance", info)
    graph[only(graph, "BoxwrightColorLoss")]["inputs"]["colors"] = "#1a48d8"
    box = {"phrase": "red circle", "x": 0.28, "y": 0.6, "width": 0.34, "height": 0.34}
    regions = {"type": "boxwright.regions", "version": 1, "regions": [box]}
    graph[only(graph, "BoxwrightRegions")]["inputs"]["regions_json"] = json.dumps(regions)
    for each in graph.values():
        if "red circle" in each["inputs"].get("text", ""):
            each["inputs"]["text"] = "a red circle and a green square on a white background"
    return graph


def looked_at(info: dict) -> dict:
    """A picture for CLIP to look at; the crops are cut by `crops`."""
    return templates_graph("diff_edit", info)


PAGES = {
    "BoxwrightRegions": Page(drawn_regions, ("boxes",)),
    "BoxwrightLayoutPrompt": Page("box_constraint", ("prompt", "boxes")),
    "BoxwrightRegionsPreview": Page("region_lora", ("boxes", "on the picture")),
    "BoxwrightLayoutToPrompt": Page(written_layout, ("boxes", "words:LayoutToPrompt.prompt")),
    "BoxwrightPromptToRegions": Page(read_layout, ("words:LayoutToPrompt.prompt", "boxes")),
    "BoxwrightRectifiedAttention": Page("rectified_attention", BOXES),
    "BoxwrightArrangedNoise": Page("arranged_noise", BOXES),
    "BoxwrightArrangeNoise": Page(arranged, ("boxes", "ArrangeNoise.picture")),
    "BoxwrightBoxConstraint": Page("box_constraint", BOXES),
    "BoxwrightBoxConstraintSettings": Page(settled, ("boxes", "patched", "latent:92")),
    "BoxwrightRegionPrompt": Page("region_prompt", BOXES),
    "BoxwrightRegionConditioning": Page("region_conditioning", ("boxes", "template")),
    "BoxwrightRegionLora": Page("region_lora", ("boxes", "template")),
    "BoxwrightReweight": Page("reweight", ("unpatched", "patched")),
    "BoxwrightPromptToPrompt": Page("prompt_to_prompt", ("unpatched", "patched:0", "patched:1")),
    "BoxwrightAttentionRecorder": Page("attention_heatmap", ("unpatched", "AttentionHeatmap.heatmaps")),
    "BoxwrightAttentionHeatmap": Page(
        "attention_heatmap", ("AttentionHeatmap.heatmaps",), {"BoxwrightAttentionHeatmap": {"columns": "moments"}}
    ),
    "BoxwrightMaskFromWord": Page("attention_heatmap", ("unpatched", "MaskFromWord.mask", "patched")),
    "BoxwrightDiffMask": Page("diff_edit_by_parts", ("picture", "DiffMask.heat", "DiffMask.mask")),
    "BoxwrightFindWord": Page(word_found, ("picture", "FindWord.heat", "FindWord.mask")),
    "BoxwrightInvert": Page(inverted, ("picture", "latent:94")),
    "BoxwrightDirectInversionSampler": Page("prompt_to_prompt_on_a_picture", ("picture", "unpatched", "patched")),
    "BoxwrightDiffEdit": Page("diff_edit", ("picture", "DiffEdit.mask", "patched")),
    "BoxwrightDiffEditSampler": Page("diff_edit_by_parts", ("picture", "DiffMask.mask", "unpatched", "patched")),
    "BoxwrightFlowEdit": Page("flow_edit", ("picture", "unpatched", "patched")),
    "BoxwrightFlowEditSampler": Page(sampled_flow, ("picture", "FlowEdit.mask", "latent:93")),
    "BoxwrightRePaint": Page("masked_samplers", ("picture", "DiffMask.mask", "patched")),
    "BoxwrightBlendedLatents": Page("masked_samplers", ("picture", "DiffMask.mask", "latent:21")),
    "BoxwrightILVR": Page("ilvr", ("picture", "unpatched", "patched")),
    "BoxwrightRegionStrength": Page("region_strength", ("latent:7", "unpatched", "patched")),
    "BoxwrightHSpace": Page("h_space", ("unpatched", "patched")),
    "BoxwrightPromptFit": Page("prompt_fit", ("latent:8", "unpatched", "patched", "PromptFit.plot")),
    "BoxwrightLossGuidance": Page("loss_guidance", BOXES),
    "BoxwrightColorLoss": Page(recoloured, ("boxes", "unpatched", "patched")),
    "BoxwrightClipLoss": Page(looked_at, ("picture", "crops")),
}
# Of the README: tiles of the pages' pictures by their places; the drawing above, what came out below.
COLUMNS = (
    ("BoxwrightBoxConstraint", 0, 2),
    ("BoxwrightRegionPrompt", 0, 2),
    ("BoxwrightArrangedNoise", 0, 2),
    ("BoxwrightFlowEdit", 0, 2),
    ("BoxwrightPromptToPrompt", 1, 2),
)


# --- graphs -----------------------------------------------------------------------------------------------------------


def templates_graph(stem: str, info: dict) -> dict:
    """An example workflow for the toy model, as an API graph, on the seed of its picture."""
    return seeded(to_api(for_toy(load_workflow(template(stem))), info), stem)


def only(graph: dict, kind: str) -> str:
    """The number of the one node of a class."""
    found = [key for key, each in graph.items() if each["class_type"] == kind]
    if len(found) != 1:
        raise Failure(f"the graph has {len(found)} nodes {kind}, and its picture needs one; mend PAGES")
    return found[0]


def names(info: dict, kind: str) -> list[str]:
    """The outputs of a node."""
    return info[kind]["output_name"]


def tapped(graph: dict, tiles: tuple[str, ...], info: dict) -> dict:
    """The graph with a SaveImage for each tile, named by its place, and without the workflow's own outputs."""
    saved = {
        each["inputs"]["filename_prefix"].split("/")[-1]: each["inputs"]["images"]
        for each in graph.values()
        if each["class_type"] == "SaveImage"
    }
    shown = [each["inputs"]["images"] for each in graph.values() if each["class_type"] == "PreviewImage"]
    graph = {key: each for key, each in graph.items() if each["class_type"] not in SHOWN_ONLY}
    for place, tile in enumerate(tiles):
        key = f"tile{place}"
        if tile.split(":")[0] in saved:
            link, kind = saved[tile.split(":")[0]], "IMAGE"
        elif tile == "picture":  # what an edit begins with: the workflow shows it
            link, kind = shown[0], "IMAGE"
        elif tile in ("boxes", "on the picture"):
            graph[f"{key}p"] = node("BoxwrightRegionsPreview", regions=regions_of(graph), width=512, height=512)
            if tile == "on the picture":
                graph[f"{key}p"]["inputs"]["background"] = saved["patched"]
            link, kind = [f"{key}p", 0], "IMAGE"
        elif tile.startswith("latent:"):
            link, kind = [tile.split(":")[1], 0], "LATENT"
        elif tile in ("prompt", "crops", "template"):
            continue  # made here
        else:
            whose, output = tile.removeprefix("words:").split(".")
            number = only(graph, f"Boxwright{whose}")
            index = names(info, f"Boxwright{whose}").index(output)
            link, kind = [number, index], info[f"Boxwright{whose}"]["output"][index]
        if kind == "MASK":
            graph[f"{key}m"], link = node("MaskToImage", mask=link), [f"{key}m", 0]
        elif kind == "LATENT":
            vae = [only(graph, "CheckpointLoaderSimple"), 2]
            graph[f"{key}d"], link = node("VAEDecode", samples=link, vae=vae), [f"{key}d", 0]
        if kind == "STRING":
            graph[key] = node("PreviewAny", source=link)
        else:
            graph[key] = node("SaveImage", images=link, filename_prefix=f"boxwright/{key}")
    return graph


def regions_of(graph: dict) -> list:
    """The wire of the graph's regions: those read back from a prompt before those that it was written from."""
    for kind in ("BoxwrightPromptToRegions", "BoxwrightBoxEditor", "BoxwrightRegions"):
        for key, each in graph.items():
            if each["class_type"] == kind:
                return [key, 0]
    raise Failure("the graph has no regions; mend PAGES")


# --- drawing ----------------------------------------------------------------------------------------------------------


def tiles_of(server, page: Page, info: dict, folder: Path) -> list:
    """The tiles of a page, as PIL pictures of their own sizes."""
    from PIL import Image

    graph = page.graph(info) if callable(page.graph) else templates_graph(page.graph, info)
    for each in graph.values():
        each["inputs"] |= page.settings.get(each["class_type"], {})
    boxes = boxes_of(graph)
    compared = boxes and {*COMPARED} <= {*page.tiles}
    for each in graph.values():
        if "batch_size" in each["inputs"]:
            each["inputs"]["batch_size"] = TOY_BATCH if compared else 1
    prompt = next((each["inputs"]["prompt"] for each in graph.values() if "image_opacity" in each["inputs"]), "")
    graph = tapped(graph, page.tiles, info)
    outputs = execute(server, graph)
    words = {key: "".join(output["text"]) for key, output in outputs.items() if output.get("text")}
    drawn = save_pictures(server, graph, outputs, folder)
    best = 0
    if compared:
        best = most_gained({name: drawn[f"tile{page.tiles.index(name)}"] for name in COMPARED}, boxes)
    made = []
    for place, tile in enumerate(page.tiles):
        key = f"tile{place}"
        if tile == "prompt":
            made.append(written(prompt, [box["phrase"] for box in boxes]))
        elif tile == "template":
            made.append(Image.open(template(page.graph).with_suffix(".jpg")).convert("RGB"))
        elif tile == "crops":
            made.extend(crops(Image.open(drawn["tile0"][0]).convert("RGB")))
        elif tile.startswith("words:"):
            made.append(written(words[key], []))
        else:
            files = drawn[key]
            chosen = int(tile.split(":")[-1]) if tile.count(":") > tile.startswith("latent:") else best
            made.append(Image.open(files[chosen if chosen < len(files) else 0]).convert("RGB"))
    return made


def most_gained(drawn: dict[str, list[Path]], boxes: list[dict]) -> int:
    """Which picture of a batch shows best what a method does: its things lie in the boxes, and without it do not."""
    import contact_sheet  # here, since it needs the packages of the tests

    scores = contact_sheet.score(contact_sheet.import_scorer(), boxes, drawn)
    old, new = ([sum(found.iou for found in each.objects) for each in scores[name]] for name in COMPARED)
    gains = [after - before for before, after in zip(old, new, strict=True)]
    return gains.index(max(gains))


def written(text: str, phrases: list[str]):
    """A tile with a text, and its phrases in their colours."""
    from PIL import Image, ImageDraw, ImageFont

    paper = Image.new("RGB", (SIDE * 2, SIDE * 2), (248, 248, 246))
    draw, font = ImageDraw.Draw(paper), ImageFont.load_default(34 if len(text) < 140 else 24)
    line, margin = font.size * 14 // 10, 20
    x, y, at = margin, margin, 0
    ink = [INK] * len(text)
    for number, phrase in enumerate(phrases):
        found = text.find(phrase)
        if found >= 0:
            ink[found : found + len(phrase)] = [COLOURS[number % len(COLOURS)]] * len(phrase)
    for word in text.replace(",", ", ").replace("  ", " ").split(" ") if len(text) > 140 else text.split(" "):
        while draw.textlength(word, font) > paper.width - 2 * margin:
            cut = max(1, len(word) * (paper.width - 2 * margin) // round(draw.textlength(word, font)) - 1)
            draw.text((margin, y + (line if x > margin else 0)), word[:cut], INK, font)
            y, x, word = y + line * (2 if x > margin else 1), margin, word[cut:]
        if x + draw.textlength(word, font) > paper.width - margin:
            x, y = margin, y + line
        colour = ink[min(max(text.find(word, at), 0), len(ink) - 1)]
        at = max(text.find(word, at), at)
        draw.text((x, y), word, colour, font)
        x += draw.textlength(word + " ", font)
    return paper


def crops(picture) -> list:
    """Three of the squares that CLIP Loss shows to CLIP, cut by its own code."""
    import numpy as np
    import torch
    from PIL import Image

    sys.path.insert(0, str(ROOT))
    from attention_patches.samplers.clip_loss import Crops

    pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).movedim(-1, 0)[None]
    cut = Crops(4).of(pixels, SIDE)[1:]
    return [Image.fromarray((each.movedim(0, -1).clamp(0, 1) * 255).byte().numpy()) for each in cut]


def row(tiles: list, across: int = 99):
    """Tiles side by side, all of one height; at most `across` in a row."""
    from PIL import Image

    rows = [tiles[first : first + across] for first in range(0, len(tiles), across)]
    scaled = [
        [each.resize((round(each.width * SIDE / each.height), SIDE), Image.Resampling.LANCZOS) for each in line]
        for line in rows
    ]
    width = max(sum(each.width + GAP for each in line) - GAP for line in scaled)
    paper = Image.new("RGB", (width, len(rows) * (SIDE + GAP) - GAP), PAPER)
    for down, line in enumerate(scaled):
        x = 0
        for each in line:
            paper.paste(each, (x, down * (SIDE + GAP)))
            x += each.width + GAP
    return paper


def save(picture, goal: Path, limit: int) -> None:
    """As a JPEG of at most `limit` bytes."""
    for quality in range(88, 40, -6):
        picture.save(goal, quality=quality, optimize=True)
        if goal.stat().st_size < limit:
            return
    raise Failure(f"{goal.name} is larger than {limit} bytes at any quality worth having; use fewer or smaller tiles")


def draw(chosen: list[str], again: bool) -> None:
    """Draw the pictures that are lacking, or all that are named."""
    from wb_environment import host_at
    from wb_server import running_server

    unknown = {*chosen} - {*PAGES, "README"}
    if unknown:
        raise Failure(f"no picture is made for {', '.join(sorted(unknown))}; there are README, {', '.join(PAGES)}")
    wanted = [name for name in PAGES if not chosen or name in chosen]
    wanted = [name for name in wanted if again or not page_picture(name).exists()]
    if wanted:
        with (
            running_server(Path(sys.executable), host_at(Path(os.environ["COMFYUI_PATH"]), "COMFYUI_PATH")) as server,
            tempfile.TemporaryDirectory() as folder,
        ):
            info = server.get_json("/object_info")
            for name in wanted:
                save(row(tiles_of(server, PAGES[name], info, Path(folder))), page_picture(name), MAX_BYTES)
                print(page_picture(name).relative_to(ROOT), flush=True)
    if not chosen or "README" in chosen:
        save(overview(), OVERVIEW, MAX_OVERVIEW)
        print(OVERVIEW.relative_to(ROOT), flush=True)


def page_picture(name: str) -> Path:
    return HELP / f"{name}.jpg"


def overview():
    """The picture of the README, of tiles that the pages have."""
    from PIL import Image

    def tile(name: str, place: int):
        left = place * (SIDE + GAP)
        return Image.open(page_picture(name)).crop((left, 0, left + SIDE, SIDE))

    above = [tile(name, drawing) for name, drawing, _ in COLUMNS]
    return row([*above, *(tile(name, result) for name, _, result in COLUMNS)], len(COLUMNS))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--again", action="store_true", help="draw them even where they are there")
    parser.add_argument("names", nargs="*", help="README, or ids of nodes; none = all")
    options = parser.parse_args()
    return exit_status(lambda: draw(options.names, options.again), Failure, subprocess.SubprocessError)


if __name__ == "__main__":
    sys.exit(main())
