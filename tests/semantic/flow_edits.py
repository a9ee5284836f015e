"""The edits of `picture_edits.py` by Flow Edit, many pictures in one batch."""

from dataclasses import dataclass
from functools import cached_property

import comfy.sample
import comfy.samplers
import torch
from pack.attention_patches.host.samplers.diff_mask import measure
from pack.attention_patches.host.samplers.loops import sampler, schedule
from pack.attention_patches.samplers.blended_latents import BlendedLatents
from pack.attention_patches.samplers.diff_mask import DiffMask
from pack.nodes.find_word import BoxwrightFindWord
from pack.nodes.flow_edit import BoxwrightFlowEdit
from pack.nodes.parts import editing
from pack.nodes.parts.editing_inputs import DILATE
from picture_edits import CFG, Score, _words, defaults, edit
from toyworld import sampling

STEPS = 20
SEED = 1
STRENGTH = 0.8
METHODS = {"FlowEdit": 5.0, "FlowAlign": 7.0, "Uni-Edit": 1.0}  # -> cfg, tuned on edits 1 to 15, the odd ones


@dataclass(frozen=True)
class Batch:
    """Edits of several pictures at once; what is slow is done once."""

    toy: tuple
    numbers: tuple

    @cached_property
    def jobs(self):
        return [edit(number) for number in self.numbers]

    @cached_property
    def pictures(self):
        """[B, 256, 256, 3]."""
        return torch.cat([job.picture for job in self.jobs])

    @cached_property
    def again(self):
        """The pictures after the VAE's round trip."""
        vae = self.toy[2]
        return torch.cat([vae.decode(vae.encode(picture[None])) for picture in self.pictures])

    @cached_property
    def prompts(self):
        """CONDITIONING of all rows: source, target, empty."""
        texts = ([job.source for job in self.jobs], [job.target for job in self.jobs], [""] * len(self.jobs))
        return tuple(_rows([sampling.encode(self.toy[1], text) for text in own]) for own in texts)

    @cached_property
    def masks(self):
        """Of the difference, at the defaults of the nodes: [B, 256, 256]."""
        model, _, vae = self.toy
        source, target, _ = self.prompts
        found = measure(model, vae.encode(self.pictures), source, target, DiffMask(dilate=DILATE), SEED)
        return editing.in_pixels(found.mask, 8)

    @cached_property
    def word_masks(self):
        """Of the phrase that names the object to change, at the defaults of Find Word in Picture: [B, 256, 256]."""
        model, clip, vae = self.toy
        found = []
        for job in self.jobs:
            inputs = defaults(BoxwrightFindWord, prompt=job.source, phrase=thing(job.objects[0]), seed=SEED)
            found.append(BoxwrightFindWord.execute(model, clip, image=job.picture, vae=vae, **inputs)[0])
        return torch.cat(found)

    def flow_edit(self, method, mask, **settings):
        """(scores, evaluations for a picture) with the mask of the "difference", of the "word", or None.

        PSNR outside that mask; outside that of the difference where none was used.
        """
        model, _, vae = self.toy
        inputs = (
            defaults(
                BoxwrightFlowEdit,
                method=method,
                steps=STEPS,
                strength=STRENGTH,
                cfg=METHODS[method],
                seed=SEED,
                find_mask="none",
                paste=False,
            )
            | settings
        )
        found = BoxwrightFlowEdit.execute(
            model, vae, self.pictures, *self.prompts, mask=self.mask_by(mask), **inputs
        ).result
        count = int(found[3].split("edit ")[1].split(".")[0])
        return self._scored(found[0], mask), count / len(self.jobs)

    def mask_by(self, name):
        return None if name is None else self.word_masks if name == "word" else self.masks

    def image_to_image(self, mask):
        """The same of SDEdit, with the mask by Blended Latents."""
        model, _, vae = self.toy
        _, target, empty = self.prompts
        latent, sigmas = vae.encode(self.pictures), schedule(model, "normal", STEPS, STRENGTH)
        noise = torch.cat([sampling.noise_for(number) for number in self.numbers])
        euler = comfy.samplers.ksampler("euler")
        method = sampler("Blended Latents", BlendedLatents().sample, self.mask_by(mask)) if mask else euler
        drawn = comfy.sample.sample_custom(
            model, noise, CFG, method, sigmas, target, empty, latent, disable_pbar=True, seed=SEED
        )
        return self._scored(torch.cat([vae.decode(row[None]) for row in drawn]), mask), 2 * STEPS

    def _scored(self, images, mask):
        outside = self.mask_by(mask or "difference")
        rows = zip(images, self.jobs, self.again, outside, strict=True)
        return [Score.of(image[None], job, before[None], kept[None]) for image, job, before, kept in rows]


def thing(one):
    """Such as "large yellow cross": an object as the prompt names it, without the article."""
    return _words(one.color, one.shape, one.radius).split(" ", 1)[1]


def _rows(prompts):
    """CONDITIONINGs of one picture each as that of a batch."""
    said = dict(prompts[0][0][1])
    if said.get("pooled_output") is not None:
        said["pooled_output"] = torch.cat([prompt[0][1]["pooled_output"] for prompt in prompts])
    return [[torch.cat([prompt[0][0] for prompt in prompts]), said]]
