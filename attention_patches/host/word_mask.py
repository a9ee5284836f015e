"""Where a picture shows what a phrase of its prompt says: noised, and asked what it attends to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ..core.masks import resized
from ..core.tokens import missing, phrase_columns
from ..core.types import Layout
from ..methods.recorder import Recording, Records
from ..samplers.diff_mask import DiffMask
from ..samplers.noise import noised
from .recorder import recorded
from .samplers.diff_mask import Found
from .samplers.loops import check_model, denoiser, levels_of, run


@dataclass(frozen=True)
class WordMask:
    """Settings beside those of a difference mask, whose draws, noise level, blur, threshold and outline count here."""

    phrase: str
    threshold: float = 0.0  # of the heat from 0 to 1; 0 = where its values part best (Otsu)
    base: DiffMask = DiffMask(draws=4)

    @property
    def cut(self) -> DiffMask:
        """How the mask is cut from the heat."""
        method: Literal["fixed", "otsu"] = "fixed" if self.threshold else "otsu"
        return replace(self.base, clip=1.0, threshold=self.threshold, method=method, keep_largest=False)


def attended(
    model: Any, samples: Tensor, positive: list, layout: Layout, settings: WordMask, seed: int, bar: Any = None
) -> Found:
    """The mask of a phrase in clean latents [B, C, ..., h, w], which the CONDITIONING of `layout`'s prompt describes.

    The attention to the phrase's words (as in DAAM, arXiv 2210.04885), averaged over draws of noise at one level; every
    picture of a batch gets the same noise. Raises UnsupportedModelError for models whose attention cannot be read,
    PhraseNotFoundError for a phrase that the prompt lacks.
    """
    check_model(model)
    cut = settings.cut
    if not bool(phrase_columns(layout.prompt.tokens, settings.phrase).any()):
        raise missing([layout.prompt.tokens.text], settings.phrase, "prompt", "Write it as prompt has it.")
    records = Records(layout.prompt.tokens, Recording((settings.phrase,)))
    model_sampling = model.get_model_object("model_sampling")
    sigma = float(model_sampling.percent_to_sigma(1.0 - cut.noise_level))
    level = levels_of(model_sampling)(sigma)
    bar = bar or comfy.utils.ProgressBar(cut.draws)

    def loop(model_k: Any, x: Tensor, sigmas: Tensor, extra_args: dict, **unused: Any) -> Tensor:
        picture, generator = model_k.latent_image, torch.Generator("cpu").manual_seed(seed)
        predict = denoiser(model_k, x, extra_args)
        for _ in range(cut.draws):
            comfy.model_management.throw_exception_if_processing_interrupted()
            noise = torch.randn(picture.shape[1:], generator=generator)[None].to(picture)
            predict(noised(picture, level, noise.expand_as), sigma)
            bar.update(1)
        return picture

    listening = recorded(model, layout, records)
    _, rows = run(listening, {"positive": positive}, 1.0, samples, loop, torch.tensor([sigma, 0.0]), seed)
    found = records.latest.map_of(settings.phrase)
    heat = cut.heat(resized(found.float(), tuple(samples.shape[-2:])))
    return Found(heat, cut.mask(heat), rows, 1)
