"""The nodes: schemas and a sentence each. What they do lives in `attention_patches`."""

from comfy_api.latest import ComfyExtension, io

from . import (
    arranged_noise,
    attention_heatmap,
    attention_recorder,
    blended_latents,
    box_constraint,
    box_editor,
    clip_loss,
    color_loss,
    diff_edit,
    diff_mask,
    find_word,
    flow_edit,
    h_space,
    ilvr,
    inversion,
    layout_prompt,
    layout_to_prompt,
    loss_guidance,
    mask_from_word,
    prompt_fit,
    prompt_to_prompt,
    prompt_to_regions,
    rectified_attention,
    region_conditioning,
    region_lora,
    region_prompt,
    region_strength,
    regions,
    regions_preview,
    repaint,
    replacements,
    reweight,
)
from .parts import schema


class BoxwrightExtension(ComfyExtension):
    async def on_load(self) -> None:
        await replacements.register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        nodes = [
            *regions.NODES,
            *box_editor.NODES,
            *layout_prompt.NODES,
            *regions_preview.NODES,
            *layout_to_prompt.NODES,
            *prompt_to_regions.NODES,
            *rectified_attention.NODES,
            *arranged_noise.NODES,
            *box_constraint.NODES,
            *region_prompt.NODES,
            *region_conditioning.NODES,
            *region_lora.NODES,
            *reweight.NODES,
            *prompt_to_prompt.NODES,
            *attention_recorder.NODES,
            *attention_heatmap.NODES,
            *mask_from_word.NODES,
            *diff_mask.NODES,
            *find_word.NODES,
            *inversion.NODES,
            *diff_edit.NODES,
            *flow_edit.NODES,
            *repaint.NODES,
            *blended_latents.NODES,
            *ilvr.NODES,
            *region_strength.NODES,
            *h_space.NODES,
            *prompt_fit.NODES,
            *loss_guidance.NODES,
            *color_loss.NODES,
            *clip_loss.NODES,
        ]
        return [schema.guarded(node) for node in nodes]
