"""Two LoRAs of the toy, one for each of two boxes: which style the objects in the boxes have."""

import time
from dataclasses import dataclass

import comfy.hooks
import comfy.sd
import comfy.utils
import numpy as np
from attributes import texture_of
from pack.attention_patches.core.types import Box, Region
from pack.attention_patches.host.install import install
from pack.attention_patches.host.layers.lora import lora_for
from pack.attention_patches.host.region_conditioning import RegionConditioning
from pack.attention_patches.host.text.layout import encode_layout
from pack.attention_patches.methods.region_lora import RegionLora
from pack.attention_patches.methods.region_prompt import RegionPrompt
from scipy import ndimage
from toyworld import sampling, scorer
from toyworld.scorer import MIN_AREA, box_mask
from toyworld.train_loras import STYLES, file_of

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 0.5, 1.0)
TOP, BOTTOM = (0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 0.5)


@dataclass(frozen=True)
class Case:
    """Two things and their boxes; `styles`: the LoRA of each."""

    things: tuple[str, str]
    boxes: tuple[tuple, tuple]
    background: str
    styles: tuple[str, str]

    @property
    def prompt(self):
        return f"a {self.things[0]} and a {self.things[1]} on a {self.background} background"


# Large things: on small ones the toy's own dots can hardly be seen.
PLACES = (
    ("large red circle", "large blue square", (LEFT, RIGHT), "white"),
    ("large green heart", "large purple house", (TOP, BOTTOM), "gray"),
)
CASES = [
    Case((a, b), boxes, background, styles)
    for a, b, boxes, background in PLACES
    for styles in (("stripes", "dots"), ("dots", "stripes"))
]


def tensors():
    return {style: comfy.utils.load_torch_file(str(file_of(style))) for style in STYLES}


def layout_of(clip, case):
    regions = [Region(f"a {thing}", Box(*box)) for thing, box in zip(case.things, case.boxes)]
    return encode_layout(clip, case.prompt, regions, False)


def sentences(clip, case):
    return [sampling.encode(clip, f"a {thing} on a {case.background} background") for thing in case.things]


def coupled(clip, case, layout):
    return RegionPrompt().edits(layout, [text[0][0] for text in sentences(clip, case)])


def in_regions(model, layout, case, files, **options):
    loras = {number: (lora_for(model, files[style], style), 1.0) for number, style in enumerate(case.styles)}
    return install(model, layout, RegionLora(**options).edits(layout, loras))


def everywhere(model, files):
    for file in files.values():
        model = comfy.sd.load_lora_for_models(model, None, dict(file), 1.0, 0.0)[0]
    return model


def hooked(toy, case, positive, layout, files):
    """The host's way: a masked conditioning with a LoRA hook for each region, a pass for each."""
    model, clip, _ = toy
    hooks = [comfy.hooks.create_hook_lora(files[style], 1.0, 0.0) for style in case.styles]
    patched = model.clone()
    target = comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model)
    patched.register_all_hook_patches(comfy.hooks.HookGroup.combine_all_hooks(hooks), target)
    texts = [comfy.hooks.set_hooks_for_conditioning(t, hook) for t, hook in zip(sentences(clip, case), hooks)]
    return patched, RegionConditioning(base="outside").combined(positive, layout.regions, texts)


def plans(toy, case, positive, layout, files):
    """Name -> (MODEL, positive conditioning)."""
    model, clip, _ = toy
    couple = coupled(clip, case, layout)
    return {
        "no LoRA": lambda: (model, positive),
        "stripes alone, everywhere": lambda: (everywhere(model, {"stripes": files["stripes"]}), positive),
        "dots alone, everywhere": lambda: (everywhere(model, {"dots": files["dots"]}), positive),
        "both LoRAs everywhere": lambda: (everywhere(model, files), positive),
        "Region LoRA": lambda: (in_regions(model, layout, case, files), positive),
        "couple, both LoRAs everywhere": lambda: (install(everywhere(model, files), layout, couple), positive),
        "couple + Region LoRA": lambda: (install(in_regions(model, layout, case, files), layout, couple), positive),
        COUPLE: lambda: (install(model, layout, couple), positive),
        FOLLOWED: lambda: (install(in_regions(model, layout, case, files, masks="subject"), layout, couple), positive),
        "the host's hooks, a pass for each": lambda: hooked(toy, case, positive, layout, files),
    }


NAMES = (
    "no LoRA",
    "stripes alone, everywhere",
    "dots alone, everywhere",
    "both LoRAs everywhere",
    "Region LoRA",
    "couple, both LoRAs everywhere",
    "couple + Region LoRA",
    "the host's hooks, a pass for each",
)
COUPLE, FOLLOWED = "couple, no LoRA", "couple + Region LoRA, masks subject"
HEAD = "| | boxes filled | own style | the other's | plain | strange pixels | s per picture |"


def style_in(found, box):
    """The texture of the largest object of which the box holds enough; None where it holds none."""
    inside = [((item.mask & box_mask(box, item.mask.shape)).mean(), number) for number, item in enumerate(found)]
    largest = max(inside, default=(0.0, 0))
    return texture_of(found[largest[1]]) if largest[0] >= MIN_AREA else None


def score(toy, name, cases, seeds, steps=20):
    """Shares over the filled boxes of all cases x seeds; pictures are kept under "images"."""
    files, shown, strange, images, start = tensors(), [], [], [], time.process_time()
    for case in cases:
        positive, layout = layout_of(toy[1], case)
        model, conditioning = plans(toy, case, positive, layout, files)[name]()
        drawn = sampling.sample(model, toy[2], conditioning, sampling.encode(toy[1], ""), list(seeds), steps=steps)
        images.append(drawn)
        for image in drawn:
            found = scorer.find_objects(image)
            strange.append(scorer.off_palette(image))
            for box, style in zip(case.boxes, case.styles):
                shown.append((style_in(found, box), STYLES[style]))
    filled = [(found, own) for found, own in shown if found is not None]
    share = lambda kept: sum(kept) / max(len(filled), 1)  # noqa: E731
    return {
        "filled": len(filled) / len(shown),
        "own": share([found == own for found, own in filled]),
        "other": share([found not in (own, "plain") for found, own in filled]),
        "plain": share([found == "plain" for found, _ in filled]),
        "strange": float(np.mean(strange)),
        "seconds": (time.process_time() - start) / len(strange),
        "images": images,
    }


def changed_background(before, after, boxes):
    """Mean change of the pixels in the boxes that show no object in either picture [h, w, 3]: all of it, and without
    the change of their common tone."""
    objects = np.zeros(before.shape[:2], dtype=bool)
    for image in (before, after):
        for item in scorer.find_objects(image):
            objects |= item.mask
    objects = ndimage.binary_dilation(objects, iterations=6)  # soft rims
    inside = np.any([box_mask(box, objects.shape) for box in boxes], axis=0) & ~objects
    change = (np.asarray(after) - np.asarray(before))[inside]
    return [float(np.abs(each).max(axis=1).mean()) for each in (change, change - np.median(change, axis=0))]


def line(name, found):
    """A row of a table in markdown."""
    keys = ("filled", "own", "other", "plain", "strange")
    return f"| {name} | " + " | ".join(f"{found[key]:.3f}" for key in keys) + f" | {found['seconds']:.1f} |"
