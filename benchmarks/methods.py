"""Every method of the pack, and what the host itself has for the same, in one table: how it is put on a MODEL.

tests/host/test_benchmarks.py compares the table with the pack's nodes: no node is forgotten. Needs the host on sys.path
and the pack importable as `pack`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import comfy.hooks
import comfy.sampler_helpers
import torch
from comfy.patcher_extension import WrappersMP
from pack.attention_patches.core.pictures import Part, PictureGuide, Through
from pack.attention_patches.core.seam import AttentionEdit, ContextEdit, LatentGuide, NoiseEdit, TextMix
from pack.attention_patches.core.token_alignment import token_alignment
from pack.attention_patches.core.types import Layout, StepWindow
from pack.attention_patches.host.install import install
from pack.attention_patches.host.layers.lora import lora_for
from pack.attention_patches.host.loss_guidance import guide_by_pictures
from pack.attention_patches.host.prompt_to_prompt import edited
from pack.attention_patches.host.recorder import recorded
from pack.attention_patches.host.region_conditioning import Method as HostMethod
from pack.attention_patches.host.region_conditioning import RegionConditioning
from pack.attention_patches.host.samplers.h_space import edit_h_space
from pack.attention_patches.host.samplers.region_strength import redrawn_by_strength
from pack.attention_patches.methods.arranged_noise import ArrangedNoise
from pack.attention_patches.methods.bounded_attention import BoundedAttention
from pack.attention_patches.methods.box_constraint import preset
from pack.attention_patches.methods.dense_diffusion import DenseDiffusion
from pack.attention_patches.methods.prompt_to_prompt import LocalBlend, Prompts, PromptToPrompt
from pack.attention_patches.methods.recorder import Recording, Records
from pack.attention_patches.methods.rectified_attention import PUBLISHED
from pack.attention_patches.methods.region_lora import RegionLora
from pack.attention_patches.methods.region_prompt import RegionPrompt
from pack.attention_patches.methods.reweight import Reweight
from pack.attention_patches.samplers.color_loss import ColorLoss
from pack.attention_patches.samplers.h_space import HSpace
from pack.attention_patches.samplers.region_strength import RegionStrength
from shape import Shape

RANK = 16  # of LoRAs
REGIONS = 4  # of the layout that the summary is measured with
Edits = list[AttentionEdit | ContextEdit | LatentGuide | NoiseEdit | TextMix]


@dataclass(frozen=True)
class Case:
    """What a method is put on."""

    model: Any
    layout: Layout
    text: Callable[[int], list]  # number -> CONDITIONING of another prompt
    latent: torch.Tensor  # of a picture, as the model has it


Patch = Callable[[Case], Any]


@dataclass(frozen=True)
class Method:
    """One row."""

    name: str
    nodes: tuple[str, ...]  # ids of the nodes that do this, of our pack or of the host
    patch: Patch | None = None  # None = nothing is patched: it is a loop of its own, whose evaluations are counted
    rows: int = 1  # pictures in the batch, patched and unpatched
    regions: tuple[int, ...] = (REGIONS,)  # with how many it is measured in the tables of one shape; 0 = without any
    few: bool = False  # measured also on the shapes that tell what a family costs
    summary: bool = True  # a row of the summary; else only of the tables of one shape
    measured: bool = True  # its steps; else they are those without it, and what counts is their number

    def regions_of(self, shape: Shape) -> tuple[int, ...]:
        """With how many it is measured on this shape."""
        if self.patch is None or not self.measured or (shape.few and not self.few):
            return ()
        return self.in_summary() if shape.few or shape.config == "Flux" else self.regions

    def in_summary(self) -> tuple[int, ...]:
        return (REGIONS,) if REGIONS in self.regions else self.regions[:1]


def with_edits(edits: Callable[[Layout], Edits]) -> Patch:
    return lambda case: install(case.model, case.layout, edits(case.layout))


def rectified(layout: Layout) -> Edits:
    """Rectified attention as published: an additive mask, in every step."""
    return PUBLISHED.edits(layout)


def reweighted(layout: Layout, renormalize: bool) -> Edits:
    """One word of every region twice as strong: an additive mask if renormalised, else explicit probabilities."""
    words = [(region.phrase.split()[0], 2.0) for region in layout.regions]
    return Reweight(words, renormalize=renormalize).edits(layout)


def record_words(case: Case) -> Any:
    """Every word, on all grids but the finest: two in SD1.5."""
    records = Records(case.layout.prompt.tokens, Recording(resolutions="all but finest"))
    return recorded(case.model, case.layout, records)


def prompt_to_prompt(case: Case) -> Any:
    """Source and target side by side, with local blend; all at the default settings but for the blended word."""
    tokens = case.layout.prompt.tokens
    prompts = Prompts(case.layout, (tokens,), (token_alignment(tokens, tokens),))
    blend = LocalBlend((tokens.text.split()[3],))
    return edited(case.model, prompts, PromptToPrompt(blend=blend))


def towards_blue(through: Through) -> Patch:
    """Loss Guidance in every region by a colour, which is seen without a VAE."""

    def guided(case: Case) -> Any:
        parts = tuple(Part(region.area) for region in case.layout.regions)
        return guide_by_pictures(case.model, PictureGuide(ColorLoss(((0.1, 0.3, 0.9),)), parts, through=through))

    return guided


def region_strength(case: Case) -> Any:
    """Image to image with a strength for every region; the mask that the node gives goes to the sampler by itself."""
    strengths = [0.3 + 0.6 * n / len(case.layout.regions) for n in range(len(case.layout.regions))]
    wanted = RegionStrength().map_of(case.layout.regions, strengths, tuple(case.latent.shape[-2:]))
    model, latent = redrawn_by_strength(case.model, {"samples": case.latent}, wanted)
    mask = latent["noise_mask"]

    def with_mask(executor: Any, noise: Any, image: Any, sampler: Any, sigmas: Any, given: Any, *args: Any, **kw: Any):
        cells = torch.nn.functional.interpolate(mask, size=noise.shape[-2:])
        cells = cells.reshape(1, *[1] * (noise.ndim - 3), *noise.shape[-2:]).expand_as(noise).to(noise)
        return executor(noise, image, sampler, sigmas, cells, *args, **kw)

    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "benchmark", with_mask)
    return model


def h_space(case: Case) -> Any:
    return edit_h_space(case.model, case.text(3), case.text(4), HSpace(window=StepWindow()))


def region_conditioning(method: HostMethod) -> Patch:
    """The same regions as the host's own conditioning, a pass of the model for each; nothing is patched."""
    return lambda case: _with_texts(case, case.model, method, lambda entry: [entry] * len(case.layout.regions))


def _with_texts(case: Case, model: Any, method: HostMethod, texts: Callable[[list], list]) -> Any:
    """The MODEL in whose runs regions have conditionings of their own, made from that of the prompt."""

    def with_regions(executor: Any, *args: Any, **kwargs: Any) -> Any:
        guider = executor.class_obj
        (base,) = guider.conds["positive"]
        own = {name: value for name, value in base.items() if name not in ("cross_attn", "model_conds", "uuid")}
        entry = [[base["cross_attn"], own]]
        combined = RegionConditioning(method).combined(entry, case.layout.regions, texts(entry))
        guider.conds["positive"] = comfy.sampler_helpers.convert_cond(combined)
        return executor(*args, **kwargs)

    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "benchmark", with_regions)
    return patched


def lora_file(model: Any, seed: int) -> dict[str, torch.Tensor]:
    """A LoRA of RANK in every linear layer of the network's attention blocks, as is usual."""
    g, file = torch.Generator().manual_seed(seed), {}
    for name, module in model.model.diffusion_model.named_modules():
        if isinstance(module, torch.nn.Linear) and ("blocks." in name or "layers." in name):
            key, (out, into) = f"diffusion_model.{name}", module.weight.shape
            file[f"{key}.lora_up.weight"] = torch.randn(out, RANK, generator=g) * 0.01
            file[f"{key}.lora_down.weight"] = torch.randn(RANK, into, generator=g) * 0.01
    return file


def region_loras(case: Case) -> Any:
    """A LoRA of its own for every region."""
    model, layout = case.model, case.layout
    loras = {r: (lora_for(model, lora_file(model, r), f"{r}"), 1.0) for r in range(len(layout.regions))}
    return install(model, layout, RegionLora().edits(layout, loras))


def host_hooks(case: Case) -> Any:
    """The same by the host: a masked conditioning for each region, and a hook with the region's LoRA on it."""
    model = case.model.clone()
    count = len(case.layout.regions)
    hooks = [comfy.hooks.create_hook_lora(lora_file(model, r), 1.0, 0.0) for r in range(count)]
    target = comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model)
    model.register_all_hook_patches(comfy.hooks.HookGroup.combine_all_hooks(hooks), target)

    def hooked(entry: list) -> list:
        return [comfy.hooks.set_hooks_for_conditioning(entry, hook) for hook in hooks]

    return _with_texts(case, model, "mask", hooked)


def patient(layout: Layout) -> Edits:
    """Box Constraint that runs the whole model for its move."""
    return [replace(guide, early_exit=False) for guide in preset("standard", "boxdiff").guides(layout)]


def _box(name: str, mode: str) -> Patch:
    return with_edits(lambda layout: preset(name, mode).guides(layout))


_BOX = ("BoxwrightBoxConstraint",)
_MASK = ("BoxwrightRegionConditioning", "ConditioningSetMask")
_AREA = ("BoxwrightRegionConditioning", "ConditioningSetAreaPercentage")
_LORA = ("BoxwrightRegionLora",)
_LOSS = ("BoxwrightLossGuidance",)
_PROMPT = ("BoxwrightRegionPrompt",)
_MANY = (1, 4, 16)

METHODS: tuple[Method, ...] = (
    Method("unpatched", (), lambda case: case.model, measured=False),
    Method("rectified", ("BoxwrightRectifiedAttention",), with_edits(rectified), regions=_MANY, few=True),
    Method(
        "rectified + reweight, renormalised",
        ("BoxwrightRectifiedAttention", "BoxwrightReweight"),
        with_edits(lambda layout: rectified(layout) + reweighted(layout, renormalize=True)),
        regions=_MANY,
    ),
    Method(
        "reweight as published (explicit)",
        ("BoxwrightReweight",),
        with_edits(lambda layout: reweighted(layout, renormalize=False)),
        regions=_MANY,
        few=True,
    ),
    Method("arranged noise", ("BoxwrightArrangedNoise",), with_edits(lambda layout: ArrangedNoise().edits(layout))),
    Method("box constraint", _BOX, _box("standard", "boxdiff")),
    Method("box constraint without early exit", _BOX, with_edits(patient), summary=False),
    Method("box constraint, strict", _BOX, _box("strict", "boxdiff")),
    Method("box constraint, attend_excite", _BOX, _box("standard", "attend_excite")),
    Method("box constraint, fast", _BOX, _box("standard", "fast")),
    Method(
        "couple", _PROMPT, with_edits(lambda layout: RegionPrompt().edits(layout)), regions=(1, 2, 4, 8, 16), few=True
    ),
    Method("couple, feathered", _PROMPT, with_edits(lambda layout: RegionPrompt(feather=0.1).edits(layout))),
    Method("dense", _PROMPT, with_edits(lambda layout: DenseDiffusion().edits(layout))),
    Method("dense, text alone", _PROMPT, with_edits(lambda layout: DenseDiffusion(self_weight=0.0).edits(layout))),
    Method("bound", _PROMPT, with_edits(lambda layout: BoundedAttention().edits(layout))),
    Method("bound, all grids", _PROMPT, with_edits(lambda layout: BoundedAttention(StepWindow(), "all").edits(layout))),
    Method("host's Conditioning (Set Mask)", _MASK, region_conditioning("mask"), regions=(1, 2, 4, 8, 16)),
    Method("host's Conditioning (Set Area)", _AREA, region_conditioning("area")),
    Method("region lora", _LORA, region_loras, regions=(1, 2, 4, 8)),
    Method("host's hooks (a LoRA for each region)", ("CreateHookLora",), host_hooks, regions=(1, 2, 4, 8)),
    Method("region strength", ("BoxwrightRegionStrength",), region_strength),
    Method("loss guidance, direct", (*_LOSS, "BoxwrightColorLoss"), towards_blue("direct")),
    Method("loss guidance, through model", (*_LOSS, "BoxwrightColorLoss"), towards_blue("through model")),
    Method("h-space", ("BoxwrightHSpace",), h_space, regions=(0,)),
    Method("prompt to prompt", ("BoxwrightPromptToPrompt",), prompt_to_prompt, rows=2, regions=(0,)),
    Method("recorder", ("BoxwrightAttentionRecorder",), record_words, regions=(0,), few=True),
    # Loops of their own: `evaluations.py` runs them.
    Method("arrange a noise", ("BoxwrightArrangeNoise",)),
    Method("difference mask", ("BoxwrightDiffMask",)),
    Method("find word", ("BoxwrightFindWord",)),
    Method("diffedit", ("BoxwrightDiffEdit", "BoxwrightInvert", "BoxwrightDiffEditSampler")),
    Method("flow edit, FlowEdit", ("BoxwrightFlowEdit", "BoxwrightFlowEditSampler")),
    Method("flow edit, FlowAlign", ("BoxwrightFlowEdit", "BoxwrightFlowEditSampler")),
    Method("flow edit, Uni-Edit", ("BoxwrightFlowEdit", "BoxwrightFlowEditSampler")),
    Method("repaint", ("BoxwrightRePaint",)),
    Method("blended latents", ("BoxwrightBlendedLatents",)),
    Method("ilvr", ("BoxwrightILVR",)),
    Method("direct inversion", ("BoxwrightInvert", "BoxwrightDirectInversionSampler")),
    Method("prompt fit", ("BoxwrightPromptFit",)),
)

# Nodes that run no model: layouts, words, pictures of what was recorded.
WITHOUT_A_MODEL = {
    "BoxwrightBoxEditor": "a layout",
    "BoxwrightRegions": "a layout",
    "BoxwrightRegionsPreview": "a picture of a layout",
    "BoxwrightLayoutPrompt": "encodes a prompt and its phrases",
    "BoxwrightLayoutToPrompt": "text",
    "BoxwrightPromptToRegions": "a layout",
    "BoxwrightBoxConstraintSettings": "numbers for Box Constraint",
    "BoxwrightAttentionHeatmap": "a picture of a record",
    "BoxwrightMaskFromWord": "a mask from a record",
    "BoxwrightClipLoss": "a loss for Loss Guidance; what CLIP costs is CLIP's",
}
