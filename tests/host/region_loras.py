"""What the tests of region LoRAs share: files placed in regions of tiny models, and short runs."""

import tiny_models as tiny
import torch
from pack.attention_patches.core.types import Box
from pack.attention_patches.host.install import install
from pack.attention_patches.host.layers.lora import lora_for
from pack.attention_patches.methods.region_lora import RegionLora

WHOLE, DEFAULT = Box(0.0, 0.0, 1.0, 1.0), RegionLora()
EARLY = {"steps": 4, "last_step": 1}  # a step that ends before the windows of these tests begin
FAMILIES = ["sd15", "sdxl", "flux", "qwen", "zimage", "sd3", "flux2"]


def run(family, model, layout, **options):
    return tiny.run(family, model, tiny.conditioning(family, layout.prompt, layout.key), **{"steps": 1, **options})


def with_loras(model, layout, files, method=DEFAULT, strength=0.8):
    """The MODEL with a LoRA file for each region, from the first."""
    placed = {number: (lora_for(model, file, f"file {number}"), strength) for number, file in enumerate(files)}
    return install(model, layout, method.edits(layout, placed))


def same(a, b):
    """Equal to 1e-5 of the largest value: another order of summation."""
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(b.abs().max()))
