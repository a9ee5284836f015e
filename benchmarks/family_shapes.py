"""Two blocks of every family of transformers, 4 heads of 128 instead of 12 to 56, at the size of their tokens."""

from __future__ import annotations

import torch
from shape import Shape

_FLUX = dict(
    hidden_size=512,
    num_heads=4,
    mlp_ratio=4.0,
    depth=1,
    depth_single_blocks=1,
    theta=10000,
    qkv_bias=True,
    guidance_embed=True,
)
_HUNYUAN = {**_FLUX, "image_model": "hunyuan_video", "theta": 256} | dict(
    byt5=False, meanflow=False, use_cond_type_embedding=False, vision_in_dim=None, meanflow_sum=False
)
SHAPES = {
    "flux2": Shape(
        "FLUX.2 at 1024x1024: 1 double and 1 single block",
        "Flux2",
        {**_FLUX, "image_model": "flux2", "mlp_ratio": 3.0, "qkv_bias": False, "theta": 2000}
        | dict(in_channels=128, out_channels=128, vec_in_dim=None, context_in_dim=7680, axes_dim=[32] * 4, patch_size=1)
        | dict(txt_ids_dims=[3], global_modulation=True, mlp_silu_act=True, ops_bias=False),
        latent=(128, 64, 64), tokens=4096, heads=4, text=512, context=7680, cfg=1.0, few=True,
    ),
    "krea2": Shape(
        "Krea 2 at 1024x1024: 2 blocks, text of 12 layers of 640 channels",
        "Krea2",
        dict(
            image_model="krea2", features=512, tdim=256, txtdim=640, heads=4, kvheads=1, multiplier=4, layers=2,
            patch=2, channels=16, txtlayers=12, txtheads=5, txtkvheads=5,
        ),
        latent=(16, 1, 128, 128), tokens=4096, heads=4, text=128, context=7680, cfg=1.0, few=True,
    ),
    "qwen": Shape(
        "Qwen-Image at 1024x1024: 2 blocks",
        "QwenImage",
        dict(
            image_model="qwen_image", in_channels=64, out_channels=16, num_layers=2, attention_head_dim=128,
            num_attention_heads=4, joint_attention_dim=3584, axes_dims_rope=(16, 56, 56),
        ),
        latent=(16, 1, 128, 128), tokens=4096, heads=4, text=128, context=3584, few=True,
    ),
    "zimage": Shape(
        "Z-Image at 1024x1024: 2 blocks and their refiners",
        "ZImage",
        dict(
            image_model="lumina2", patch_size=2, in_channels=16, dim=512, n_layers=2, n_refiner_layers=1, n_heads=4,
            n_kv_heads=4, multiple_of=256, qk_norm=True, cap_feat_dim=2560, axes_dims=[32, 48, 48],
            axes_lens=[1536, 512, 512], rope_theta=256.0, z_image_modulation=True, time_scale=1000.0,
            pad_tokens_multiple=32, ffn_dim_multiplier=8.0 / 3.0,
        ),
        latent=(16, 128, 128), tokens=4096, heads=4, text=128, context=2560, cfg=1.0, few=True,
    ),
    "sd3": Shape(
        "SD 3.5 at 1024x1024: 6 blocks, 6 heads of 64",
        "SD3",
        dict(
            input_size=None, patch_size=2, in_channels=16, depth=6, adm_in_channels=2048, pos_embed_max_size=384,
            context_embedder_config={
                "target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 384}
            },
            num_patches=384**2, qk_norm="rms",
        ),
        latent=(16, 128, 128), tokens=4096, heads=6, text=154, context=4096, pooled=2048, few=True, repeats=1,
    ),
    "auraflow": Shape(
        "AuraFlow at 1024x1024: 1 double and 1 single block",
        "AuraFlow",
        dict(
            in_channels=4, dim=512, n_layers=2, n_double_layers=1, n_heads=4, global_conddim=512, cond_seq_dim=2048,
            max_seq=4096,
        ),
        latent=(4, 128, 128), tokens=4096, heads=4, text=256, context=2048, few=True,
    ),
    "hunyuan_image": Shape(
        "HunyuanImage 2.1 at 2048x2048: 1 double and 1 single block",
        "HunyuanImage21",
        {**_HUNYUAN, "in_channels": 64, "out_channels": 64, "vec_in_dim": None, "context_in_dim": 3584}
        | dict(axes_dim=[64, 64], patch_size=[1, 1]),
        latent=(64, 64, 64), tokens=4096, heads=4, text=128, context=3584, few=True,
    ),
    "hunyuan_video": Shape(
        "HunyuanVideo, 17 frames of 640x480: 1 double and 1 single block",
        "HunyuanVideo",
        {**_HUNYUAN, "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096}
        | dict(axes_dim=[16, 56, 56], patch_size=[1, 2, 2]),
        latent=(16, 5, 60, 80), tokens=6000, heads=4, text=256, context=4096, pooled=768, cfg=1.0, few=True, repeats=2,
    ),
    "hidream": Shape(
        "HiDream-I1 at 1024x1024: 1 double and 1 single block",
        "HiDream",
        dict(
            image_model="hidream", patch_size=2, in_channels=16, out_channels=16, num_layers=1, num_single_layers=1,
            attention_head_dim=128, num_attention_heads=4, caption_channels=[4096, 4096], text_emb_dim=2048,
            num_routed_experts=4, num_activated_experts=2, axes_dims_rope=[64, 32, 32], max_resolution=[128, 128],
            llama_layers=[0, 1],
        ),
        latent=(16, 128, 128), tokens=4096, heads=4, text=128, context=4096, pooled=2048, few=True,
        extra={"conditioning_llama3": torch.randn(1, 2, 128, 4096)},
    ),
    "wan": Shape(
        "Wan 2.1, 17 frames of 832x480: 2 blocks",
        "WAN21_T2V",
        dict(
            image_model="wan2.1", model_type="t2v", patch_size=(1, 2, 2), text_dim=4096, in_dim=16, out_dim=16, dim=512,
            ffn_dim=2048, freq_dim=256, num_heads=4, num_layers=2,
        ),
        latent=(16, 5, 60, 104), tokens=7800, heads=4, text=512, context=4096, few=True, repeats=2,
    ),
    "cosmos": Shape(
        "Cosmos-Predict2 at 1024x1024: 2 blocks",
        "CosmosT2IPredict2",
        dict(
            image_model="cosmos_predict2", max_img_h=240, max_img_w=240, max_frames=128, in_channels=16,
            out_channels=16, patch_spatial=2, patch_temporal=1, model_channels=512, num_blocks=2, num_heads=4,
            crossattn_emb_channels=1024, pos_emb_cls="rope3d", pos_emb_learnable=True, pos_emb_interpolation="crop",
            use_adaln_lora=True, adaln_lora_dim=256,
        ),
        latent=(16, 1, 128, 128), tokens=4096, heads=4, text=512, context=1024, few=True,
    ),
    "ltxv": Shape(
        "LTX-Video, 97 frames of 768x512: 2 blocks, 8 heads of 64",
        "LTXV",
        dict(
            image_model="ltxv", in_channels=128, cross_attention_dim=512, attention_head_dim=64, num_attention_heads=8,
            caption_channels=4096, num_layers=2,
        ),
        latent=(128, 13, 16, 24), tokens=4992, heads=8, text=128, context=4096, few=True,
        extra={"attention_mask": torch.ones(1, 128, dtype=torch.long)},
    ),
}  # fmt: skip
