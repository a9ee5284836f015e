"""The example workflows, which ComfyUI offers as templates: their titles, and how one for the toy model becomes one for
users, and back. tools/templates.py brings them into shape and draws their pictures."""

import copy
import json
import re
from pathlib import Path

from wb_common import ROOT, Failure
from wb_graph import NOTES

FOLDER = ROOT / "example_workflows"
TOY, TOY_SIDE, TOY_BATCH, TOY_CFG = "toyworld.safetensors", 256, 4, 5.0
USUAL = "v1-5-pruned-emaonly-fp16.safetensors"  # as the host's own first template names it
# Checkpoints that the workflows name: what the model is called, and the side of the pictures it draws.
CHECKPOINTS = {USUAL: ("Stable Diffusion 1.5", 512), "flux1-dev-fp8.safetensors": ("FLUX.1 dev", 1024)}
# LoRAs of the toy model -> what a workflow for users calls those that are to be chosen in their place.
LORAS = {"toyworld_stripes.safetensors": "one_style.safetensors", "toyworld_dots.safetensors": "another.safetensors"}
# What the toy model draws -> what workflows for users have in its place, one for one, so that either way leads back.
WORDS = {
    "striped red heart": "tabby cat", "blue star": "white teapot", "dotted blue house": "dotted blue bowl",
    "red house": "red barn", "yellow star": "yellow tractor", "red circle": "red apple", "green circle": "green apple",
    "blue circle": "blue vase", "blue square": "blue mug", "green square": "green pepper",
    "purple square": "purple flower pot", "red heart": "red car", "blue heart": "blue car",
    "orange heart": "orange pumpkin", "purple heart": "purple plum", "red star": "yellow pear",
    "on a white background": "on a wooden table", "on a gray background": "on a kitchen shelf",
    "on a black background": "in a snowy field",
}  # fmt: skip
# Node -> places of pixels among its saved values; for the batch size the same.
PIXELS = {
    "EmptyLatentImage": (0, 1), "EmptySD3LatentImage": (0, 1), "BoxwrightBoxEditor": (1, 2), "BoxwrightRegions": (1, 2),
    "BoxwrightRegionsPreview": (0, 1), "GrowMask": (0,),
}  # fmt: skip
BATCH = {"EmptyLatentImage": 2, "EmptySD3LatentImage": 2}
CFG = {"KSampler": 3}
# What only the toy model knows, in notes: its words, and how it errs.
OF_THE_TOY = (
    re.compile(r" \((?:textures|colours|shapes|circle)[:,][^)]*\)"),
    re.compile(r"\n\nThis model tends to mix up two objects; look at the ones that are there\."),
)
OF_THE_PICTURE = "A small test model drew the picture in the list of templates, from other words."
NOTE_LINES = 80  # pixels that a note grows by for what is added to it
# Stem of a workflow -> its title: the host sorts by it, and shows nothing else.
TITLES = {
    "arranged_noise": "1.1 Objects in their boxes (Arranged Noise, Box Constraint)",
    "rectified_attention": "1.2 Words kept in their boxes (Rectified Attention)",
    "region_prompt": "1.3 Each box its own words (Region Prompt)",
    "region_prompt_with_box_constraint": "1.4 Own words, and the object in its box (Region Prompt, Box Constraint)",
    "region_conditioning": "1.5 Regions as ComfyUI's own conditioning (Region Conditioning)",
    "rectified_attention_on_flux": "1.6 Words kept in their boxes, on FLUX (Rectified Attention)",
    "region_lora": "1.7 A LoRA for each box (Region LoRA)",
    "box_constraint": "1.8 Objects pulled into their boxes (Box Constraint)",
    "arrange_noise": "1.9 Arranged noise for Sampler Custom (Arrange a Noise, Box Constraint Settings)",
    "reweight": "2.1 More or less of one word (Reweight Words)",
    "prompt_to_prompt": "2.2 Another word, the same picture (Prompt to Prompt)",
    "prompt_to_prompt_on_a_picture": "2.3 Another word in a given picture (Prompt to Prompt)",
    "diff_edit": "2.4 Change this, keep that (DiffEdit)",
    "diff_edit_by_parts": "2.5 Change this, keep that, part by part (DiffEdit)",
    "flow_edit": "2.6 Another prompt for a given picture (FlowEdit)",
    "masked_samplers": "2.7 Fill a mask (RePaint, Blended Latents)",
    "ilvr": "2.8 The layout of a picture, other words (ILVR)",
    "h_space": "2.9 Move a picture by two prompts (H-Space Edit)",
    "attention_heatmap": "3.1 See what a word sees (Attention Heatmap)",
    "loss_guidance": "3.2 Draw towards a colour (Loss Guidance)",
    "prompt_fit": "3.3 A prompt that fits a picture (Prompt Fit)",
    "region_strength": "3.4 A strength for every region (Region Strength)",
    "prompt_fit_and_lora": "3.5 A prompt and a LoRA that fit a picture (Prompt Fit)",
    "find_word": "3.6 Change the thing that a word names (Find Word, Flow Edit)",
    "flow_edit_by_parts": "3.7 Another prompt, part by part (Flow Edit Sampler)",
    "layout_to_prompt": "4.1 Boxes as a prompt, a prompt as boxes (Layout to Prompt, Prompt to Regions)",
}
PICTURE = 512  # pixels each way
# Of templates that change a picture: the node whose latent it is. Their picture shows it in the corner, with an arrow.
BEFORE = {
    "prompt_to_prompt_on_a_picture": "8", "diff_edit": "7", "diff_edit_by_parts": "7", "flow_edit": "7",
    "masked_samplers": "7", "ilvr": "9", "region_strength": "7", "flow_edit_by_parts": "7",
}  # fmt: skip
# The samplers' seed in pictures, where the workflow's own shows badly what it does: examples, no measurements.
SEEDS = {
    "arranged_noise": 1,
    "arrange_noise": 1,
    "region_prompt_with_box_constraint": 1,
    "h_space": 1,
    "flow_edit_by_parts": 2,
}


def template(stem: str) -> Path:
    """The file of the workflow that was once called `stem`."""
    return FOLDER / f"{TITLES.get(stem, stem)}.json"


def stem_of(path: Path) -> str:
    """What the workflow of a file was once called."""
    return next((stem for stem, title in TITLES.items() if title == path.stem), path.stem)


def for_toy(workflow: dict) -> dict:
    """The variant for the toy model: its checkpoint, its size, its words, its batch, and a CFG that it listens to."""
    side = _side_of(workflow)
    made = _adapted(workflow, TOY, TOY_SIDE / side, TOY_BATCH)
    for node in made["nodes"]:
        place = CFG.get(node["type"])
        if place is not None and node["widgets_values"][place] == 1.0:
            node["widgets_values"][place] = TOY_CFG
    return made


def for_users(workflow: dict, checkpoint: str = USUAL) -> dict:
    """The same workflow for a checkpoint that users have, with a note on that; one that names such a one as it is."""
    if TOY not in checkpoints(workflow):
        return workflow
    name, side = CHECKPOINTS[checkpoint]
    made = _adapted(workflow, checkpoint, side / TOY_SIDE, 1)
    note = next((node for node in made["nodes"] if node["type"] in NOTES), None)
    if note is None:
        raise Failure("the workflow has no note; write one that says what it shows and what to try")
    text = note["widgets_values"][0]
    for words in OF_THE_TOY:
        text = words.sub("", text)
    note["widgets_values"] = [
        f"{text}\n\nMade for {name} ({checkpoint}) at {side} x {side}. For another model, choose its file in Load "
        f"Checkpoint, and set its size at every width and height. {OF_THE_PICTURE}"
    ]
    (left, top), (width, height) = note["pos"], note["size"]
    note["pos"], note["size"] = [left, top - NOTE_LINES], [width, height + NOTE_LINES]
    return made


def _adapted(workflow: dict, checkpoint: str, factor: float, batch: int) -> dict:
    made = copy.deepcopy(workflow)
    words = {users: toys for toys, users in WORDS.items()} if checkpoint == TOY else WORDS
    for node in made["nodes"]:
        values = node.get("widgets_values")
        if values and node["type"] not in NOTES:
            values[:] = [said(value, words) if isinstance(value, str) else value for value in values]
        for toys, users in LORAS.items():
            old, new = (users, toys) if checkpoint == TOY else (toys, users)
            values[:] = [value.replace(old, new) if isinstance(value, str) else value for value in values or ()]
        if node["type"] == "CheckpointLoaderSimple":
            node["widgets_values"] = [checkpoint]
        for place in PIXELS.get(node["type"], ()):
            values[place] = round(values[place] * factor)
        if node["type"] in BATCH:
            values[BATCH[node["type"]]] = batch
    return made


def said(text: str, words: dict[str, str]) -> str:
    """The text with other words, the longest that fit first."""
    known = "|".join(sorted(map(re.escape, words), key=len, reverse=True))
    return re.sub(rf"\b(?:{known})\b", lambda found: words[found.group()], text)


def checkpoints(workflow: dict) -> list[str]:
    return [node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "CheckpointLoaderSimple"]


def _side_of(workflow: dict) -> int:
    names = checkpoints(workflow)
    sides = {TOY: TOY_SIDE} | {name: side for name, (_, side) in CHECKPOINTS.items()}
    if len(names) != 1 or names[0] not in sides:
        raise Failure(f"a template names one checkpoint of {', '.join(sides)}; this one names {names}")
    return sides[names[0]]


def written(workflow: dict) -> str:
    return json.dumps(workflow, indent=2, ensure_ascii=False) + "\n"


def seeded(graph: dict, stem: str) -> dict:
    """The API graph of a template, its samplers on the seed of its pictures (changed in place)."""
    for node in graph.values():
        name = {"KSampler": "seed", "RandomNoise": "noise_seed"}.get(node["class_type"])
        if name:
            node["inputs"][name] = SEEDS.get(stem, node["inputs"][name])
    return graph


def boxes_of(graph: dict) -> list[dict]:
    """The boxes of the workflow's editor; none where it has none."""
    texts = [node["inputs"]["regions_json"] for node in graph.values() if node["class_type"] == "BoxwrightBoxEditor"]
    return json.loads(texts[0])["regions"] if texts else []
