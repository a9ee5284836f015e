"""Edits of toy-world pictures with exact truth: one object of two becomes another, and what came of it."""

import random
from dataclasses import dataclass
from statistics import mean

import comfy.sample
import comfy.samplers
import torch
from pack.attention_patches.host.samplers.inversion import InvertedNoise, invert_latent
from pack.attention_patches.host.samplers.loops import schedule
from pack.nodes.diff_edit import BoxwrightDiffEdit
from pack.nodes.diff_mask import BoxwrightDiffMask
from scipy import ndimage
from toyworld import sampling, scenes, scorer

CFG = 5.0
NEAR = 8  # pixels around the old object that count as its place; a latent cell
COLORS = [color for color in scenes.COLORS if color != "pink"]  # the model draws pink grey
SMALLEST = 0.12  # radius; what lies below is a few latent cells across


@dataclass(frozen=True)
class Edit:
    """A picture of two objects, and what one of them is to become."""

    objects: tuple  # (the object to change, the other one), as scenes.SceneObject
    color: str  # of the new object
    background: str
    source: str  # prompts
    target: str

    @property
    def picture(self):
        """Float32 [1, 256, 256, 3]."""
        return scenes.render_scene(self.objects, self.background)[None]

    @property
    def areas(self):
        """Which pixels the object to change and the other one cover, bool [2, 256, 256]; they do not touch."""
        return scenes.visible_masks(self.objects)


def edit(number):
    """The edit of this number, always the same."""
    rng, seed = random.Random(number), number
    while True:
        objects, background = scenes.random_scene(seed, 2)
        if all(item.color in COLORS and item.radius > SMALLEST for item in objects):
            break
        seed += 1000
    objects = [scenes.SceneObject(o.color, o.shape, o.x, o.y, o.radius) for o in objects]
    color = rng.choice([c for c in COLORS if c not in {o.color for o in objects}])
    shape = rng.choice([s for s in scenes.SHAPES if s not in {o.shape for o in objects}])
    which = rng.randrange(2)
    before = [_words(o.color, o.shape, o.radius) for o in objects]
    after = list(before)
    after[which] = _words(color, shape, objects[which].radius)
    source, target = (f"{' and '.join(words)} on a {background} background" for words in (before, after))
    return Edit((objects[which], objects[1 - which]), color, background, source, target)


def _words(color, shape, radius):
    phrase = f"{'large ' * (radius >= scenes.RADIUS['large'][0])}{color} {shape}"
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def iou(a, b):
    """Of two masks [h, w], cut at one half."""
    a, b = torch.as_tensor(a) > 0.5, torch.as_tensor(b) > 0.5
    return float((a & b).sum() / (a | b).sum())


def psnr(a, b, where=None):
    """Of pictures [1, h, w, 3], over the pixels where a mask [1, h, w] is 0; at most 120 dB."""
    error = ((a - b) ** 2).mean(-1)
    error = error.mean() if where is None else error[where < 0.5].mean()
    return float(-10 * torch.log10(error + 1e-12))


def has_changed(image, job):
    """The old colour is gone from its place, and an object of the new colour stands there, by more than half of it."""
    found, place = scorer.find_objects(image), job.areas[0].numpy()
    near = ndimage.binary_dilation(place, iterations=NEAR)
    stands = any(f.color == job.color and (f.mask & near).sum() > 0.5 * f.mask.sum() for f in found)
    return stands and _share(found, job.objects[0].color, place) <= 0.1


def fills(image, job):
    """The same, by a stricter count: the new colour covers 30 % of the old object, whatever the new shape."""
    found, place = scorer.find_objects(image), job.areas[0].numpy()
    return _share(found, job.color, place) >= 0.3 and _share(found, job.objects[0].color, place) <= 0.1


def _share(found, color, place):
    return sum(float((f.mask & place).sum()) for f in found if f.color == color) / float(place.sum())


def has_kept(image, job):
    """The other object is still there: an object of its colour covers it with an IoU of at least 0.7."""
    mine = [f for f in scorer.find_objects(image) if f.color == job.objects[1].color]
    return max((iou(f.mask, job.areas[1]) for f in mine), default=0.0) >= 0.7


@dataclass(frozen=True)
class Score:
    """One edited picture."""

    changed: bool
    filled: bool
    kept: bool
    psnr: float  # dB outside the mask

    @classmethod
    def of(cls, image, job, before, mask):
        """`before`: the picture that it should equal where the mask [1, h, w] is 0."""
        return cls(has_changed(image[0], job), fills(image[0], job), has_kept(image[0], job), psnr(image, before, mask))


def defaults(node, **changes):
    """The inputs of a node that have a default, with `changes`."""
    inputs = node.define_schema().inputs
    return {entry.id: entry.default for entry in inputs if getattr(entry, "default", None) is not None} | changes


def find_mask(toy, job, **settings):
    """(IoU of the difference mask with the object to change, with the other one), report."""
    model, clip, vae = toy
    prompts = (sampling.encode(clip, prompt) for prompt in (job.source, job.target))
    mask, _, report = BoxwrightDiffMask.execute(
        model, *prompts, image=job.picture, vae=vae, **defaults(BoxwrightDiffMask, seed=1, **settings)
    ).result
    return (iou(mask[0], job.areas[0]), iou(mask[0], job.areas[1])), report


def edit_picture(toy, job, seed, **settings):
    """{name: Score} of DiffEdit, pasted and not, and of plain image to image at the same strength."""
    model, clip, vae = toy
    settings = defaults(BoxwrightDiffEdit, cfg=CFG, seed=1, paste=True, **settings)
    source, target, empty = (sampling.encode(clip, prompt) for prompt in (job.source, job.target, ""))
    encoded = vae.encode(job.picture)
    again = vae.decode(encoded)
    pasted, mask, latent, _ = BoxwrightDiffEdit.execute(
        model, vae, job.picture, source, target, empty, **settings
    ).result
    sigmas = schedule(model, settings["scheduler"], settings["steps"], settings["strength"])
    plain = comfy.sample.sample_custom(
        model,
        sampling.noise_for(seed),
        CFG,
        comfy.samplers.ksampler("euler"),
        sigmas,
        target,
        empty,
        encoded,
        disable_pbar=True,
        seed=seed,
    )
    return {
        "DiffEdit, pasted": Score.of(pasted, job, job.picture, mask),
        "DiffEdit": Score.of(vae.decode(latent["samples"]), job, again, mask),
        "image to image": Score.of(vae.decode(plain), job, again, mask),
    }


def summary(name, scores):
    """One line of the table, printed and returned."""
    values = [score.psnr for score in scores]
    line = (
        f"{name} ({len(scores)} edits): changed {mean(s.changed for s in scores):.2f} "
        f"(filled {mean(s.filled for s in scores):.2f}), other kept {mean(s.kept for s in scores):.2f}, "
        f"PSNR outside the mask {mean(values):.1f} dB (least {min(values):.1f}; >= 35 dB in "
        f"{sum(value >= 35 for value in values)})"
    )
    print(f"\n{line}", flush=True)
    return line


def round_trip(toy, job, steps, refinements):
    """PSNR in dB of the picture drawn again from its inverted noise by the host's Euler, with the same prompt."""
    model, clip, vae = toy
    prompt, encoded = sampling.encode(clip, job.source), vae.encode(job.picture)
    sigmas = schedule(model, "normal", steps, 1.0)
    path = invert_latent(model, encoded, prompt, sigmas, refinements=refinements).trajectory
    drawn = comfy.sample.sample_custom(
        model,
        InvertedNoise(model, path).generate_noise({"samples": encoded}),
        1.0,
        comfy.samplers.ksampler("euler"),
        sigmas,
        prompt,
        prompt,
        encoded,
        disable_pbar=True,
        seed=1,
    )
    return psnr(vae.decode(drawn), vae.decode(encoded))
