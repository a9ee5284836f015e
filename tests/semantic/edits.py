"""Pairs of prompts on the toy world, drawn with Prompt-to-Prompt and by plain re-prompting, and what became of them."""

from dataclasses import dataclass

import comfy.sample
import numpy as np
import torch
from pack.attention_patches.host.prompt_to_prompt import edited, encode_prompts
from pack.attention_patches.methods.prompt_to_prompt import LocalBlend, PromptToPrompt
from scipy import ndimage
from toyworld import sampling, scorer
from toyworld.scenes import COLORS
from toyworld.shape_of import shape_of

STEPS = 10
FRAME = 4  # pixels along the edges of a picture: its background
DIFFERENT = 0.15  # in any of red, green, blue: no background
WHITE = 0.7  # in all of them: the light part of a texture, which no palette colour reaches
PLAIN, STRIPED = 0.05, 0.25  # share of light pixels: at most, at least
LARGE = 0.28  # sides of a box, fractions of the image: between the largest small thing and the smallest large one
GROWN = 1.15  # ratio of areas from which a thing counts as larger
MARGIN = 20  # pixels around both objects that do not count as the rest of the picture

# What is swapped -> pairs of prompts.
SWAPS = {
    "color": [
        ("a large red circle on a white background", "a large blue circle on a white background"),
        ("a large green heart on a gray background", "a large yellow heart on a gray background"),
        ("a large orange square on a black background", "a large cyan square on a black background"),
        ("a large blue star on a cream background", "a large red star on a cream background"),
    ],
    "shape": [
        ("a large red circle on a white background", "a large red square on a white background"),
        ("a large green square on a gray background", "a large green circle on a gray background"),
        ("a large blue heart on a white background", "a large blue circle on a white background"),
        ("a large orange circle on a black background", "a large orange heart on a black background"),
    ],
    "texture": [
        ("a large plain red square on a black background", "a large striped red square on a black background"),
        ("a large plain blue circle on a gray background", "a large striped blue circle on a gray background"),
        ("a large striped green heart on a black background", "a large plain green heart on a black background"),
        ("a large striped orange square on a gray background", "a large plain orange square on a gray background"),
    ],
    "size": [
        ("a small red circle on a white background", "a large red circle on a white background"),
        ("a small blue square on a gray background", "a large blue square on a gray background"),
        ("a large green heart on a black background", "a small green heart on a black background"),
        ("a large orange circle on a cream background", "a small orange circle on a cream background"),
    ],
}


@dataclass(frozen=True)
class Score:
    """One pair of pictures."""

    iou: float  # of the objects' boxes; 0 where the target has none
    shift: float  # of their centres, the longer of across and down, in fractions of the image
    changed: bool  # the named attribute became what the target says
    psnr: float  # dB, of the picture without both objects


# --- drawing ----------------------------------------------------------------------------------------------------------


def method_of(source, target, blend):
    """The node's default settings; with local blend around the thing."""
    words = tuple(thing_words(prompt) for prompt in (source, target))
    return PromptToPrompt(blend=LocalBlend(words) if blend else None)


def thing_words(prompt):
    """The object, "red circle" of "a large red circle on a white background"."""
    return prompt.split(" on ")[0].split(" ", 2)[2]


def draw(toy, source, target, method, seeds):
    """[source, target] of every seed, [2 * seeds, 256, 256, 3]."""
    model, clip, vae = toy
    positive, prompts = encode_prompts(model, clip, [source, target], "auto")
    noise = torch.cat([sampling.noise_for(seed) for seed in seeds]).repeat_interleave(2, dim=0)
    latents = comfy.sample.sample(
        edited(model, prompts, method),
        noise,
        STEPS,
        5.0,
        "euler",
        "normal",
        positive,
        sampling.encode(clip, ""),
        torch.zeros_like(noise),
        disable_pbar=True,
        seed=seeds[0],
    )
    return vae.decode(latents).float().cpu()


def draw_plain(toy, prompt, seeds):
    """One picture of the prompt for each seed, without any patch."""
    model, clip, vae = toy
    return sampling.sample(
        model, vae, sampling.encode(clip, prompt), sampling.encode(clip, ""), seeds, steps=STEPS, batch=len(seeds)
    )


def right_sources(toy, source, seeds):
    """{seed: picture} where it shows the one thing that the prompt names: an edit needs something to edit."""
    images = draw_plain(toy, source, seeds)
    return {seed: image for seed, image in zip(seeds, images, strict=True) if shows(image, source)}


# --- looking ----------------------------------------------------------------------------------------------------------


def things_in(image):
    """Where the things are, largest first, whatever their colours: bool [h, w] each."""
    pixels = image.numpy()
    edge = np.ones(pixels.shape[:2], dtype=bool)
    edge[FRAME:-FRAME, FRAME:-FRAME] = False
    different = np.abs(pixels - np.median(pixels[edge], axis=0)).max(axis=-1) > DIFFERENT
    names, count = ndimage.label(different)
    masks = [names == number for number in range(1, count + 1)]
    found = [mask for mask in masks if mask.mean() >= scorer.MIN_AREA]
    return sorted(found, key=np.sum, reverse=True)


def shows(image, prompt):
    """Whether the picture holds one thing, of the size, texture, colour and shape that the prompt names."""
    things = things_in(image)
    if len(things) != 1:
        return False
    words = prompt.split(" on ")[0].split()
    box = scorer.box_of(things[0])
    return (
        (max(box[2:]) >= LARGE) == ("large" in words)
        and is_textured(things[0], image, "striped" in words)
        and color_of(things[0], image) == words[-2]
        and shape_of(things[0]) == words[-1]
    )


def color_of(mask, image):
    """Name of the colour nearest to the median of the thing's pixels that are no light part of a texture."""
    pixels = image.numpy()[mask]
    own = pixels[pixels.min(axis=1) <= WHITE]
    tone = np.median(own if len(own) else pixels, axis=0)
    return min(COLORS, key=lambda name: np.abs(tone - COLORS[name]).max())


def is_textured(mask, image, striped):
    light = (image.numpy()[mask].min(axis=1) > WHITE).mean()
    return light >= STRIPED if striped else light <= PLAIN


# --- scoring ----------------------------------------------------------------------------------------------------------


def score(kind, target, before, after):
    """The Score of the pictures of a source and a target."""
    old, found = things_in(before)[0], things_in(after)
    if not found:
        return Score(0.0, 1.0, False, psnr(before, after, old))
    new = found[0]
    boxes = scorer.box_of(old), scorer.box_of(new)
    shift = max(abs(centre(boxes[0])[axis] - centre(boxes[1])[axis]) for axis in (0, 1))
    rest = psnr(before, after, scorer.box_mask(boxes[0], old.shape) | scorer.box_mask(boxes[1], new.shape))
    return Score(scorer.iou(*boxes), shift, has_changed(kind, target, old, new, after), rest)


def has_changed(kind, target, old, new, after):
    """`old` and `new`: the pixels of the thing in both pictures; `after`: the second picture."""
    words = target.split(" on ")[0].split()
    if kind == "color":
        return color_of(new, after) == words[-2]
    if kind == "shape":
        return shape_of(new) == words[-1]
    if kind == "texture":
        return bool(is_textured(new, after, "striped" in words))
    ratio = new.sum() / old.sum()
    return bool(ratio >= GROWN if "large" in words else ratio <= 1 / GROWN)


def centre(box):
    return box[0] + box[2] / 2, box[1] + box[3] / 2


def psnr(a, b, without):
    """dB between two pictures outside the bool mask grown by MARGIN."""
    kept = ~ndimage.binary_dilation(without, iterations=MARGIN)
    error = ((a - b).numpy()[kept] ** 2).mean() if kept.any() else 0.0
    return float(-10 * np.log10(max(error, 1e-10)))


def score_edit(toy, kind, pair, seeds, blend=True):
    """Scores of one pair of prompts with Prompt-to-Prompt, one for each seed."""
    images = draw(toy, *pair, method_of(*pair, blend), seeds)
    return [score(kind, pair[1], *both) for both in images.split(2)]


def score_plain(toy, kind, pair, sources):
    """The same for drawing the target on its own, from the noise of the sources: {seed: picture of the source}."""
    after = draw_plain(toy, pair[1], list(sources))
    return [score(kind, pair[1], *both) for both in zip(sources.values(), after, strict=True)]


def summary(name, scores):
    """One line of the table, printed."""
    count = len(scores)
    print(
        f"\n{name}, {count} pairs: IoU {np.mean([s.iou for s in scores]):.2f}, "
        f">= 0.7 in {sum(s.iou >= 0.7 for s in scores)}, shift < 0.1 in {sum(s.shift < 0.1 for s in scores)}, "
        f"changed in {sum(s.changed for s in scores)}; PSNR of the rest: median "
        f"{np.median([s.psnr for s in scores]):.1f} dB, least {min(s.psnr for s in scores):.1f} dB, "
        f">= 30 dB in {sum(s.psnr >= 30 for s in scores)}",
        flush=True,
    )
