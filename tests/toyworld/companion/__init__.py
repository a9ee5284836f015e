"""Companion pack of the toy world: lets the host's stock checkpoint loader recognise toyworld.safetensors.

Put (or link) this folder into `custom_nodes`, or import it in-process. It adds no node. Importing it appends one model
configuration to the host's list, after all others and matched by sizes that no other entry has, so that no other
model is detected differently.
"""

import comfy.supported_models
import torch
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer, SDClipModel
from comfy.supported_models_base import ClipTarget

NODE_CLASS_MAPPINGS = {}  # read by the host's pack loader, which reports a pack without it as broken

TEXT_CONFIG = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
    "vocab_size": 49408,
}


class ToyTextEncoder(SDClipModel):
    """SD1's text encoder, smaller, whose rows for the end token and the padding are zero: only words carry meaning."""

    def __init__(self, **options):
        super().__init__(
            textmodel_json_config=dict(TEXT_CONFIG), return_projected_pooled=False, zero_out_masked=True, **options
        )

    def process_tokens(self, tokens, device):
        embeds, mask, *rest = super().process_tokens(tokens, device)
        # The host's mask is ones up to and with the end token, then zeros. The toy was trained without the end token.
        return embeds, torch.nn.functional.pad(mask[:, 1:], (0, 1)), *rest


class ToyClipModel(SD1ClipModel):
    """The outer text model: one `clip_l`, as in SD1."""

    def __init__(self, **options):
        super().__init__(clip_model=ToyTextEncoder, **options)


class ToyWorld(comfy.supported_models.SD15):
    """SD1's family with 64 model channels and a text width of 128; everything else is SD1's or detected."""

    unet_config = {**comfy.supported_models.SD15.unet_config, "context_dim": 128, "model_channels": 64}
    unet_extra_config = {"num_heads": 4, "num_head_channels": -1}

    def clip_target(self, state_dict=None):
        return ClipTarget(SD1Tokenizer, ToyClipModel)


def register():
    """Append ToyWorld to the host's model list unless a copy of it is there (the host imports packs under a path)."""
    models = comfy.supported_models.models
    if not any(model.__name__ == ToyWorld.__name__ for model in models):
        models.append(ToyWorld)


register()
