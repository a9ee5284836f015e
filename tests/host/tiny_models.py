"""Tiny models with random weights, built from the host's own classes, and one-call runs through the host's samplers.

Build and run inside torch.inference_mode(), as the host's executor does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sample
import comfy.samplers
import comfy.supported_models
import torch
from pack.attention_patches.core.types import Box, EncodedText, Layout, Region, TokenMap

CONTEXT = 64
_UNET = dict(
    image_size=32,
    in_channels=4,
    out_channels=4,
    model_channels=32,
    num_res_blocks=[1, 1, 1],
    channel_mult=[1, 2, 2],
    use_spatial_transformer=True,
    context_dim=CONTEXT,
    legacy=False,
    dtype=torch.float32,
)
_EVERY_LEVEL = dict(
    transformer_depth=[1, 1, 0], transformer_depth_output=[1, 1, 1, 1, 0, 0], transformer_depth_middle=1
)
_QUERIES_AND_KEYS = (
    *("to_q", "to_k", "qkv", "q_proj", "k_proj", "w1q", "w1k", "w2q", "w2k", "wq", "wk"),
    *("attn.q.", "attn.k."),
)  # parts of their weights' names
_FLUX_LAYERS = frozenset({"double.0", "double.1", "single.0", "single.1"})
_WAN = dict(
    image_model="wan2.1",
    patch_size=(1, 2, 2),
    text_dim=CONTEXT,
    in_dim=16,
    out_dim=16,
    dim=64,
    ffn_dim=128,
    freq_dim=32,
    num_heads=2,
    num_layers=2,
    dtype=torch.float32,
)
_COSMOS = dict(
    max_img_h=240,
    max_img_w=240,
    max_frames=128,
    in_channels=16,
    out_channels=16,
    patch_spatial=2,
    patch_temporal=1,
    model_channels=64,
    num_blocks=2,
    num_heads=2,
    crossattn_emb_channels=CONTEXT,
    pos_emb_cls="rope3d",
    pos_emb_learnable=True,
    pos_emb_interpolation="crop",
    use_adaln_lora=True,
    adaln_lora_dim=16,
    dtype=torch.float32,
)


@dataclass(frozen=True)
class Tiny:
    """How to build one model family small."""

    config: str
    settings: dict[str, Any]
    channels: int
    pooled: int | None = None
    model_type: Any = None
    layers: frozenset[str] = frozenset()  # some that edits must reach; of a transformer, all
    unet: bool = False  # separate attention with a UNet's patches, and texts that the host repeats
    joint: bool = False  # one attention holds text and image
    patch: int = 2  # latent cells per token side; of a UNet on its finest grid 1
    before: int = 0  # tokens of the model's own in front of the text
    behind: int = 0  # and behind it
    multiple: int = 1  # to which text, and image, are filled up
    left: int = 0  # columns to which a shorter text is filled up, in front of it
    image_first: bool = False
    shape: tuple[int, ...] = ()  # axes of a latent between channels and height
    frames: bool = False  # the host's model takes several of them
    references: bool = False  # reference latents stand behind the image
    reference_method: str | None = None  # without which the model leaves them out
    extra: Callable[[int], dict[str, Any]] | None = None  # columns of a text -> what else its conditioning holds
    own_text: bool = True  # its image tokens read the conditioning's embedding and no more
    others: int = 0  # attention calls of a block to something else, before that to the text
    gradients: bool = True
    double: bool = True  # all its kernels take float64
    masks: bool = False  # a mask of the text may come with it
    inpaints: bool = True  # the host's model takes a noise mask; not one that always reads a picture and a mask of it
    even: bool = False  # the host's model takes no latent of odd sides
    finish: Callable[[Any], None] | None = None  # makes parts of the network small that its config does not


def _randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(13))


def _small_adapter(network: Any) -> None:
    """Anima's adapter of its text has sizes that nothing sets."""
    build, operations = type(network.llm_adapter), comfy.ops.manual_cast
    network.llm_adapter = build(CONTEXT, CONTEXT, CONTEXT, 1, 2, dtype=network.dtype, operations=operations)


FAMILIES = {
    "sd15": Tiny(
        "SD15",
        {**_UNET, **_EVERY_LEVEL, "num_heads": 4, "use_linear_in_transformer": False},
        4,
        unet=True,
        patch=1,
        layers=frozenset({"input.1.0", "input.3.0", "middle.0.0", "output.2.0", "output.5.0"}),
    ),
    "sd2": Tiny(
        "SD20",
        {**_UNET, **_EVERY_LEVEL, "model_channels": 64, "use_linear_in_transformer": True},  # heads of 64 by its config
        4,
        model_type="V_PREDICTION",
        unet=True,
        patch=1,
        layers=frozenset({"input.1.0", "middle.0.0"}),
    ),
    "sdxl": Tiny(
        "SDXL",
        {**_UNET, "num_heads": -1, "num_head_channels": 16, "use_linear_in_transformer": True}
        | dict(transformer_depth=[0, 2, 2], transformer_depth_output=[0, 0, 2, 2, 2, 2], transformer_depth_middle=2)
        | {"adm_in_channels": 1536 + 24, "num_classes": "sequential"},
        4,
        pooled=24,
        unet=True,
        patch=1,
        layers=frozenset({"input.3.1", "middle.0.1"}),
    ),
    "flux": Tiny(
        "Flux",
        dict(
            image_model="flux", in_channels=16, out_channels=16, vec_in_dim=32, context_in_dim=CONTEXT, hidden_size=64,
            mlp_ratio=2.0, num_heads=2, depth=2, depth_single_blocks=2, axes_dim=[8, 12, 12], theta=10000,
            patch_size=2, qkv_bias=True, guidance_embed=True, txt_ids_dims=[], dtype=torch.float32,
        ),
        16,
        pooled=32,
        layers=_FLUX_LAYERS,
        joint=True,
        references=True,
    ),
    "chroma": Tiny(
        "Chroma",
        dict(
            image_model="chroma", in_channels=64, out_channels=64, context_in_dim=CONTEXT, hidden_size=64,
            mlp_ratio=2.0, num_heads=2, depth=2, depth_single_blocks=2, axes_dim=[8, 12, 12], theta=10000,
            patch_size=2, qkv_bias=True, in_dim=64, out_dim=64, hidden_dim=64, n_layers=2, txt_ids_dims=[],
            vec_in_dim=768, dtype=torch.float32,
        ),
        16,
        pooled=32,  # that older hosts (0.18) ask for; the model does not read it
        layers=_FLUX_LAYERS,
        joint=True,
    ),
    "qwen": Tiny(
        "QwenImage",
        dict(
            image_model="qwen_image", in_channels=64, out_channels=16, num_layers=2, attention_head_dim=32,
            num_attention_heads=2, joint_attention_dim=CONTEXT, axes_dims_rope=(8, 12, 12), dtype=torch.float32,
        ),
        16,
        layers=frozenset({"double.0", "double.1"}),
        joint=True,
        shape=(1,),
        frames=True,
        masks=True,
        references=True,
    ),
    "zimage": Tiny(
        "ZImage",
        dict(
            image_model="lumina2", patch_size=2, in_channels=16, dim=256, n_layers=2, n_refiner_layers=1, n_heads=8,
            n_kv_heads=8, multiple_of=16, qk_norm=True, cap_feat_dim=CONTEXT, axes_dims=[8, 12, 12],
            axes_lens=[300, 512, 512], rope_theta=256.0, z_image_modulation=True, time_scale=1000.0,
            pad_tokens_multiple=32, ffn_dim_multiplier=0.5, dtype=torch.float32,
        ),
        16,
        layers=frozenset({"double.0", "double.1"}),
        joint=True,
        multiple=32,
    ),
    "sd3": Tiny(
        "SD3",
        dict(
            input_size=None, patch_size=2, in_channels=16, depth=2, adm_in_channels=32,
            context_embedder_config={
                "target": "torch.nn.Linear", "params": {"in_features": CONTEXT, "out_features": 128}
            },
            pos_embed_max_size=32, num_patches=1024, qk_norm="rms", x_block_self_attn_layers=[0], dtype=torch.float32,
        ),
        16,
        pooled=32,
        layers=frozenset({"joint.0", "joint.1"}),
        joint=True,
    ),
    "lumina2": Tiny(
        "Lumina2",
        dict(
            image_model="lumina2", patch_size=2, in_channels=16, dim=64, n_layers=2, n_refiner_layers=1, n_heads=2,
            n_kv_heads=1, multiple_of=16, qk_norm=True, cap_feat_dim=CONTEXT, axes_dims=[8, 12, 12],
            axes_lens=[300, 512, 512], dtype=torch.float32,
        ),
        16,
        layers=frozenset({"double.0", "double.1"}),
        joint=True,
    ),
    "flux2": Tiny(
        "Flux2",
        dict(
            image_model="flux2", in_channels=128, out_channels=128, vec_in_dim=None, context_in_dim=CONTEXT,
            hidden_size=64, mlp_ratio=2.0, num_heads=2, depth=2, depth_single_blocks=2, axes_dim=[8, 8, 8, 8],
            theta=2000, patch_size=1, qkv_bias=False, guidance_embed=True, txt_ids_dims=[3], global_modulation=True,
            mlp_silu_act=True, ops_bias=False, default_ref_method="index", ref_index_scale=10.0, dtype=torch.float32,
        ),
        128,
        pooled=32,  # that older hosts ask for
        layers=_FLUX_LAYERS,
        joint=True,
        patch=1,
        left=512,
        references=True,
    ),
    "krea2": Tiny(
        "Krea2",
        dict(
            image_model="krea2", features=64, tdim=32, txtdim=32, heads=2, kvheads=1, multiplier=2, layers=2, patch=2,
            channels=16, txtlayers=2, txtheads=2, txtkvheads=1, dtype=torch.float32,
        ),
        16,
        layers=frozenset({"single.0", "single.1"}),
        joint=True,
        references=True,
        reference_method="index",
        shape=(1,),
    ),
    "auraflow": Tiny(
        "AuraFlow",
        dict(
            in_channels=4, dim=64, n_layers=4, n_double_layers=2, n_heads=2, global_conddim=64, cond_seq_dim=CONTEXT,
            max_seq=1024, dtype=torch.float32,
        ),
        4,
        layers=_FLUX_LAYERS,
        joint=True,
        before=8,
    ),
    "hunyuan_image": Tiny(
        "HunyuanImage21",
        dict(
            image_model="hunyuan_video", in_channels=64, out_channels=64, vec_in_dim=None, context_in_dim=CONTEXT,
            hidden_size=64, mlp_ratio=2.0, num_heads=2, depth=2, depth_single_blocks=2, axes_dim=[16, 16], theta=256,
            patch_size=[1, 1], qkv_bias=True, guidance_embed=True, byt5=True, meanflow=False,
            use_cond_type_embedding=False, vision_in_dim=None, meanflow_sum=False, dtype=torch.float32,
        ),
        64,
        layers=_FLUX_LAYERS,
        joint=True,
        patch=1,
        behind=9,
        extra=lambda columns: {"conditioning_byt5small": _randn(1, 9, 1472)},
    ),
    "hunyuan_video": Tiny(
        "HunyuanVideo",
        dict(
            image_model="hunyuan_video", in_channels=16, out_channels=16, vec_in_dim=32, context_in_dim=CONTEXT,
            hidden_size=64, mlp_ratio=2.0, num_heads=2, depth=2, depth_single_blocks=2, axes_dim=[8, 12, 12],
            theta=256, patch_size=[1, 2, 2], qkv_bias=True, guidance_embed=True, byt5=False, meanflow=False,
            use_cond_type_embedding=False, vision_in_dim=None, meanflow_sum=False, dtype=torch.float32,
        ),
        16,
        pooled=32,
        layers=_FLUX_LAYERS,
        joint=True,
        shape=(1,),
        frames=True,
        masks=True,
        even=True,
    ),
    "hunyuan_video15": Tiny(
        "HunyuanVideo15",
        dict(
            image_model="hunyuan_video", in_channels=65, out_channels=32, vec_in_dim=None, context_in_dim=CONTEXT,
            hidden_size=64, mlp_ratio=2.0, num_heads=2, depth=2, depth_single_blocks=2, axes_dim=[8, 12, 12],
            theta=256, patch_size=[1, 1, 1], qkv_bias=True, guidance_embed=False, byt5=True, meanflow=False,
            use_cond_type_embedding=True, vision_in_dim=48, meanflow_sum=False, dtype=torch.float32,
        ),
        32,
        pooled=32,  # that the host asks for; the model does not read it
        inpaints=False,
        layers=_FLUX_LAYERS,
        joint=True,
        patch=1,
        before=9 + 11,
        shape=(1,),
        frames=True,
        extra=lambda columns: {
            "conditioning_byt5small": _randn(1, 9, 1472),
            "clip_vision_output": SimpleNamespace(last_hidden_state=_randn(1, 11, 48)),
        },
    ),
    "hidream": Tiny(
        "HiDream",
        dict(
            image_model="hidream", patch_size=2, in_channels=16, out_channels=16, num_layers=2, num_single_layers=2,
            attention_head_dim=32, num_attention_heads=2, caption_channels=[CONTEXT, CONTEXT], text_emb_dim=32,
            num_routed_experts=2, num_activated_experts=1, axes_dims_rope=[16, 8, 8], max_resolution=[128, 128],
            llama_layers=[0, 1, 2, 2], dtype=torch.float32,
        ),
        16,
        pooled=32,
        double=False,
        layers=_FLUX_LAYERS,
        joint=True,
        image_first=True,
        own_text=False,
        extra=lambda columns: {"conditioning_llama3": _randn(1, 3, 20, CONTEXT)},
    ),
    "wan": Tiny(
        "WAN21_T2V",
        dict(_WAN, model_type="t2v"),
        16,
        double=False,
        layers=frozenset({"double.0", "double.1"}),
        shape=(1,),
        frames=True,
    ),
    "wan_i2v": Tiny(
        "WAN21_I2V",
        dict(_WAN, model_type="i2v", in_dim=36),
        16,
        double=False,
        layers=frozenset({"double.0", "double.1"}),
        shape=(1,),
        frames=True,
        others=1,
        # As long as the text, so that lengths do not tell them apart.
        extra=lambda columns: {
            "clip_vision_output": SimpleNamespace(penultimate_hidden_states=_randn(1, columns, 1280))
        },
    ),
    "cosmos": Tiny(
        "CosmosT2IPredict2",
        dict(_COSMOS, image_model="cosmos_predict2"),
        16,
        double=False,
        layers=frozenset({"double.0", "double.1"}),
        shape=(1,),
        frames=True,
    ),
    "anima": Tiny(
        "Anima",
        dict(_COSMOS, image_model="anima"),
        16,
        double=False,
        layers=frozenset({"double.0", "double.1"}),
        shape=(1,),
        frames=True,
        finish=_small_adapter,
        own_text=False,
    ),
    "ltxv": Tiny(
        "LTXV",
        dict(
            image_model="ltxv", in_channels=128, cross_attention_dim=64, attention_head_dim=32, num_attention_heads=2,
            caption_channels=CONTEXT, num_layers=2, dtype=torch.float32,
        ),
        128,
        layers=frozenset({"double.0", "double.1"}),
        patch=1,
        shape=(1,),
        frames=True,
        gradients=False,
        masks=True,
        extra=lambda columns: {"attention_mask": torch.ones(1, columns, dtype=torch.long)},
    ),
}  # fmt: skip
# What this host has.
FAMILIES = {name: tiny for name, tiny in FAMILIES.items() if hasattr(comfy.supported_models, tiny.config)}
SUPPORTED = list(FAMILIES)
UNETS = [family for family, tiny in FAMILIES.items() if tiny.unet]
JOINT = [family for family, tiny in FAMILIES.items() if tiny.joint]


def tokens(family: str, size: tuple[int, int] = (16, 24)) -> tuple[int, int]:
    """Down and across on the finest grid."""
    patch = FAMILIES[family].patch
    return -(-size[0] // patch), -(-size[1] // patch)


def places(family: str, columns: int = 77, size: tuple[int, int] = (16, 24)) -> tuple[int, int]:
    """Where the text begins among the keys, and the image among the queries."""
    tiny, (height, width) = FAMILIES[family], tokens(family, size)
    if not tiny.joint:
        return 0, 0
    if tiny.image_first:
        return height * width, 0
    whole = tiny.before + max(columns, tiny.left) + tiny.behind
    return tiny.before + max(0, tiny.left - columns), -(-whole // tiny.multiple) * tiny.multiple


def build(family: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A MODEL with random weights whose attention is peaked enough to be edited visibly."""
    tiny = FAMILIES[family]
    config = getattr(comfy.supported_models, tiny.config)({**tiny.settings, "dtype": dtype})
    config.set_inference_dtype(dtype, None)
    if tiny.model_type:
        model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType[tiny.model_type])
    else:
        model = config.get_model({}, "")
    if tiny.finish:
        tiny.finish(model.diffusion_model)
    randomise(model.diffusion_model, seed)
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


class Built(dict):
    """Family -> its model, built when it is first asked for."""

    def __missing__(self, family: str) -> Any:
        self[family] = build(family)
        return self[family]


def randomise(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            gain = 1.5 if any(key in name for key in _QUERIES_AND_KEYS) else 1.0
            values *= gain / parameter[0].numel() ** 0.5
        elif ("norm" in name or "ln_" in name) and name.endswith(("weight", "scale")):
            values = 1.0 + 0.1 * values
        else:
            values *= 0.1
        parameter.data.copy_(values)
    for name, buffer in module.named_buffers():
        if name == "pos_embed":  # SD3's comes with its weights, and holds anything before
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)


def text(length: int = 77, seed: int = 1, words: int = 10) -> EncodedText:
    """An encoded prompt: start token, `words` words "w0 w1 ...", end token, padding."""
    names = [f"w{i}" for i in range(words)]
    spans, start = [None], 0
    for name in names:
        spans.append((start, start + len(name)))
        start += len(name) + 1
    roles = ["start", *["word"] * words, "end", *["padding"] * (length - words - 2)]
    spans += [None] * (length - words - 1)
    embedding = torch.randn(1, length, CONTEXT, generator=torch.Generator().manual_seed(seed))
    return EncodedText(TokenMap(" ".join(names), tuple(spans), tuple(roles)), embedding)


LEFT, RIGHT = Box(0.0, 0.0, 0.5, 1.0), Box(0.5, 0.0, 0.5, 1.0)


def layout(prompt: EncodedText | None = None, areas=(LEFT, RIGHT), key: str = "layout", strengths=None) -> Layout:
    """Region r owns words 2r + 1 and 2r + 2 of the prompt."""
    prompt = prompt or text()
    strengths = strengths or [1.0] * len(areas)
    columns = torch.zeros(len(areas), len(prompt.tokens), dtype=torch.bool)
    regions = []
    for r, area in enumerate(areas):
        columns[r, 2 + 2 * r : 4 + 2 * r] = True
        regions.append(Region(f"w{2 * r + 1} w{2 * r + 2}", area, strengths[r]))
    parts = tuple(text(len(prompt.tokens), seed=100 + r, words=2) for r in range(len(areas)))
    return Layout(prompt, tuple(regions), columns, parts, key)


def conditioning(family: str, encoded: EncodedText, key: str | None = None, seed: int = 5, **values) -> list:
    """CONDITIONING as a text encode node returns it; with `key`, as Layout Prompt marks it."""
    extra = dict(values)
    if FAMILIES[family].extra:
        extra = FAMILIES[family].extra(encoded.embedding.shape[1]) | extra
    if FAMILIES[family].pooled:
        width = FAMILIES[family].pooled
        extra["pooled_output"] = torch.randn(1, width, generator=torch.Generator().manual_seed(seed))
    if key is not None:
        extra["boxwright_layout"] = key
    return [[encoded.embedding.clone(), extra]]


def latent(family: str, size=(16, 24), batch: int = 1, seed: int = 7) -> torch.Tensor:
    shape = (batch, FAMILIES[family].channels, *FAMILIES[family].shape, *size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run(
    family, model, positive, negative=None, *, noise=None, steps=2, cfg=4.0, sampler="euler", scheduler="simple", **kw
):
    """A KSampler run; latent float32 [B, C, H, W]. `kw` goes to comfy.sample.sample."""
    noise = latent(family) if noise is None else noise
    negative = negative if negative is not None else conditioning(family, text(seed=2), seed=6)
    return comfy.sample.sample(
        model,
        noise,
        steps,
        cfg,
        sampler,
        scheduler,
        positive,
        negative,
        torch.zeros_like(noise),
        disable_pbar=True,
        seed=1,
        **kw,
    )


def probe(model, seen: list):
    """The model with an attention override, as another pack would add, that notes every call and what it returned."""
    patched = model.clone()
    options = patched.model_options.setdefault("transformer_options", {})
    previous = options.get("optimized_attention_override")

    def note(func, *args, **kwargs):
        out = previous(func, *args, **kwargs) if previous else func(*args, **kwargs)
        options = dict(kwargs["transformer_options"])  # the host goes on writing into the one it passed
        seen.append((args, {**kwargs, "transformer_options": options}, out))
        return out

    options["optimized_attention_override"] = note
    return patched
