"""What is measured: models of real shapes with random weights, random layouts, and the methods.

Random weights and random boxes cost what trained weights and drawn boxes cost. Needs the host on sys.path and the pack
importable as `pack`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import comfy.hooks
import comfy.model_management
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.supported_models
import family_shapes
import torch
from comfy.patcher_extension import WrappersMP
from pack.attention_patches.core.pictures import Part, PictureGuide, Through
from pack.attention_patches.core.seam import AttentionEdit, ContextEdit, LatentGuide, TextMix
from pack.attention_patches.core.token_alignment import token_alignment
from pack.attention_patches.core.types import Box, EncodedText, Layout, Region, StepWindow, TokenMap
from pack.attention_patches.host.install import install
from pack.attention_patches.host.layers.lora import lora_for
from pack.attention_patches.host.loss_guidance import guide_by_pictures
from pack.attention_patches.host.prompt_to_prompt import edited
from pack.attention_patches.host.recorder import recorded
from pack.attention_patches.host.region_prompt import RegionConditioning
from pack.attention_patches.host.text.layout import LAYOUT_KEY
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
from shape import Shape

KEY = "benchmark"  # marks the conditioning that the layouts belong to
WORDS = 40  # of the prompt; region r (from 0) owns words 2r + 1 and 2r + 2


_UNET = dict(
    image_size=32, in_channels=4, out_channels=4, model_channels=320, num_heads=8, use_spatial_transformer=True,
    context_dim=768, use_linear_in_transformer=False, legacy=False,
)  # fmt: skip
_SDXL = {
    **_UNET,
    **dict(num_heads=-1, num_head_channels=64, context_dim=2048, use_linear_in_transformer=True),
    **dict(adm_in_channels=2816, num_classes="sequential"),
}
# Reduced UNets: no middle block and resampling without convolutions; transformers on the input side alone.
_REDUCED = dict(transformer_depth_middle=-2, conv_resample=False)
_SD15_REDUCED = {**_UNET, **_REDUCED} | dict(
    num_res_blocks=[1, 1, 1], channel_mult=[1, 2, 4], transformer_depth=[1, 1, 1], transformer_depth_output=[0] * 6
)
_SDXL_REDUCED = {**_SDXL, **_REDUCED} | dict(
    model_channels=640,
    num_res_blocks=[1, 1],
    channel_mult=[1, 2],
    transformer_depth=[1, 2],
    transformer_depth_output=[0] * 4,
)

SHAPES = {
    "toy": Shape(
        "toy model 256x256 (the shapes of `tests/toyworld/toyworld.safetensors`: all 7 cross-attention layers)",
        "SD15",
        {**_UNET, "model_channels": 64, "num_heads": 4, "context_dim": 128}
        | dict(num_res_blocks=[1, 1, 1], channel_mult=[1, 2, 2], transformer_depth=[1, 1, 0])
        | dict(transformer_depth_output=[1, 1, 1, 1, 0, 0], transformer_depth_middle=1),
        latent=(4, 32, 32), tokens=1024, heads=4, context=128, repeats=7,
    ),
    "small": Shape(
        "SD1.5 at 256x256, reduced: 3 of 16 cross-attention layers",
        "SD15",
        _SD15_REDUCED,
        latent=(4, 32, 32), tokens=1024, heads=8,
    ),
    "sd15": Shape(
        "SD1.5 at 512x512, reduced: 3 of 16 cross-attention layers (one each at 64x64, 32x32 and 16x16 tokens)",
        "SD15",
        _SD15_REDUCED,
        latent=(4, 64, 64), tokens=4096, heads=8,
    ),
    "sdxl": Shape(
        "SDXL at 1024x1024, reduced: 3 of 70 cross-attention layers (one at 64x64, two at 32x32 tokens), without the "
        "128x128 level, which has no attention",
        "SDXL",
        _SDXL_REDUCED,
        latent=(4, 64, 64), tokens=4096, heads=10, context=2048, pooled=1280, repeats=2,
    ),
    "flux": Shape(
        "Flux.1 at 1024x1024, reduced: 2 double and 2 single blocks, 4 heads of 128 instead of 24; CFG 1",
        "Flux",
        dict(
            image_model="flux", in_channels=16, out_channels=16, vec_in_dim=768, context_in_dim=4096, hidden_size=512,
            mlp_ratio=4.0, num_heads=4, depth=2, depth_single_blocks=2, axes_dim=[16, 56, 56], theta=10000,
            patch_size=2, qkv_bias=True, guidance_embed=True, txt_ids_dims=[],
        ),
        latent=(16, 128, 128), tokens=4096, heads=4, text=512, context=4096, pooled=768, cfg=1.0, repeats=2,
    ),
    "sd15-full": Shape(
        "SD1.5 at 512x512, complete",
        "SD15",
        {**_UNET, "num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4], "transformer_depth": [1] * 6 + [0] * 2}
        | dict(transformer_depth_output=[1] * 9 + [0] * 3, transformer_depth_middle=1),
        latent=(4, 64, 64), tokens=4096, heads=8, repeats=7,
    ),
    "sdxl-full": Shape(
        "SDXL at 1024x1024, complete",
        "SDXL",
        {**_SDXL, "num_res_blocks": [2] * 3, "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10]}
        | dict(transformer_depth_output=[0] * 3 + [2] * 3 + [10] * 3, transformer_depth_middle=10),
        latent=(4, 128, 128), tokens=4096, heads=10, context=2048, pooled=1280, repeats=7,
    ),
}  # fmt: skip
SHAPES |= family_shapes.SHAPES
FAMILIES = tuple(family_shapes.SHAPES)
QUICK = ("toy", "small")
ON_CPU = ("toy", "sd15", "sdxl", "flux")
ON_CUDA = ("toy", "sd15-full", "sdxl-full", "flux")


def build(shape: Shape, dtype: torch.dtype) -> Any:
    """A MODEL with random weights."""
    config = getattr(comfy.supported_models, shape.config)({**shape.model, "dtype": dtype})
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, "")
    torch.manual_seed(0)
    for name, parameter in model.diffusion_model.named_parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=parameter[0].numel() ** -0.5)
        else:
            parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def attention_layers(model: Any) -> list[torch.nn.Module]:
    """The modules in which edits act: the cross-attention layers of a UNet, the blocks of a transformer."""
    network = model.model.diffusion_model
    wanted = re.compile(r"\.attn2$" if hasattr(network, "input_blocks") else r"^\w*(blocks|layers)\.\d+$")
    return [module for name, module in network.named_modules() if wanted.search(name)]


def prompt(shape: Shape, seed: int) -> EncodedText:
    """A prompt "w0 w1 ..." in random numbers: start token, words, end token, padding."""
    names = [f"w{i}" for i in range(WORDS)]
    starts = [sum(len(name) + 1 for name in names[:i]) for i in range(WORDS)]
    spans = [None, *((start, start + len(name)) for start, name in zip(starts, names))]
    spans += [None] * (shape.text - len(spans))
    roles = ["start", *["word"] * WORDS, "end", *["padding"] * (shape.text - WORDS - 2)]
    embedding = torch.randn(1, shape.text, shape.context, generator=torch.Generator().manual_seed(seed))
    return EncodedText(TokenMap(" ".join(names), tuple(spans), tuple(roles)), embedding)


def random_layout(encoded: EncodedText, regions: int) -> Layout:
    """Boxes of 0.2 to 0.5 of the image's width and height anywhere in it, two words each."""
    random = torch.Generator().manual_seed(regions)
    boxes, columns = [], torch.zeros(regions, len(encoded.tokens), dtype=torch.bool)
    for r in range(regions):
        width, height, x, y = torch.rand(4, generator=random).tolist()
        width, height = 0.2 + 0.3 * width, 0.2 + 0.3 * height
        boxes.append(Region(f"w{2 * r + 1} w{2 * r + 2}", Box(x * (1 - width), y * (1 - height), width, height)))
        columns[r, 2 + 2 * r : 4 + 2 * r] = True
    return Layout(encoded, tuple(boxes), columns, (encoded,) * regions, KEY)


def conditioning(shape: Shape, encoded: EncodedText, key: str | None, rows: int = 1) -> list:
    """CONDITIONING as a text encode node returns it; with `key`, as Layout Prompt marks it.

    `rows`: prompts side by side, as Prompt to Prompt has them (what they say does not count here).
    """
    values: dict[str, Any] = dict(shape.extra) if key is None else {**shape.extra, LAYOUT_KEY: key}
    if shape.pooled:
        pooled = torch.randn(1, shape.pooled, generator=torch.Generator().manual_seed(3))
        values["pooled_output"] = pooled.repeat(rows, 1)
    return [[encoded.embedding.repeat(rows, 1, 1), values]]


Edits = list[AttentionEdit | ContextEdit | LatentGuide | TextMix]


def rectified(layout: Layout) -> Edits:
    """Rectified attention as published: an additive mask."""
    return PUBLISHED.edits(layout)


def reweighted(layout: Layout, renormalize: bool) -> Edits:
    """One word of every region twice as strong: an additive mask if renormalised, else explicit probabilities."""
    words = [(f"w{2 * r + 1}", 2.0) for r in range(len(layout.regions))]
    return Reweight(words, renormalize=renormalize).edits(layout)


def record_words(model: Any, layout: Layout) -> Any:
    """Every word, on all grids but the finest: two in SD1.5."""
    return recorded(model, layout, Records(layout.prompt.tokens, Recording(resolutions="all but finest")))


def prompt_to_prompt(model: Any, layout: Layout) -> Any:
    """Source and target side by side, with local blend; all at the default settings but for the blended word."""
    tokens = layout.prompt.tokens
    prompts = Prompts(layout, (tokens,), (token_alignment(tokens, tokens),))
    return edited(model, prompts, PromptToPrompt(blend=LocalBlend(("w3",))))


def towards_blue(through: Through) -> Callable[[Any, Layout], Any]:
    """Loss Guidance in every region by a colour, which is seen without a VAE."""

    def guided(model: Any, layout: Layout) -> Any:
        parts = tuple(Part(region.area) for region in layout.regions)
        return guide_by_pictures(model, PictureGuide(ColorLoss(((0.1, 0.3, 0.9),)), parts, through=through))

    return guided


def host_masks(model: Any, layout: Layout) -> Any:
    """The same regions as the host's own conditioning, a pass of the model for each; nothing is patched."""

    def with_masks(executor: Any, *args: Any, **kwargs: Any) -> Any:
        guider = executor.class_obj
        (base,) = guider.conds["positive"]
        own = {name: value for name, value in base.items() if name not in ("cross_attn", "model_conds", "uuid")}
        entry = [[base["cross_attn"], own]]
        combined = RegionConditioning().combined(entry, layout.regions, [entry] * len(layout.regions))
        guider.conds["positive"] = comfy.sampler_helpers.convert_cond(combined)
        return executor(*args, **kwargs)

    masked = model.clone()
    masked.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "benchmark", with_masks)
    return masked


RANK = 16


def lora_file(model: Any, seed: int) -> dict[str, torch.Tensor]:
    """A LoRA of RANK in every linear layer of the UNet's transformers, as is usual."""
    g, file = torch.Generator().manual_seed(seed), {}
    for name, module in model.model.diffusion_model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".transformer_blocks." in name:
            key, (out, into) = f"diffusion_model.{name}", module.weight.shape
            file[f"{key}.lora_up.weight"] = torch.randn(out, RANK, generator=g) * 0.01
            file[f"{key}.lora_down.weight"] = torch.randn(RANK, into, generator=g) * 0.01
    return file


def region_loras(model: Any, layout: Layout) -> Any:
    """A LoRA of its own for every region."""
    loras = {r: (lora_for(model, lora_file(model, r), f"{r}"), 1.0) for r in range(len(layout.regions))}
    return install(model, layout, RegionLora().edits(layout, loras))


def host_hooks(model: Any, layout: Layout) -> Any:
    """The same by the host: a masked conditioning for each region, and a hook with the region's LoRA on it."""
    hooks = [comfy.hooks.create_hook_lora(lora_file(model, r), 1.0, 0.0) for r in range(len(layout.regions))]

    def with_masks(executor: Any, *args: Any, **kwargs: Any) -> Any:
        guider = executor.class_obj
        (base,) = guider.conds["positive"]
        own = {name: value for name, value in base.items() if name not in ("cross_attn", "model_conds", "uuid")}
        entry = [[base["cross_attn"], own]]
        texts = [comfy.hooks.set_hooks_for_conditioning(entry, hook) for hook in hooks]
        combined = RegionConditioning().combined(entry, layout.regions, texts)
        guider.conds["positive"] = comfy.sampler_helpers.convert_cond(combined)
        return executor(*args, **kwargs)

    masked = model.clone()
    target = comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model)
    masked.register_all_hook_patches(comfy.hooks.HookGroup.combine_all_hooks(hooks), target)
    masked.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "benchmark", with_masks)
    return masked


def with_edits(edits: Callable[[Layout], Edits]) -> Callable[[Any, Layout], Any]:
    return lambda model, layout: install(model, layout, edits(layout))


# Name -> (MODEL, layout) -> patched MODEL.
METHODS: dict[str, Callable[[Any, Layout], Any]] = {
    "rectified": with_edits(rectified),
    "rectified + reweight, renormalised": with_edits(
        lambda layout: rectified(layout) + reweighted(layout, renormalize=True)
    ),
    "reweight as published (explicit)": with_edits(lambda layout: reweighted(layout, renormalize=False)),
    "box constraint": with_edits(lambda layout: preset("standard", "boxdiff").guides(layout)),
    "box constraint without early exit": with_edits(
        lambda layout: [replace(guide, early_exit=False) for guide in preset("standard", "boxdiff").guides(layout)]
    ),
    "box constraint, fast": with_edits(lambda layout: preset("standard", "fast").guides(layout)),
    "loss guidance, direct": towards_blue("direct"),
    "loss guidance, through model": towards_blue("through model"),
    "couple": with_edits(lambda layout: RegionPrompt().edits(layout)),
    "couple, feathered": with_edits(lambda layout: RegionPrompt(feather=0.1).edits(layout)),
    "host's Conditioning (Set Mask)": host_masks,
    "region lora": region_loras,
    "host's hooks": host_hooks,
    "dense": with_edits(lambda layout: DenseDiffusion().edits(layout)),
    "dense, text alone": with_edits(lambda layout: DenseDiffusion(self_weight=0.0).edits(layout)),
    "bound": with_edits(lambda layout: BoundedAttention().edits(layout)),
    "bound, all grids": with_edits(lambda layout: BoundedAttention(StepWindow(), "all").edits(layout)),
    "recorder": record_words,
    "prompt to prompt": prompt_to_prompt,
}
ROWS = {"prompt to prompt": 2}  # pictures in the batch, patched and unpatched, where it is not one


def regions_of(method: str, shape: Shape) -> tuple[int, ...]:
    """With how many regions a method is measured; some costs hardly depend on it. None where Flux cannot have it."""
    if shape.few:
        return {"rectified": (4,), "reweight as published (explicit)": (4,), "recorder": (0,)}.get(method, ())
    if method in ("couple", "host's Conditioning (Set Mask)"):
        return () if shape.config == "Flux" else (1, 2, 4, 8, 16)
    if method in ("region lora", "host's hooks"):
        return () if shape.config == "Flux" else (1, 2, 4, 8)
    if method.startswith(("dense", "bound")):
        return (4,)
    if method == "couple, feathered":
        return () if shape.config == "Flux" else (4,)
    if method in ("recorder", "prompt to prompt"):
        return (0,)
    if method.startswith(("box constraint", "loss guidance")):
        return (4,)
    return (1, 4, 16)
