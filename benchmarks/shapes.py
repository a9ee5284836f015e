"""Models of real shapes with random weights, and random layouts.

Random weights and random boxes cost what trained weights and drawn boxes cost. Needs the host on sys.path and the pack
importable as `pack`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import family_shapes
import torch
from pack.attention_patches.core.types import Box, EncodedText, Layout, Region, TokenMap
from pack.attention_patches.host.text.layout import LAYOUT_KEY
from shape import Shape

KEY = "benchmark"  # marks the conditioning that the layouts belong to
WORDS = 40  # of the prompt; region r (from 0) owns words 2r + 1 and 2r + 2


_UNET = dict(
    image_size=32,
    in_channels=4,
    out_channels=4,
    model_channels=320,
    num_heads=8,
    use_spatial_transformer=True,
    context_dim=768,
    use_linear_in_transformer=False,
    legacy=False,
)
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


def _quarter(shape: Shape) -> Shape:
    """The same model on a picture of half the width and height."""
    *before, height, width = shape.latent
    title = f"{shape.title}; here of half the width and height"
    return replace(shape, title=title, latent=(*before, height // 2, width // 2), tokens=shape.tokens // 4)


SHAPES |= {f"{name}-small": _quarter(SHAPES[name]) for name in ("sdxl", "flux", *FAMILIES)}
_FLUX = SHAPES["flux-small"]
SHAPES["flux-small"] = replace(
    _FLUX,
    title="Flux.1 at 512x512, reduced: 1 double and 1 single block, 4 of 24 heads of 128, 256 text tokens; CFG 1",
    model={**_FLUX.model, "depth": 1, "depth_single_blocks": 1},
    text=256,
)
QUICK = ("toy", "small")
ON_CPU = ("toy", "sd15", "sdxl", "flux")
ON_CUDA = ("toy", "sd15-full", "sdxl-full", "flux")
# Columns of the summary. On a CPU pictures of a quarter: a row of real ones takes an hour.
SUMMARY = {
    "cpu": ("toy", "small", "sdxl-small", "flux-small", "zimage-small", "qwen-small"),
    "cuda": ("toy", "sd15-full", "sdxl-full", "flux", "zimage", "qwen"),
}


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
