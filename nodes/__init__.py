"""The nodes: schemas and a sentence each. What they do lives in `attention_patches`."""

from comfy_api.latest import ComfyExtension, io

from . import layout_prompt, rectified_attention, regions, regions_preview, reweight


class BoxwrightExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            *regions.NODES,
            *layout_prompt.NODES,
            *regions_preview.NODES,
            *rectified_attention.NODES,
            *reweight.NODES,
        ]
