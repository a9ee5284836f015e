"""What a guided pass through a transformer keeps for its way back, at the size of the real models.

    python benchmarks/guided_memory.py COMFYUI_PATH

The bytes that autograd saves in the pass of a tiny model in bfloat16 are counted at two depths. The difference is that
of the blocks; it grows with tokens x channels, so that the real model's follows. A little too high: the maps that are
read grow with the tokens alone, and are a larger part of a tiny model's.
"""

import sys
import types
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [sys.argv[1], str(ROOT / "tests" / "host")]
sys.argv = ["x", "--cpu", "--use-pytorch-cross-attention"]
import comfy.options

comfy.options.enable_args_parsing()
import torch

pack = types.ModuleType("pack")
pack.__path__ = [str(ROOT)]
sys.modules["pack"] = pack
import guides
import tiny_models as tiny
from pack.attention_patches.host.attention import attend
from pack.attention_patches.methods.box_constraint import preset

# family -> key of its depth, of its channels; the real model's blocks up to the last that is read, and its channels
REAL = {
    "flux": ("depth", "hidden_size", 19, 3072),
    "chroma": ("depth", "hidden_size", 19, 3072),
    "qwen": ("num_layers", None, 30, 3072),
    "zimage": ("n_layers", "dim", 15, 3840),
}
TOKENS = 4096 + 512  # a picture of 1024 x 1024 and a prompt
SIZE, TEXT = (32, 32), 77  # of the tiny run
attend.WORK_BYTES = 200_000  # so that it takes the attention in pieces, as a large picture does


def saved(family: str, depth: int) -> int:
    """Bytes that autograd keeps in one guided pass of one picture."""
    plain = tiny.FAMILIES[family]
    tiny.FAMILIES[family] = replace(plain, unet={**plain.unet, REAL[family][0]: depth})
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)  # else its address is used again
        return tensor

    alive: list[torch.Tensor] = []
    layout = tiny.layout()
    (guide,) = preset("standard", "boxdiff").guides(layout)
    try:
        model = tiny.build(family, dtype=torch.bfloat16)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            guides.gradients(family, model, layout, guide, batch=1, size=SIZE)
    finally:
        tiny.FAMILIES[family] = plain
    return sum(found.values())


with torch.inference_mode():
    print("| model | one block, bytes per token and channel | blocks | 1024x1024 in bfloat16, GiB |\n|---|---|---|---|")
    for family, (_, channels, blocks, width) in REAL.items():
        config = tiny.FAMILIES[family].unet
        own = config[channels] if channels else config["attention_head_dim"] * config["num_attention_heads"]
        layers = 4 if family in ("flux", "chroma") else 2  # of the four more, those that the pass runs
        share = (saved(family, 8) - saved(family, 4)) / layers / (SIZE[0] * SIZE[1] // 4 + TEXT) / own
        print(f"| {family} | {share:.0f} | {blocks} | {share * TOKENS * width * blocks / 2**30:.1f} |")
